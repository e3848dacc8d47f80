"""Is an update here as fast as elsewhere? `python -m benchmarks.quick`: two minutes, and one line that says so.

Ours, plain JAX and PyTorch at 512 and 1024 units, in float32 and bfloat16, on shorter sequences and in fewer rounds
than `benchmarks.train_step`, whose programs these are.
"""

import statistics

import jax
import tyro

from benchmarks.common import console, machine
from benchmarks.train_step import one_width

PEERS = ("plain JAX", "PyTorch")


def main(hidden: tuple[int, ...] = (512, 1024), batch_size: int = 128, seq_length: int = 32, rounds: int = 3) -> None:
    """Time one update in both precisions, ours and others.

    Args:
        hidden: Units of the state, one or more widths.
        batch_size: Sequences trained side by side.
        seq_length: Bytes of every sequence in one update.
        rounds: How often every program is timed.
    """
    jax.config.update("jax_platforms", "cpu")
    console.print(machine())
    verdict = []
    for width in hidden:
        times = one_width(width, batch_size, seq_length, ("float32", "bfloat16"), rounds, True, False, None)
        ratio = lambda other, ours: statistics.median(other / ours)
        for suffix in ("", ", bfloat16"):
            ours = times["ours" + suffix]
            found = [f"{ratio(times[p + suffix], ours):.2f} x {p}" for p in PEERS if p + suffix in times]
            verdict.append(f"{width} units{suffix}: {', '.join(found)}")
        verdict.append(f"bfloat16 {ratio(times['ours'], times['ours, bfloat16']):.2f} x float32")
    console.print(f"speed of an update of ours: {'; '.join(verdict)}")


if __name__ == "__main__":
    tyro.cli(main)
