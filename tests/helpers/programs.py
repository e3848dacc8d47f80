"""Programs in processes of their own: train.py, with as many devices as a test asks for."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlstm_jax.run import Run

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny.py")
WORDS = "a an the good bad film plot actor it was is not very dull great <br /> &amp; café".split()
SHORT = "--batch-size 8 --updates 12 --log-every 1 --eval-every 6 --sample-every 0 --save-every 4".split()


def interrupting(stream, position, number):
    """A stream of batches that sends this process a signal when batch `position` is taken."""

    def interrupted(*args):
        for place, item in enumerate(stream(*args), args[1]):
            if place == position:
                os.kill(os.getpid(), number)
            yield item

    return interrupted


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def write_reviews(path):
    """A file of 300 made reviews, one a line."""
    draw = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(draw.choice(WORDS, 15)) for _ in range(300)), encoding="utf-8")
    return path


def start(command, devices, **more):
    """Start Python with so many devices. It compiles quickly rather than well: what it compiles runs a few times."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COORDINATOR"))}
    ours["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=(out := tempfile.TemporaryFile("w+", encoding="utf-8")),
        stderr=(err := tempfile.TemporaryFile("w+", encoding="utf-8")),
        env=ours | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more,
    )
    return process, out, err


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def train(reviews, run_dir, *arguments, devices=1, at=None, **more):
    """Start train.py on a short run; `at` is a batch at which it sends itself a signal, and the signal."""
    script = [ROOT / "train.py"] if at is None else ["-m", "helpers.signalled_training", *map(int, at)]
    named = ["--config", TINY, "--data", reviews, "--run-dir", run_dir]
    return start([*script, *named, *SHORT, *arguments], devices, **more)


def end(*started, timeout=240):
    """Wait for processes; those that do not end are killed, since jax may have taken SIGTERM over."""
    deadline, ended = time.monotonic() + timeout, []
    try:
        for process, _, _ in started:
            process.wait(max(0, deadline - time.monotonic()))
    finally:
        for process, _, _ in started:
            process.kill()
            process.wait()
    for process, *files in started:
        texts = []
        for file in files:
            with file:
                file.seek(0)
                texts.append(file.read())
        ended.append(Ended(process.returncode, *texts))
    return ended


def two(reviews, run_dir, *arguments, at=(None, None), more=({}, {}), timeout=240):
    """Run by two processes of two devices each; `more` is in the environment of each."""
    port = free_port()
    named = lambda number: ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(number)]
    started = (train(reviews, run_dir, *arguments, *named(n), devices=2, at=at[n], **more[n]) for n in (0, 1))
    return end(*started, timeout=timeout)


def figures(run_dir, name):
    """What metrics.jsonl holds under a name: updates, and values."""
    rows = [(row["update"], row[name]) for row in Run(run_dir).read_metrics() if name in row]
    return [update for update, _ in rows], [value for _, value in rows]


def assert_same_figures(run_dir, whole):
    """Two runs of any number of devices have the same losses and the same held-out figures."""
    for name in ("bits_per_byte", "validation_bits_per_byte", "test_bits_per_byte"):
        (updates, values), (known, expected) = figures(run_dir, name), figures(whole, name)
        assert updates == known and updates, name
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=name)
