"""Accidents on purpose: killed processes, damaged files, full disks, few descriptors; and a count of what came of each.

`python -m pytest tests/faults -m slow -n 0 -s` runs them all and prints a line of figures for every kind.
"""

import contextlib
import gc
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helpers.programs import ROOT, Ended
from mlstm_jax.errors import UserError
from mlstm_jax.training import checkpoint

PROGRAMS = {
    "train": [ROOT / "train.py"],
    "eval_sst": [ROOT / "eval_sst.py"],
    "sample": [ROOT / "sample.py"],
    "score": ["-m", "mlstm_jax", "score"],
    "heatmap": ["-m", "mlstm_jax", "heatmap"],
    "convert": ["-m", "mlstm_jax", "convert"],
    "corpus": ["-m", "mlstm_jax", "corpus"],
}


class Figures:
    """What came of every accident of one kind: outcomes and how many there were of each."""

    def __init__(self, what: str):
        self.what, self.outcomes, self.failures, self.begun = what, Counter(), [], time.monotonic()

    def count(self, outcome: str) -> None:
        """One that was withstood."""
        self.outcomes[outcome] += 1

    def fail(self, outcome: str, about: str) -> None:
        """One that was not."""
        self.outcomes[outcome] += 1
        self.failures.append(f"{outcome}: {about}")

    def report(self) -> None:
        """Print one line, and fail the test where anything was not withstood."""
        printed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        seconds = time.monotonic() - self.begun
        print(
            f"\n{self.what}: {self.outcomes.total()} in {seconds:.0f} s: {printed}; {len(self.failures)} not withstood"
        )
        assert not self.failures, "\n\n".join([self.what, *self.failures])


# Processes


class Running(NamedTuple):
    """A process, the leader of a group of its own, and where its output goes."""

    process: subprocess.Popen
    out: Any
    err: Any


def start(program: str, *arguments: Any, before: tuple = (), **environment: Any) -> Running:
    """Start one of `PROGRAMS` (or Python code, where the name is not among them), behind the command `before`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COORDINATOR"))}
    ours |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    command = [*before, sys.executable, *PROGRAMS.get(program, ["-c", program]), *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env=ours | {name: str(value) for name, value in environment.items()},
        start_new_session=True,
    )
    return Running(process, out, err)


def end(running: Running, timeout: float = 240) -> Ended:
    """Wait for a process; one that does not end is killed, and the test fails."""
    try:
        running.process.wait(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    texts = []
    for file in (running.out, running.err):
        with file:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(running.process.returncode, *texts)


def run(program: str, *arguments: Any, before: tuple = (), **environment: Any) -> Ended:
    """Run one of `PROGRAMS` to its end."""
    return end(start(program, *arguments, before=before, **environment))


def signalled(running: Running, number: int, after: float, ready: Callable[[], bool] = lambda: True) -> Ended:
    """Signal a process's whole group, as a terminal does, so many seconds after `ready` holds; wait for its end."""
    while running.process.poll() is None and not ready():
        time.sleep(0.005)
    deadline = time.monotonic() + after
    while running.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if running.process.poll() is None:
        os.killpg(running.process.pid, number)
    return end(running)


def left_behind(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(folder.name))
    return found


def is_traceback(ended: Ended) -> bool:
    """Whether a program crashed, or spoke to its user in tracebacks."""
    crashed = ended.status < 0 and ended.status != -signal.SIGKILL
    return crashed or any(mark in ended.out + ended.err for mark in ("Traceback (most", "Fatal Python", "*** SIG"))


def tail(ended: Ended) -> str:
    """The end of a program, for a failure's text."""
    return f"status {ended.status}\n{ended.out[-500:]}\n{ended.err[-1500:]}"


# Files


def files(folder: Path) -> list[Path]:
    """All files in a folder that hold something."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path: Path, draw) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw) -> None:
    """Leave only the beginning of a file, or nothing."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def fill(path: Path, draw) -> None:
    """Zeros from some byte to the end, as a power cut leaves them."""
    data = path.read_bytes()
    keep = draw.randrange(len(data))
    path.write_bytes(data[:keep] + bytes(len(data) - keep))


def copied(source: Path, target: Path) -> Path:
    """A copy of a file or folder, times kept, in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target))


def judge(figures: Figures, about: str, function: Callable[[], Any], right: Callable[[Any, str], bool]) -> None:
    """Count what a reader makes of a damaged file: it refuses in one line, or what it gives is `right`.

    `right` gets what is returned and what was printed. Libraries' loggers and threads may print no traceback, either.
    """
    said = io.StringIO()
    log = logging.StreamHandler(said)
    logging.getLogger().addHandler(log)
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = lambda found_lines: said.write(
        f"Traceback (most recent call last): {found_lines.exc_value!r}\n"
    )
    sys.excepthook = lambda *found_lines: said.write(f"Traceback (most recent call last): {found_lines[1]!r}\n")
    checkpoint._hush.cache_clear()  # what the program filters, it filters from these
    result = refusal = None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                result = function()
            except Exception as error:
                refusal = error
                error.__traceback__ = None
            gc.collect()  # what is printed when an object goes
    finally:
        logging.getLogger().removeHandler(log)
        sys.unraisablehook, sys.excepthook = hooks
    found_lines = said.getvalue()
    if "Traceback (most recent" in found_lines:
        figures.fail("traceback printed", f"{about}: {found_lines[:1000]}")
    elif isinstance(refusal, UserError | OSError):
        one = "\n" not in str(refusal)
        figures.count("refused in one line") if one else figures.fail("refused in many lines", f"{about}: {refusal}")
    elif refusal is not None:
        figures.fail("traceback", f"{about}: {type(refusal).__name__}: {refusal}")
    elif right(result, found_lines):
        figures.count("right, with a word" if found_lines else "right")
    else:
        figures.fail("silently wrong", f"{about}: {found_lines[-300:]}")


# Limits


def few_descriptors(count: int) -> tuple:
    """What to put before a command that may have so many files open."""
    return ("sh", "-c", 'ulimit -n "$0" && exec "$@"', count)


class Disk(NamedTuple):
    """A small disk: where programs behind `before` see it, and where this process does."""

    folder: Path
    before: tuple
    seen: Path

    def resize(self, size: str) -> None:
        """Make it larger."""
        subprocess.run([*self.before, "mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


def can_mount() -> bool:
    """Whether this user may make a small disk."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("nsenter") and shutil.which("unshare"))
        and not subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    )


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Disk]:
    """A file system of `size` (as "64k") in memory, at an empty folder, that only programs behind `before` see."""
    script = 'mount -t tmpfs -o size="$0" none "$1" && echo ready && exec sleep 3600'
    command = ["unshare", "-rm", "sh", "-c", script, size, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"ready\n"
        enter = ("nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials")
        yield Disk(folder, enter, Path(f"/proc/{holder.pid}/root{folder}"))
    finally:
        holder.kill()
        holder.communicate()
