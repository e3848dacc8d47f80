"""A progress bar with rate and time left."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


def is_quiet() -> bool:
    """Whether only warnings and results are shown: the package's logger has been set so."""
    return logging.getLogger("mlstm_jax").level >= logging.WARNING


@contextmanager
def progress(what: str, total: int, show: bool = True, counted: bool = False) -> Iterator[Callable[[float], None]]:
    """A bar with rate and ETA on standard error where that is a terminal and not quiet; yields `done(bytes)`.

    What is `counted` has no bytes: the bar shows how many of `total` are done.
    """
    columns = (
        "{task.description}",
        BarColumn(),
        "{task.percentage:>3.0f}%",
        MofNCompleteColumn() if counted else TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = is_quiet() or not (show and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
