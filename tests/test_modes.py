"""jax in the modes that other libraries and a search for an error turn on: the same numbers, to the bit."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers.programs import ROOT, TINY
from mlstm_jax.cli import train

# One process does all that a user does with a small model, in its own folder, and prints what came out.
PROGRAM = """
import contextlib, hashlib, io, json, pathlib, sys
import jax
from mlstm_jax.cli import evaluate, sample, train
import mlstm_jax
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.run import Run
from mlstm_jax.training import checkpoint
from mlstm_jax.cli import heatmap, score

def printed(main, *args, **options):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(*args, **options)
    assert not status, status
    return out.getvalue()

def state(run):
    restored, _ = checkpoint.restore(Run(pathlib.Path(run)), print)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(restored)}
    return [checkpoint.digest(restored), mlstm_jax.load(run).digest, sorted(kinds)]

config = ["--config", sys.argv[1], "--data", "reviews.csv", "--validation-fraction", "0.2", "--sample-every", "0"]
found = {"of others": state("healthy")}
printed(train.run, ["--run-dir", "healthy", "--more-updates", "3"])
printed(train.run, [*config, "--run-dir", "new", "--updates", "7"])
printed(train.run, ["--run-dir", "new", "--more-updates", "3"])
narrow = ["--precision", "bfloat16", "--grad-accumulation", "2", "--remat-every", "8", "--updates", "3"]
printed(train.run, [*config, *narrow, "--run-dir", "narrow"])
for run in ("healthy", "new", "narrow"):
    found[run] = state(run)
run = pathlib.Path("new")
about = json.loads(printed(evaluate.main, run, task="reviews.csv", json=True))
found["evaluation"] = about
clamp = (f"{(about['unit'] + 1) % 16}=1.0@0,free@20",)
held = dict(clamp=clamp, sentiment=2.0, options=SamplingOptions(clamp_prime=True))
for options in (dict(options=SamplingOptions(top_k=5, top_p=0.9)), held):
    found[f"samples {options}"] = printed(sample.main, run, num=3, length=40, json=True, **options)
printed(score.main, run, ("reviews.csv",), out=pathlib.Path("scored.csv"))
found["scores"] = pathlib.Path("scored.csv").read_text()
found["heat map"] = printed(heatmap.main, run, ("I loved it", "I hated it"))
found["bits per byte"] = mlstm_jax.load(run).bits_per_byte(b"I loved it")
print(json.dumps(found))
"""
MODES = {
    "default": {},
    "x64": {"JAX_ENABLE_X64": "1"},
    "strict, debugging": {
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEBUG_NANS": "1",
        "JAX_DEBUG_INFS": "1",
    },
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder of reviews, and of a run that was trained in no mode."""
    folder, rng = tmp_path_factory.mktemp("start"), np.random.default_rng(0)
    words = ("bad", "dull"), ("good", "great")
    rows = [f"I think that number {i} is {rng.choice(words[i % 2])}.,{i % 2}" for i in range(80)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows, ""]))
    settings = "--data reviews.csv --validation-fraction 0.2 --updates 4 --sample-every 0 --run-dir healthy".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.run(["--config", TINY, *settings]) == 0
    return folder


def outcome(start, folder, mode):
    shutil.copytree(start, folder)
    command = [sys.executable, "-c", PROGRAM, TINY]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | MODES[mode]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def default(start, tmp_path_factory):
    return outcome(start, tmp_path_factory.mktemp("default") / "folder", "default")


@pytest.mark.parametrize("mode", ["x64", "strict, debugging"])
def test_every_mode_of_jax_gives_the_same_numbers(start, default, tmp_path, mode):
    assert outcome(start, tmp_path / "folder", mode) == default


def test_whatever_is_kept_has_32_bits(default):
    for run in ("of others", "healthy", "new", "narrow"):
        assert default[run][2] == ["float32", "int32"]
