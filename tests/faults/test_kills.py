"""Training and scoring killed at random moments: the same command goes on, and the end is the uninterrupted one's."""

import json
import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import mlstm_jax
from helpers import planted_model
from helpers.accidents import Figures, end, is_traceback, run, signalled, start, tail
from helpers.programs import ROOT, write_reviews
from mlstm_jax.run import Run

pytestmark = pytest.mark.slow

SAVES = "--updates 300 --save-every 3 --keep 2 --log-every 7 --eval-every 50 --sample-every 0".split()
SMALL = "import sys, tyro; from mlstm_jax.cli import score; from mlstm_jax.cli.program import script; score.ROWS = 20; "
SMALL += "script(lambda: tyro.cli(score.main))"


def training(run_dir, reviews):
    named = ["--config", ROOT / "configs" / "tiny.py", "--data", reviews, "--run-dir", run_dir]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": reviews.parent / "compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
    }
    return start("train", *named, *SAVES, **compiled)  # a start is half as long with what the first one compiled


def last(run_dir):
    """The newest checkpoint that has been written whole; 0 where there is none."""
    return max(Run(run_dir).steps(), default=0)


def test_training_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path):
    """Of fifty kills some fall into the start, most amid updates and saves (there is one every three updates)."""
    figures = Figures("kills of training")
    reviews = write_reviews(tmp_path / "reviews.txt")
    whole = end(training(tmp_path / "whole", reviews))
    assert whole.status == 0, tail(whole)
    expected = mlstm_jax.load(tmp_path / "whole").digest

    def killed_ten_times(number):
        run_dir, draw, kills, status = tmp_path / f"run{number}", random.Random(number), 0, None
        while status != 0:
            saved, running = last(run_dir), training(run_dir, reviews)
            if kills == 10:
                ended = end(running)
            elif kills % 5 == 0:  # while it starts
                ended = signalled(running, signal.SIGKILL, draw.uniform(0, 4))
            else:
                saving = lambda saved=saved: last(run_dir) > saved
                ended = signalled(running, signal.SIGKILL, draw.uniform(0, 0.8), saving)
            status, about = ended.status, f"run {number} after {kills} kills and {saved} updates: {tail(ended)}"
            resumed = re.search(r"resuming .* after update (\d+)", ended.out)
            if resumed and int(resumed[1]) < saved:
                figures.fail("gone back", about)
            if is_traceback(ended) or status not in (0, -signal.SIGKILL):
                figures.fail("lost", about)
                return
            if status != 0:
                kills += 1
                figures.count("killed")
        same = mlstm_jax.load(run_dir).digest == expected
        figures.count("end equal") if same else figures.fail("end differs", about)

    with ThreadPoolExecutor(2) as both:
        list(both.map(killed_ten_times, range(5)))
    assert figures.outcomes["killed"] >= 40, "runs ended before they were killed: make them longer"
    figures.report()


def test_scoring_killed_at_any_moment_ends_in_the_same_bytes(tmp_path):
    figures, draw = Figures("kills of scoring"), random.Random(1)
    planted_model.smileys().save(tmp_path / "model")
    task = planted_model.write_labelled(tmp_path / "task.csv", 60)
    found = run("eval_sst", tmp_path / "model", "--task", task, XDG_CACHE_HOME=tmp_path / "cache")
    assert found.status == 0, tail(found)
    source = planted_model.write_labelled(tmp_path / "input.csv", 4000)
    for name in ("scored.csv", "scored.jsonl", "again.csv"):
        whole, out = tmp_path / f"whole-{name}", tmp_path / name
        ended = run(SMALL, tmp_path / "model", source, "--out", whole)
        assert ended.status == 0, tail(ended)
        kills, state = 0, tmp_path / f"{name}.part.state"
        while True:
            groups = lambda state=state: json.loads(state.read_bytes())["groups"] if state.exists() else 0
            before = groups()
            running = start(SMALL, tmp_path / "model", source, "--out", out, "--resume")
            if kills == 5:
                ended = end(running)
            else:
                begun = lambda before=before, groups=groups, out=out: out.exists() or groups() > before
                ended = signalled(running, signal.SIGKILL, draw.uniform(0, 0.3), begun)
            if ended.status != -signal.SIGKILL:
                break
            kills += 1
            figures.count("killed")
            if groups() < before:
                figures.fail("gone back", f"{name}: {before} groups, then {groups()}")
        same = ended.status == 0 and out.read_bytes() == whole.read_bytes()
        figures.count("end equal") if same else figures.fail("end differs", f"{name}: {tail(ended)}")
    assert figures.outcomes["killed"] >= 12, "scoring ended before it was killed: take more rows"
    figures.report()
