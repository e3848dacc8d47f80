"""A run's log: the progress line, metrics.jsonl, TensorBoard files."""

import json
import logging
import math
import os
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mlstm_jax import storage
from mlstm_jax.disk import seal
from mlstm_jax.progress import is_quiet
from mlstm_jax.run import Run
from mlstm_jax.signals import mute
from mlstm_jax.text import printable

logger = logging.getLogger(__name__)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Train on in silence where nobody reads any more; rich would end the program."""
        self.quiet = True
        mute()


class Log:
    """The progress of one training run: a live line on a terminal, plain lines elsewhere, two records on disk.

    A record that cannot be written stops nothing, and is reported once.
    """

    def __init__(self, run: Run, update: int, total: int, keep: bool = True):
        """Continue the records of `run` after `update`: what lies beyond is cut off, as it will be done again.

        Without `keep` nothing is recorded: another process does it.
        """
        self.total, self.first, self.begun = total, update, time.monotonic()
        if keep:
            run.cut_metrics(update)
        self.file = open(run.metrics_file if keep else os.devnull, "a", encoding="utf-8")
        self.tensorboard = _tensorboard(run.tensorboard, update) if keep else None
        self.lost = set()  # records that could not be written
        self.console = _Console()
        self.bar = Progress(
            TextColumn("{task.completed:>7,}/{task.total:,}"),
            BarColumn(None),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=is_quiet() or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=update, line="")

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()
        with self._record("metrics.jsonl"):
            self.file.close()
        if self.tensorboard:
            with self._record("tensorboard"):
                self.tensorboard.close()

    @contextmanager
    def _record(self, name):
        """Say once that a record cannot be written. What it lacks is kept, and written with the next line."""
        try:
            yield
        except OSError as error:
            if name not in self.lost:
                self.warn(f"{name} cannot be written now ({error.strerror or error}); training goes on")
            self.lost.add(name)

    def log(self, text: str) -> None:
        """One line for people, above the progress line; none where it is quiet."""
        if not is_quiet():
            self.warn(text)

    def warn(self, text: str) -> None:
        """One line that is always shown."""
        self.console.print(printable(storage.shown(text)), markup=False, highlight=False, soft_wrap=True)

    def tick(self, update: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=update)

    def metrics(self, update: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl with its checksum, null where a value is not finite, and the same to TensorBoard."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._record("metrics.jsonl"):
            self.file.write(json.dumps(seal({"update": update, **finite})) + "\n")
            self.file.flush()
        if self.tensorboard:
            with self._record("tensorboard"):
                self.tensorboard.add(values, update)

    def training(self, update: int, values: dict[str, float], whole: int) -> None:
        """Metrics of the last updates, also as the progress line, which says where they average fewer than `whole`.

        Those before a stop were lost with it, and skipped ones have no loss.
        """
        elapsed = time.monotonic() - self.begun
        self.metrics(update, values | {"elapsed": round(elapsed, 2)})
        line = (
            f"{values['bits_per_byte']:.3f} bits/byte  gradient {values['gradient_norm']:.3f}  "
            f"{values['bytes_per_second'] / 1000:.1f} kB/s"
        )
        if values["bytes_per_second_per_chip"] < values["bytes_per_second"]:
            line += f" ({values['bytes_per_second_per_chip'] / 1000:.1f} a chip)"
        if "model_flops_utilization" in values:
            line += f"  {values['model_flops_utilization']:.0%} of peak"
        if values["averaged"] < whole:
            line += f"  (mean of {values['averaged']})"
        self.bar.update(self.task, completed=update, line=line)
        if not self.console.is_terminal:
            left = elapsed / (update - self.first) * (self.total - update)
            self.log(f"{update:>7,}/{self.total:,}  {line}  elapsed {clock(elapsed)}  left {clock(left)}")


class _TensorBoard:
    """An event file, written at once: tensorboardX's own writer is a thread, whose errors nobody could catch."""

    def __init__(self, folder: Path, update: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        self.event, self.scalar = Event, scalar
        folder.mkdir(exist_ok=True)
        self.file = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)  # what lies beyond this step will be done again
        self.file.write_event(Event(wall_time=time.time(), step=update + 1, session_log=start))
        self.file.flush()

    def add(self, values: dict[str, float], update: int) -> None:
        """Points of an update, on disk when this returns."""
        for name, value in values.items():
            summary = self.scalar(name, value)
            self.file.write_event(self.event(wall_time=time.time(), step=update, summary=summary))
        self.file.flush()

    def close(self) -> None:
        """Write what is left."""
        self.file.close()


def _tensorboard(folder, update):
    try:
        return _TensorBoard(folder, update)
    except ImportError:
        logger.warning("tensorboardX is not installed: no TensorBoard files (pip install tensorboardX)")
        return None


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
