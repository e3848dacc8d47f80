"""What bounds an update on a CPU? `python -m benchmarks.products` from the repository's root; see benchmarks/README.md.

The matrix products of one update, each alone, by jax, numpy and PyTorch: an update cannot run faster than its products.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro

from benchmarks.common import console, in_turn, machine, tell
from mlstm_jax.model import cell

try:
    import torch
except ImportError:
    torch = None

WORK, MOST = 3e9, 100  # operations in one measurement, and products at most


def programs(rows: int, inner: int, columns: int, turned: bool) -> tuple[dict[str, Callable], int]:
    """A product [rows, inner] x [inner, columns] by each library, several times, and its operations.

    With `turned` the first matrix is given as its transpose.
    """
    draw = np.random.default_rng(0)
    a = draw.random((inner, rows) if turned else (rows, inner), np.float32)
    b = draw.random((inner, columns), np.float32)
    times = min(MOST, max(1, round(WORK / (2 * rows * inner * columns))))
    straight = lambda a: a.T if turned else a
    compiled = jax.jit(lambda a, b: cell.dot(straight(a), b)).lower(a, b).compile()
    in_jax, in_torch = (jax.device_put(a), jax.device_put(b)), torch and (torch.from_numpy(a), torch.from_numpy(b))
    found = {
        "jax": lambda: jax.block_until_ready([compiled(*in_jax) for _ in range(times)]),
        "numpy": lambda: [straight(a) @ b for _ in range(times)],
    }
    if torch:
        found["PyTorch"] = lambda: [straight(in_torch[0]) @ in_torch[1] for _ in range(times)]
    for run in found.values():
        run()
    return found, times * 2 * rows * inner * columns


def main(
    hidden: int = 512, batch_size: int = 128, seq_length: int = 128, rounds: int = 7, json: Path | None = None
) -> None:
    """Time the products of one update, in GFLOP/s.

    Args:
        hidden: Units of the state.
        batch_size: Sequences trained side by side.
        seq_length: Bytes of every sequence in one update.
        rounds: How often each is timed.
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    size = batch_size * seq_length
    products = {
        "m wh, at every byte": (batch_size, hidden, 4 * hidden, False),
        "h wmh, at every byte": (batch_size, hidden, hidden, False),
        "dz whᵀ, at every byte": (batch_size, 4 * hidden, hidden, False),
        "gradient of wh": (hidden, size, 4 * hidden, True),
        "gradient of wmh": (hidden, size, hidden, True),
        "read-out": (size, hidden, 256, False),
        "its gradient": (hidden, size, 256, True),
        "gradient of h": (size, 256, hidden, False),
    }
    rows = []
    for name, shape in products.items():
        runs, work = programs(*shape)
        times, _ = in_turn(runs, {}, rounds)
        shown = "[{}, {}] x [{}, {}]".format(*shape[:2], *shape[1:3])
        rows.append({"product": name, "shape": shown} | {by: work / took / 1e9 for by, took in times.items()})
        rows[-1]["jax / fastest"] = f"{statistics.median(rows[-1]['jax']) / fastest(rows[-1]):.2f}"
    console.print(f"{hidden} units, {batch_size} sequences x {seq_length} bytes; GFLOP/s, float32")
    tell(json, "products", rows, hidden=hidden, batch_size=batch_size, seq_length=seq_length)


def fastest(row: dict) -> float:
    """The median of the fastest library."""
    return max(statistics.median(value) for value in row.values() if isinstance(value, np.ndarray))


if __name__ == "__main__":
    tyro.cli(main)
