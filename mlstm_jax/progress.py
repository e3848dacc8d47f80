"""A progress bar with rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def progress(what: str, total: int, show: bool = True, counted: bool = False) -> Iterator[Callable[[float], None]]:
    """A bar with rate and ETA on standard error where that is a terminal; yields `done(bytes)`.

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
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
