"""An output that is complete or absent, and that a killed program goes on with: the same command and --resume."""

import contextlib
import glob
import hashlib
import logging
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import IO, Any, NamedTuple

from mlstm_jax import disk
from mlstm_jax.disk import atomic, is_sealed, read_json, seal, sync_folder
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.signals import mute
from mlstm_jax.text import printable, to_bytes, to_text

logger = logging.getLogger(__name__)

PIECE = 1 << 20  # bytes that are read at a time
GO_ON = "the same command with --resume goes on"


class Sink(NamedTuple):
    """Where groups of rows go."""

    name: str
    groups: int
    """Groups that are there already, of a program that was killed."""
    write: Callable[[bytes], Any]
    """Writes a whole group."""
    finish: Callable[[], None]
    """Puts the output in its place, when all is written."""


def require_free(out: Path, resume: bool) -> None:
    """Raise UserError where something lies at OUT, or is half made, unless that is to go on."""
    if not out.parent.is_dir():
        raise UserError(f"no folder {out.parent}; make it first, or name another file with --out")
    part, _, done = _parts(out)
    exists = os.path.lexists(out) and not (resume and done.exists())
    if exists:
        raise UserError(f"{out} exists; name another file with --out, or move it away")
    begun = f"{part} is there, of a run that was stopped; go on with --resume, or remove it"
    if not resume and os.path.lexists(part):
        raise UserError(begun)


def _parts(out: Path) -> tuple[Path, Path, Path]:
    """What is written, what is known of it meanwhile, and when it is done; `sources` finds none of them in a folder."""
    part = out.with_name(f"{out.name}.part")
    return part, part.with_name(f"{part.name}.state"), out.with_name(f".{out.name}.done")


class _Written:
    """A file that grows by groups; its state says how much of it is whole."""

    def __init__(self, out: Path, file: IO[bytes], about: dict[str, Any]):
        self.out, self.file, self.about = out, file, about
        self.part, self.state, self.done = _parts(out)
        self.groups, size, self.digest = _whole(file, self.part, self.state, about)
        file.truncate(size)
        file.seek(size)
        self._store()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.groups += 1
        self._store()

    def finish(self) -> None:
        self._sync()
        if os.path.lexists(self.out):
            raise UserError(f"{self.out} has appeared meanwhile; all that was written is in {self.part}")
        with atomic(self.done) as stored:
            stored.write(self._known())
        os.replace(self.part, self.out)
        sync_folder(self.out.parent)
        self.state.unlink(missing_ok=True)

    def _store(self) -> None:
        self._sync()  # before the state that refers to it
        with atomic(self.state) as stored:
            stored.write(self._known(groups=self.groups))

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def _known(self, **more: int) -> bytes:
        written = {"bytes": self.file.tell(), "sha256": self.digest.hexdigest()}
        return dumps(seal(self.about | written | more)).encode()


@contextlib.contextmanager
def writing(out: Path | None, about: dict[str, Any], resume: bool) -> Iterator[Sink]:
    """Standard output for None, else OUT.part, which becomes OUT when all is done; beside it, how much is whole.

    Raises UserError where that cannot be, and for an OUT.part that was begun with something else than `about`.
    """
    if out is None:
        yield from _standard_output()
        return
    part, state, done = _parts(out)
    with _reported(part, state), open(part, "r+b" if resume and part.exists() else "x+b") as file:
        disk.lock(file, f"{part} is being written")
        for name in (state.name, done.name):
            for left in out.parent.glob(f".{glob.escape(name)}.*"):  # by one that was killed
                left.unlink()
        written = _Written(out, file, about)
        try:
            yield Sink(str(part), written.groups, written.write, written.finish)
        except BaseException as error:
            if not written.groups:  # there is nothing to keep
                part.unlink()
                state.unlink(missing_ok=True)
            elif isinstance(error, KeyboardInterrupt):
                logger.warning(f"what is done is kept in {part}: {GO_ON}")
            raise


def _standard_output() -> Iterator[Sink]:
    stream = sys.stdout.buffer
    safe = lambda data: to_bytes(printable(to_text(data).replace("\r\n", "\n")))

    def write(data: bytes) -> None:
        stream.write(safe(data) if sys.stdout.isatty() else data)
        stream.flush()

    try:
        yield Sink("what was written", 0, write, lambda: None)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute()
        raise UserError(f"cannot write to standard output: {error.strerror or error}") from None


@contextlib.contextmanager
def _reported(part: Path, state: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise UserError(f"{part} is being written by another process") from None
    except OSError as error:
        kept = f"; what is done is kept: {GO_ON}" if state.exists() else ""
        raise UserError(f"cannot write {part}: {error.strerror or error}{kept}") from None


def _whole(file: IO[bytes], part: Path, state: Path, about: dict[str, Any]) -> tuple[int, int, Any]:
    """Groups that are whole, their bytes and SHA-256. Raises UserError unless they are of a run like this."""
    size, digest = part.stat().st_size, hashlib.sha256()
    if size == 0:
        return 0, 0, digest
    start_again = f"remove {part} and start again"
    try:
        stored = read_json(state, {"groups": int, "bytes": int})
    except (Damaged, FileNotFoundError):
        stored = {"groups": -1, "bytes": 0}
    count, finished = stored["groups"], stored["bytes"]
    whole = is_sealed(stored) and count >= 0 and 0 <= finished <= size
    if not whole:
        raise UserError(f"{state} is missing or damaged; {start_again}")
    if differs := _difference(stored, about):
        raise UserError(f"{part} was begun {differs}; give the same again, or {start_again}")
    for start in range(0, finished, PIECE):
        digest.update(file.read(min(PIECE, finished - start)))
    same = stored.get("sha256", digest.hexdigest()) == digest.hexdigest()  # version 0.1 kept none
    if not same:
        raise UserError(f"{part} is not as it was written; {start_again}")
    return count, finished, digest


def require_finished(out: Path, about: dict[str, Any]) -> None:
    """Raise UserError unless a file is what a run like this has finished."""
    done, known = _parts(out)[2], {"bytes": int, "sha256": str, "checksum": str}
    otherwise = "name another file with --out, or move it away"
    try:
        stored = read_json(done, known)
    except (Damaged, FileNotFoundError):
        stored = None
    if stored is None or not is_sealed(stored):
        raise UserError(f"{out} exists; {otherwise}")
    if differs := _difference(stored, about):
        raise UserError(f"{out} exists, and was made {differs}; {otherwise}")
    with open(out, "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == stored["sha256"]
    if not same:
        raise UserError(f"{out} exists, and is not as it was written; {otherwise}")


def _difference(stored: dict[str, Any], about: dict[str, Any]) -> str | None:
    """The first thing in which another run differs from this one, with both values."""
    for name, now in about.items():
        if (then := stored.get(name)) != now:
            return f"with another {name}: {reprlib.repr(then)}, now {reprlib.repr(now)}"
    return None
