"""Tests run strict: shapes checked, no silent broadcast of ranks, warnings are errors (pyproject.toml).

A program is compiled once a session: its processes share a cache of jax's, also those that tests start.
"""

import atexit
import gc
import os
import runpy
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in two thirds of the time
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else this is a process of a session
    cache = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # What a killed process has half written, or another one writes just now, is compiled again.
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

pytest.register_assert_rewrite("helpers")
settings.register_profile("unhurried", deadline=None)  # a machine may be busy
settings.load_profile("unhurried")
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere in Python

# Before anything of the package is imported: every annotation becomes a check.
_hook = install_import_hook("mlstm_jax", "conftest.typechecker")

import jax  # noqa: E402

from helpers.programs import ROOT, SHORT, TINY, Ended, write_reviews  # noqa: E402
from mlstm_jax import signals  # noqa: E402
from mlstm_jax.cli import program, train  # noqa: E402

program.listen()  # tests see what the programs show
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The longest files come first: at the end no process has to wait for another one."""
    longest = ("test_sharding.py", "test_train.py", "test_processes.py", "test_modes.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def pytest_collection_finish():
    """What is there before the first test stays: no search for garbage needs to look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose files the examples of a law overwrite."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def golden():
    """The folder of reference values."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A file of 300 made reviews, one a line."""
    return write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.txt")


@pytest.fixture(scope="session")
def whole(reviews, tmp_path_factory):
    """What `helpers.programs.train` trains, on one device and never interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train.run(["--config", TINY, "--data", str(reviews), "--run-dir", str(run_dir), *SHORT]) == 0
    return run_dir


@pytest.fixture
def run_here(capfd, monkeypatch):
    """Runs a program as it stands, but in this process: another one would first import all that this one has.

    The program is a script of the checkout, or `mlstm COMMAND`.
    """

    def run(program, *arguments):
        script, *command = program.split()
        path = "mlstm_jax/__main__.py" if script == "mlstm" else script
        monkeypatch.setattr(sys, "argv", [script, *command, *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in signals.ending()}
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / path), run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Ended(ended.value.code or 0, *capfd.readouterr())

    return run
