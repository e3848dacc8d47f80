"""Atomic files, JSON checked as it is read, locked folders, the cache folder."""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import UnionType
from typing import IO, Any

from mlstm_jax.errors import Damaged, UserError

LARGEST_JSON = 64 << 20  # bytes of a JSON file of ours; the largest, a manifest of 100,000 shards, has some 40 MB
DEEPEST_JSON = 32  # levels of nesting


LFS = b"version https://git-lfs.github.com/spec/"


class Unwritable(UserError):
    """A file cannot be written: the disk is full, no descriptor is left, the folder is gone or not ours."""


def refuse_pointer(start: bytes, name: str) -> None:
    """Raise UserError where a file begins as what Git LFS leaves in its place until it is fetched."""
    if start.startswith(LFS):
        raise UserError(f"{name} is a Git LFS pointer, not the data; fetch them with: git lfs pull")


def cache_dir() -> Path:
    """Where what can be made again is kept for this user. Raises UserError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlstm_jax"
    except RuntimeError:
        raise UserError("this user has no home folder; name one with HOME, or XDG_CACHE_HOME for the cache") from None


def atomic(path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    """A binary file that takes its place at `path` once it is written whole and on disk, also across a power cut.

    Raises Unwritable where it cannot be.
    """
    return _in_place(path, synced=True)


def unsynced(path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    """As `atomic`, but a power cut may damage it: for what is checked before it is used, or synced later."""
    return _in_place(path, synced=False)


@contextlib.contextmanager
def _in_place(path: Path, synced: bool) -> Iterator[IO[bytes]]:
    # The random part keeps two hosts on one file system apart, whose process numbers may be equal.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if synced:
            sync_folder(path.parent)
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_files(paths: Iterable[Path]) -> None:
    """Write the content of files to disk, many at a time, which is much faster. Raises OSError where that fails."""

    def sync(path: Path) -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(sync, paths):
            pass


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, where the file system has that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path, fields: Mapping[str, type | UnionType] | None = None) -> dict[str, Any]:
    """The object in a JSON file that this program wrote, with at least `fields`, each of its type.

    Raises Damaged for anything else, in one line; OSError for a file that cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(LARGEST_JSON + 1)
    return parse_json(data, str(path), fields)


def parse_json(data: bytes, where: str, fields: Mapping[str, type | UnionType] | None = None) -> dict[str, Any]:
    """The object in bytes of JSON, as `read_json`; `where` they come from begins the error."""
    try:
        if len(data) > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON >> 20} MB")
        value = json.loads(data, parse_int=_integer)
        _check_depth(value)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        for name, kind in (fields or {}).items():
            if name not in value:
                raise ValueError(f"no {name!r} in it")
            is_number = isinstance(value[name], bool) and kind is not bool  # for Python True is an int
            if is_number or not isinstance(value[name], kind):
                raise ValueError(f"{name!r} is not {getattr(kind, '__name__', kind)}")
    except RecursionError:
        raise Damaged(f"{where} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{where} is damaged: {error}") from None
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"the number {digits[:20]}... is too large")
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST_JSON} levels deep")


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object for a JSON file, with a checksum of the rest of it."""
    return {**value, "checksum": _checksum(value)}


def is_sealed(value: Mapping[str, Any]) -> bool:
    """Whether an object still is what `seal` made of it; one without a checksum was written before there were any."""
    return "checksum" not in value or value["checksum"] == _checksum(value)


def _checksum(value: Mapping[str, Any]) -> str:
    rest = {name: part for name, part in value.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def raise_file_limit() -> None:
    """Let this process open as many files as the system grants it; the usual limit is a lower, soft one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process; a UserError, which says `what` is done with it, where another one has it."""
    with open(folder / ".lock", "w") as file:
        lock(file, f"{folder} is being {what}")
        yield


def lock(file: IO[Any], what: str) -> None:
    """Hold a file for this process, until it is closed; a UserError, which says `what` is done, where another has
    it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{what} by another process") from None
    except OSError:
        pass  # a file system without locks
