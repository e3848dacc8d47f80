"""How fast does it write? `python -m benchmarks.sample` from the repository's root; see benchmarks/README.md.

Random weights. For every byte all weights are read once: one sample alone is bound by that, many by the products.
"""

import statistics
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from benchmarks.common import (
    compilations,
    console,
    copying,
    in_turn,
    machine,
    matmul,
    peak_memory,
    reading,
    spread,
    tell,
)
from mlstm_jax.config import ModelConfig
from mlstm_jax.inference import generate
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model import parameters
from mlstm_jax.model.cell import Held


def main(
    hidden: int = 4096,
    batch_size: tuple[int, ...] = (1, 16, 64),
    length: int = 64,
    rounds: int = 5,
    json: Path | None = None,
) -> None:
    """Time sampling, in turn with the machine's reading, copying and matrix products.

    Args:
        hidden: Units of the state.
        batch_size: Samples side by side, one or more numbers.
        length: Bytes of each sample.
        rounds: How often each is timed.
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    weights = jax.jit(parameters.prepare_to_read)(parameters.init(ModelConfig(hidden=hidden), seed=0))
    write = lambda num, length, clamp=None, **options: list(
        generate.stream(weights, b"\n ", num, length, clamp, SamplingOptions(**options))
    )
    for num in batch_size:
        write(num, length)
    held = Held(units=jnp.ones(hidden, bool), values=jnp.ones(hidden))
    with compilations() as compiled:
        write(batch_size[0], length // 2 + 1, held, temperature=0.1, seed=3)
        write(batch_size[0], length + 1, temperature=0.0, top_k=3, top_p=0.5)
    memory = peak_memory()
    runs = {num: partial(write, num, length) for num in batch_size}
    times, rates = in_turn(runs, {"matmul": matmul(), "read": reading(hidden), "copy": copying()}, rounds)

    numbers = 5 * hidden**2 + 256 * hidden  # of the weights that every byte needs
    rows = [
        {
            "samples": num,
            "s": took,
            "bytes/s": round(num * length / statistics.median(took), 1),
            "ms a byte": 1000 * took / length,
            "of reading": 4 * numbers * length / took / rates["read"],
            "of matmul": 2 * numbers * num * length / took / rates["matmul"],
        }
        for num, took in times.items()
    ]
    read, copy, product = (spread(rates[name] / 1e9) for name in ("read", "copy", "matmul"))
    console.print(
        f"{hidden} units, {length} bytes a sample, weights of {4 * numbers / 1e9:.3f} GB; read {read} GB/s, "
        f"copy {copy} GB/s, matmul {product} GFLOP/s\npeak memory {memory:.2f} GB; compiled again for another "
        f"length, temperature, clamp, seed, limit: {len(compiled)} times"
    )
    tell(json, "sample", rows, hidden=hidden, length=length, recompiled=len(compiled), memory=memory, **rates)


if __name__ == "__main__":
    tyro.cli(main)
