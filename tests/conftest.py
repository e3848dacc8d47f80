"""Tests run strict: shapes checked, no silent broadcast of ranks, warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere in Python

# Before anything of the package is imported: every annotation becomes a check.
_hook = install_import_hook("mlstm_jax", "conftest.typechecker")

import jax  # noqa: E402
import pytest  # noqa: E402

from mlstm_jax.cli import program  # noqa: E402

program.listen()  # tests see what the programs show
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose files the examples of a law overwrite."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def golden():
    """The folder of reference values."""
    return Path(__file__).parent / "golden"
