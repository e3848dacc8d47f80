"""Ctrl-C at random moments: one line and status 130, whatever runs; nothing is left running, and nothing half done."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import planted_model
from helpers.accidents import Figures, is_traceback, left_behind, run, signalled, start, tail

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a planted model whose unit has been found, `task.csv` and, longer, `input.csv`."""
    folder = tmp_path_factory.mktemp("interrupts")
    planted_model.smileys().save(folder / "model")
    planted_model.write_labelled(folder / "input.csv", 2000)
    task = planted_model.write_labelled(folder / "task.csv", 120)
    found = run("eval_sst", folder / "model", "--task", task, "--out", folder, XDG_CACHE_HOME=folder / "cache")
    assert found.status == 0, tail(found)
    return folder / "model"


def commands(model, out, cache):
    """What is interrupted, by program."""
    task, texts = model.parent / "task.csv", model.parent / "input.csv"
    return {
        "eval_sst": ([model, "--task", task, "--out", out / "pictures"], {"XDG_CACHE_HOME": cache}),
        "sample": ([model, "--prime", ":)", "--num", 2, "--length", 400, "--sentiment", 2], {}),
        "score": ([model, texts, "--out", out / "scored.csv", "--resume"], {}),
    }


def test_ctrl_c_ends_a_program_at_any_moment(model, tmp_path):
    figures, draw = Figures("Ctrl-C"), random.Random(0)

    def interrupted(program, number, share, lasts):
        out = tmp_path / f"{program}{number}"
        out.mkdir()
        arguments, environment = commands(model, out, out / "cache")[program]
        running = start(program, *arguments, **environment)
        # Not before Python itself has started: there every program ends in Python's own words.
        ended = signalled(running, signal.SIGINT, 0.1 + share * lasts)
        about = f"{program} after {0.1 + share * lasts:.1f} of {lasts:.1f} s: {tail(ended)}"
        lines = ended.err.strip().splitlines()
        if is_traceback(ended):
            figures.fail("traceback", about)
        elif left_behind(running.process.pid):
            figures.fail("left a process behind", about)
        elif ended.status == 0:
            done = ended.out.count(":)") > 1 or (out / "scored.csv").exists() or "wrote" in ended.out
            late = "interrupted" not in ended.err and done
            figures.count("done before") if late else figures.fail("swallowed", about)
        elif ended.status == 130:
            said = lines.count("interrupted") == 1 and len(lines) <= 4
            figures.count("130") if said else figures.fail("more than its lines", about)
        else:
            figures.fail(f"status {ended.status}", about)

    with ThreadPoolExecutor(2) as both:
        for program in ("eval_sst", "sample", "score"):
            begun = time.monotonic()
            arguments, environment = commands(model, tmp_path, tmp_path / "cache")[program]
            assert run(program, *arguments, **environment).status == 0
            lasts = time.monotonic() - begun
            shares = [(number + draw.random()) / 10 for number in range(10)]
            list(both.map(lambda n, p=program, t=lasts, s=shares: interrupted(p, n, s[n], t), range(10)))
    assert figures.outcomes["130"] >= 20, "programs ended before they were interrupted: let them last longer"
    figures.report()
