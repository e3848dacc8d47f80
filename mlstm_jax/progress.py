"""Progress: a bar with rate and time left on a terminal, lines of words elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)

SECONDS = 10.0  # from the start to the first line of words, and at least from one line to the next


def is_quiet() -> bool:
    """Whether only warnings and results are shown: the package's logger has been set so."""
    return logging.getLogger("mlstm_jax").level >= logging.WARNING


@contextmanager
def progress(what: str, total: int, show: bool = True, counted: bool = False) -> Iterator[Callable[[float], None]]:
    """A bar with rate and ETA on standard error where that is a terminal and not quiet; yields `done(bytes)`.

    Where it is no terminal, lines are logged instead, ever fewer as time goes by. What is `counted` has no bytes: how
    many of `total` are done is shown.
    """
    columns = (
        "{task.description}",
        BarColumn(),
        "{task.percentage:>3.0f}%",
        MofNCompleteColumn() if counted else TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if show and not console.is_terminal:
        with _in_words(what, total, counted) as done:
            yield done
        return
    with Progress(*columns, console=console, transient=True, disable=is_quiet() or not show) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _in_words(what: str, total: int, counted: bool) -> Iterator[Callable[[float], None]]:
    """Lines that say how far it is. A thread logs them: one step may take minutes."""
    so_far, start, ended = 0.0, time.monotonic(), Event()

    def done(count: float) -> None:
        nonlocal so_far
        so_far += count

    def speak() -> None:
        # A tenth more time between lines: ten in the first 100 seconds, some fifty more in the next three hours.
        while not ended.wait(max(SECONDS, (time.monotonic() - start) / 10)):
            with suppress(OSError, ValueError):  # whoever read it has gone, which the program itself will notice
                logger.info(f"{what}: {_words(so_far, total, counted, time.monotonic() - start)}")

    speaker = Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield done
    finally:
        ended.set()
        speaker.join()


def _words(done: float, total: int, counted: bool, seconds: float) -> str:
    if counted and total == 1:  # a step that cannot say how far it is
        return f"{_time(seconds)} so far"
    share = done / total if total else 0.0
    far = f"{done:,.0f} of {total:,}" if counted else f"{share:.0%}"
    left = f", about {_time(seconds / share - seconds)} left" if 0 < share < 1 else ""
    return f"{far} after {_time(seconds)}{left}"


def _time(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{hours:.1f} h"
