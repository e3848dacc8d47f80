"""`python -m mlstm_jax COMMAND ...`, the same as `mlstm COMMAND ...`."""

from mlstm_jax.cli import mlstm

if __name__ == "__main__":
    mlstm()
