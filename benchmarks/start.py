"""How long until something happens, and does memory stay? `python -m benchmarks.start` from the repository's root.

Every program is a process of its own, as a user starts it.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from benchmarks.common import console, machine, tell
from mlstm_jax.run import Run

ROOT = Path(__file__).parent.parent


def python(*args: str | Path) -> subprocess.CompletedProcess:
    """Run Python in the repository's root, and wait for it."""
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, check=True)


def took(*args: str | Path) -> float:
    """Seconds of such a run."""
    start = time.perf_counter()
    python(*args)
    return time.perf_counter() - start


def first_update(run: Path) -> tuple[float, float]:
    """Seconds from the start of train.py to the end of its first update at the quickstart's size, and of the update."""
    command = [sys.executable, "-u", "train.py", "--run-dir", str(run)]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as training:
        for line in training.stdout:
            if update := re.search(r"the first update took ([\d.]+) seconds", line):
                training.kill()
                return time.perf_counter() - start, float(update[1])
    raise SystemExit(f"train.py ended before its first update; try it: {' '.join(command)}")


def resident(process: int) -> float:
    """Memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6


def memory(run: Path, updates: int, settings: Sequence[str]) -> dict[int, float]:
    """MB of a small training process, by the update that it has logged."""
    command = [sys.executable, "train.py", "--run-dir", str(run), "--updates", str(updates), *settings]
    found = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None:
            done = [row["update"] for row in Run(run).read_metrics()] if (run / "metrics.jsonl").exists() else []
            if done and done[-1] < updates:  # the end, which scores and draws, is another matter
                found.setdefault(done[-1], resident(training.pid))
            time.sleep(0.1)
    return found


def main(updates: int = 2000, rounds: int = 5, first: bool = True, json: Path | None = None) -> None:
    """Time the first steps, and watch the memory of a small run.

    Args:
        updates: Length of the small run.
        rounds: How often the short ones are timed.
        first: Time the first update of the quickstart, too.
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        settings = "--model.hidden 64 --batch-size 32 --seq-length 64 --log-every 20 --eval-bytes 10000".split()
        seen = memory(small, updates, settings + [f"--{what}-every={updates}" for what in ("eval", "sample", "save")])
        load = f"import mlstm_jax; mlstm_jax.load({str(small)!r})"
        rows = [
            {"what": "train.py --help", "s": np.array([took("train.py", "--help") for _ in range(rounds)])},
            {"what": "import mlstm_jax; mlstm_jax.load(...)", "s": np.array([took("-c", load) for _ in range(rounds)])},
        ]
        if first:
            until, update = np.array([first_update(Path(folder) / str(i)) for i in range(rounds)]).T
            rows.append({"what": "train.py until its first update is done, 256 units", "s": until})
            rows.append({"what": "    of these, the update and its compilation", "s": update})
    tell(json, "start", rows)
    early, late = min(seen, key=lambda update: abs(update - 100)), max(seen)
    console.print(f"memory of a run of 64 units: {seen[early]:.0f} MB at update {early}, {seen[late]:.0f} at {late:,}")


if __name__ == "__main__":
    tyro.cli(main)
