"""Tests run strict: shapes checked, no silent broadcast of ranks, warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Before anything of the package is imported: every jaxtyping annotation becomes a check.
_hook = install_import_hook("mlstm_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def golden():
    """The folder of reference values."""
    from pathlib import Path

    return Path(__file__).parent / "golden"
