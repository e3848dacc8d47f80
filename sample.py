"""Write with a trained model, units held where asked.

python sample.py                                     # the run with the newest checkpoint
python sample.py runs/quickstart --prime "This movie " --clamp 12=1.0
python sample.py runs/quickstart --sentiment +2      # after eval_sst.py has found the unit
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mlstm_jax.config import require, script
from mlstm_jax.text import printable


def main(
    run: Path | None = None,
    /,
    *,
    prime: str = "",
    num: int = 4,
    length: int = 300,
    temperature: float = 0.7,
    seed: int = 0,
    clamp: Annotated[tuple[str, ...], tyro.conf.arg(metavar="UNIT=VALUE"), tyro.conf.UseAppendAction] = (),
    sentiment: float | None = None,
    task: Literal["sst", "imdb", "rotten_tomatoes"] | None = None,
) -> None:
    """Write reviews, a blank line between them.

    Args:
        run: A run folder, or another program's weights; by default the run with the newest checkpoint.
        prime: What every sample begins with.
        num: Samples, all in one batch.
        length: Bytes of every sample after the prime.
        temperature: Below 1 is more cautious; 0 always takes the likeliest byte.
        seed: The same seed gives the same texts, each the same alone and in a batch (promised for float32 on CPU).
        clamp: Hold the cell state of a unit at a value while writing, as in 2388=1.0; repeat it for several units.
        sentiment: Hold the unit that eval_sst.py found, this many deviations from neutral; above 0 is positive.
        task: The task whose unit --sentiment holds; by default the one evaluated last.
    """
    held = {}
    for pair in clamp:
        unit, value = parse_clamp(pair)
        require(unit not in held, f"unit {unit} is held twice")
        held[unit] = value

    from mlstm_jax import lm, units  # late, because they import jax: --help stays quick

    model = lm.load(run)
    if sentiment is not None:
        record = units.load(model.record_dirs, model.digest, task)
        require(record.unit not in held, f"--sentiment holds unit {record.unit}, and so does --clamp")
        held[record.unit] = units.clamp_value(record, sentiment)
        print(f"holding unit {record.unit} at {held[record.unit]:.4g}", file=sys.stderr)
    texts = model.generate(prime, num, length, temperature, held, seed, show_progress=True)
    if sys.stdout.isatty():
        texts = map(printable, texts)
    print("\n\n".join(texts))


def parse_clamp(pair: str) -> tuple[int, float]:
    """UNIT=VALUE as its two numbers. Raises UserError for anything else."""
    unit, _, value = pair.partition("=")
    try:
        return int(unit), float(value)
    except ValueError:
        require(False, f"--clamp takes UNIT=VALUE, as in 2388=1.0, not {pair!r}")


if __name__ == "__main__":
    script(lambda: tyro.cli(main))
