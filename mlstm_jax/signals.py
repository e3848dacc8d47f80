"""How a signal ends a program: Ctrl-C, SIGTERM, a terminal that closes, a scheduler's warning before its time limit."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

_WAITING = {"threading", "queue", "selectors", "socket", "ssl", "subprocess", "multiprocessing.connection"}


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
