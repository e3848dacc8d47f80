"""A program that fits a probe for minutes in two processes, whatever the number of cores."""

import joblib
import numpy as np

from mlstm_jax.cli import program
from mlstm_jax.sentiment import probe

parallel = joblib.Parallel
joblib.Parallel = lambda jobs, **options: parallel(2, **options)


def main():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 3000)).astype(np.float32), rng.integers(0, 2, 4000)
    probe.fit(x, y, x, y)


if __name__ == "__main__":
    program.script(main)
