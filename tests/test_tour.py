"""Every command of docs/tour.md runs: on a model, reviews and tasks so small that it takes seconds."""

import ast
import re
import shlex
import threading
import urllib.request

import pytest
import uvicorn

from helpers import planted_model
from helpers.programs import ROOT
from mlstm_jax import tasks
from mlstm_jax.cli import train
from mlstm_jax.sentiment import clamp_effect

PAGE = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
TOURS = {title: body for title, body in re.findall(r"^## (\w+).*?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)}
SHRUNK = {
    "train": "--batch-size 4 --seq-length 16 --sample-every 0",
    "sample": "--length 20",
    "eval": "--samples 2 --sample-length 20",
    "demo": "--port 0",
}


def commands(body, language):
    """The commands of a tour, one a line."""
    block = re.search(rf"```{language}\n(.*?)```", body, re.DOTALL)
    return [line for line in (block[1] if block else "").splitlines() if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with all that the commands name: a run, weights in the paper's format, reviews, a small task."""
    folder = tmp_path_factory.mktemp("tour")
    labelled = planted_model.write_labelled(folder / "reviews.csv", n=120)
    arguments = ["--config", "tiny", "--data", str(labelled), "--run-dir", str(folder / "runs/quickstart")]
    assert train.run([*arguments, "--model.hidden", "16", "--updates", "4", "--sample-every", "0"]) == 0
    planted_model.smileys().save(folder / "openai", format="openai")
    return folder


@pytest.fixture
def small(workplace, monkeypatch):
    """The commands run in that folder; the tasks that come with the packages are its labelled reviews."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))  # the records of weights that are no run
    task = tasks.from_file("reviews.csv")
    monkeypatch.setattr(tasks, "load", lambda name, data: task._replace(name=name))
    monkeypatch.setattr(clamp_effect, "available", lambda: {})
    return workplace


def test_there_are_five_tours_of_at_most_five_commands():
    assert list(TOURS) == ["Analyst", "Teacher", "Researcher", "Fine", "Student"]
    for body in TOURS.values():
        shell, python = commands(body, "sh"), [line for line in commands(body, "python") if "import" not in line]
        assert 1 <= len(shell + python) <= 5


@pytest.mark.parametrize("tour", [tour for tour in TOURS if tour != "Student"])
def test_every_command_of_a_tour_runs(small, run_here, tour):
    for command in commands(TOURS[tour], "sh"):
        program, name, *arguments = shlex.split(command)
        assert program == "mlstm"
        arguments = [re.sub("^2388=", "7=", argument) for argument in arguments]  # of 16 units
        ended = run_here(f"mlstm {name}", *arguments, *SHRUNK.get(name, "").split())
        assert ended.status == 0, (command, ended.err)
    written = {
        "Analyst": ["scored.csv", "scored.html"],
        "Teacher": ["words.html"],
        "Researcher": ["report/index.html"],
        "Fine": ["runs/mine/config.json", "mine/model.safetensors"],
    }
    assert all((small / path).is_file() for path in written[tour])


def test_the_page_is_served(small, run_here, monkeypatch):
    pages, run = [], uvicorn.Server.run

    def until_visited(self, sockets):
        def visit():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/", timeout=60) as answer:
                    pages.append(answer.read())
            finally:
                self.should_exit = True

        visitor = threading.Thread(target=visit)
        visitor.start()
        run(self, sockets)
        visitor.join()

    monkeypatch.setattr(uvicorn.Server, "run", until_visited)
    (command,) = commands(TOURS["Student"], "sh")
    _, name, *arguments = shlex.split(command)
    ended = run_here(f"mlstm {name}", *arguments, *SHRUNK[name].split())
    assert ended.status == 0, ended.err
    assert len(pages) == 1 and b"page.js" in pages[0] and "pretrained is at http://127.0.0.1:" in ended.out


def test_every_line_of_python_runs(small, run_here):
    lines = commands(TOURS["Student"], "python")
    known = {}
    exec("\n".join(line for line in lines if re.match(r"import|\w+ = ", line)), known)
    shown = [eval(line, known) for line in lines if isinstance(ast.parse(line).body[0], ast.Expr)]
    predictions, heatmap, written = shown
    assert list(predictions.label) == ["positive", "negative"]
    assert "<figure" in heatmap._repr_html_() and written[0].startswith("This camera ")
