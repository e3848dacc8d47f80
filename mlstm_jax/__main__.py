"""The installed command `mlstm`, also as `python -m mlstm_jax`."""

from mlstm_jax import signals


def main() -> None:
    """Run the program that the first argument names."""
    signals.leave_at_once()  # while the rest is imported
    from mlstm_jax.cli import mlstm

    mlstm()


if __name__ == "__main__":
    main()
