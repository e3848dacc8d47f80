"""Train an mLSTM byte by byte: `python train.py --config configs/amazon.py`. See --help for every field."""

import sys

from mlstm_jax import signals

if __name__ == "__main__":
    signals.leave_at_once()  # while jax is imported
    from mlstm_jax.cli.program import script
    from mlstm_jax.cli.train import run

    script(lambda: run(sys.argv[1:]))
