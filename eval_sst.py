"""Find the sentiment unit of a trained model: `python eval_sst.py RUN`."""

import sys

from mlstm_jax import signals

if __name__ == "__main__":
    signals.leave_at_once()  # while jax is imported
    from mlstm_jax.cli.evaluate import run
    from mlstm_jax.cli.program import script

    script(lambda: run(sys.argv[1:]))
