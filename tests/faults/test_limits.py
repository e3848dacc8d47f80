"""Full disks and few open files, for every program: one line and status 2, and the same command goes on afterwards."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import planted_model
from helpers.accidents import Figures, can_mount, few_descriptors, is_traceback, run, small_disk, tail
from helpers.programs import ROOT, write_reviews

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a planted model whose unit has been found, and texts for every program."""
    folder = tmp_path_factory.mktemp("limits")
    write_reviews(folder / "reviews.txt")
    planted_model.write_labelled(folder / "input.csv", 400)
    planted_model.smileys().save(folder / "model")
    task = planted_model.write_labelled(folder / "task.csv", 60)
    found = run("eval_sst", folder / "model", "--task", task, "--out", folder, XDG_CACHE_HOME=folder / "cache")
    assert found.status == 0, tail(found)
    return folder


def commands(inputs, out):
    """One command of every program that writes all it writes into `out`."""
    tiny = ["--config", ROOT / "configs" / "tiny.py", "--data", inputs / "reviews.txt", "--save-every", 5]
    return {
        "train": [*tiny, "--run-dir", out / "run"],
        "eval_sst": [inputs / "model", "--task", inputs / "task.csv", "--report", out / "report", "--samples", 2],
        "sample": [inputs / "model", "--prime", ":)", "--length", 20, "--num", 1],
        "score": [inputs / "model", inputs / "input.csv", "--out", out / "scored.csv", "--resume"],
        "heatmap": [inputs / "model", ":) so good", "--out", out / "heat.png"],
        "convert": [inputs / "model", out / "converted", "--format", "openai"],
        "corpus": [inputs / "reviews.txt", "--out", out / "corpus", "--shards", 30, "--workers", 2],
    }


def judge(figures, about, ended, again):
    """Success or a refusal in one line; then the same command, without the limit, ends well."""
    refusal = [line for line in ended.err.splitlines() if line.startswith(("error: ", "usage: "))]
    if is_traceback(ended) or is_traceback(again):
        figures.fail("traceback", f"{about}: {tail(ended)}\n{tail(again)}")
    elif ended.status == 2 and len(refusal) != 1:
        figures.fail("not one line", f"{about}: {tail(ended)}")
    elif ended.status not in (0, 2):
        figures.fail(f"status {ended.status}", f"{about}: {tail(ended)}")
    elif again.status != 0:
        figures.fail("does not go on", f"{about}: {tail(ended)}\nthen: {tail(again)}")
    else:
        figures.count("refused in one line, then done" if ended.status else "done")


PROGRAMS = ["train", "eval_sst", "sample", "score", "heatmap", "convert", "corpus"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk(inputs, tmp_path, program):
    if not can_mount():
        pytest.skip("unshare and nsenter may not make a small disk here")
    figures = Figures(f"full disk, {program}")

    def on_a_disk_of(size):
        (folder := tmp_path / size).mkdir()
        with small_disk(folder, size) as disk:
            command = commands(inputs, folder)[program]
            where = {"XDG_CACHE_HOME": folder / "cache", "TMPDIR": folder}
            ended = run(program, *command, before=disk.before, **where)
            disk.resize("200m")
            again = ended if not ended.status else run(program, *command, before=disk.before, **where)
            judge(figures, size, ended, again)

    with ThreadPoolExecutor(2) as both:
        list(both.map(on_a_disk_of, ("8k", "60k")))
    figures.report()


@pytest.mark.parametrize("program", PROGRAMS)
def test_few_descriptors(inputs, tmp_path, program):
    figures = Figures(f"few descriptors, {program}")

    def with_descriptors(count):
        (folder := tmp_path / str(count)).mkdir()
        command, cache = commands(inputs, folder)[program], folder / "cache"
        ended = run(program, *command, before=few_descriptors(count), XDG_CACHE_HOME=cache)
        again = ended if not ended.status else run(program, *command, XDG_CACHE_HOME=cache)
        judge(figures, f"{count} descriptors", ended, again)

    with ThreadPoolExecutor(2) as both:
        list(both.map(with_descriptors, (32, 64, 128)))
    figures.report()
