"""Signals delayed where they would do harm, and output whose reader has gone."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def undisturbed() -> Iterator[None]:
    """What a signal asks for is done at the end, where an exception in the midst of it would do harm.

    Processes that are started inherit the mask: a signal is for the program, that then ends them all (with SIGTERM, so
    that this is not masked). It would not do here, where other threads take it and have it handled in this one.
    """
    if threading.current_thread() is not threading.main_thread():  # there no signal is handled
        yield
        return
    numbers, asked = ending(), []
    handlers = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*numbers} - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for number in asked[:1]:
            signal.raise_signal(number)


def mute(descriptor: int | None = None) -> None:
    """Send what is still printed, on standard output or this descriptor, nowhere: whoever read it has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno() if descriptor is None else descriptor)


def mute_what_is_gone() -> None:
    """Mute standard output and error where nothing can be written any more, as on a terminal that was closed."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            mute(descriptor)


_WAITING = {"threading", "queue", "selectors", "socket", "ssl", "subprocess", "multiprocessing.connection"}
_WAITING |= {"joblib.parallel"}  # it ends its processes then


class Interrupted(KeyboardInterrupt):
    """A signal has asked the program to end."""


def ending() -> list[signal.Signals]:
    """The signals that end a program. SIGHUP is none of them under nohup, which has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2] + [signal.SIGHUP] * (not ignored)


def leave_at_once() -> None:
    """From now on a signal ends the program on the spot: before there is anything to close, and when all is closed.

    A program's first line, since an exception in the midst of an import is a traceback or a crash.
    """
    for number in ending():
        signal.signal(number, lambda number, _: leave(number))


def ignore() -> None:
    """From now on no signal ends the program: its work is done, and only Python itself is left to end."""
    for number in ending():
        signal.signal(number, signal.SIG_IGN)


def leave(number: int) -> None:
    """End with the status of a signal, and with one line where it was Ctrl-C.

    Without Python's own end, which can crash while the threads of a compiled program still run.
    """
    with suppress(OSError, ValueError):  # whoever read it has gone
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        if number == signal.SIGINT:
            print("interrupted", file=sys.stderr)
        sys.stderr.flush()
    os._exit(128 + number)


class Asked:
    """Raises Interrupted, once, at a signal: at a line of our own code, where an exception does no harm.

    In the midst of an import or of a compiled call it may crash, and in a destructor it is lost. Where it is lost all
    the same, `number` has the signal. A second Ctrl-C or SIGTERM ends the program as if there were no handler.
    """

    def __init__(self):
        self.number = 0
        self.raised = False

    def watch(self) -> None:
        """Wait for a signal."""
        for number in ending():
            signal.signal(number, self._ask)

    def done(self) -> None:
        """Raise no more."""
        self.raised = True
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        leave_at_once()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if not self.number:
            self.number = number
            signal.signal(signal.SIGALRM, lambda _, frame: self._look(frame))
            signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
            self._look(frame)

    def _look(self, frame: FrameType | None) -> None:
        """Raise here where that does no harm, else at the next line or return of our code that is running."""
        if self.raised or frame is None:
            return
        if _is_ours(frame) or frame.f_globals.get("__name__") in _WAITING:
            self._raise()
        while frame and not _is_ours(frame):
            frame = frame.f_back
        if frame:
            frame.f_trace = self._raise
            sys.settrace(lambda *_: None)

    def _raise(self, *_) -> None:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not self.raised:
            self.raised = True
            raise Interrupted


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name == "__main__" or name.partition(".")[0] == "mlstm_jax"
