"""Files that appear whole or not at all, folders that one process has, and where a user's cache is."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mlstm_jax.config import UserError


def cache_dir() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlstm_jax"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its place at `path` once it is written whole. Raises UserError where it cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process; a UserError, which says `what` is done with it, where another one has it."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being {what} by another process") from None
        except OSError:
            pass  # a file system without locks
        yield
