"""Generate reviews from a trained model: `python sample.py RUN --clamp 2388=1.0`."""

import sys

from mlstm_jax import signals

if __name__ == "__main__":
    signals.leave_at_once()  # while jax is imported
    from mlstm_jax.cli.program import script
    from mlstm_jax.cli.sample import run

    script(lambda: run(sys.argv[1:]))
