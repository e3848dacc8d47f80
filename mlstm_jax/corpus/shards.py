"""A corpus folder: parts of framed reviews as raw bytes, and a manifest that describes them."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple, overload

import numpy as np

from mlstm_jax import storage
from mlstm_jax.corpus.batches import Bytes
from mlstm_jax.disk import is_sealed, read_json
from mlstm_jax.errors import Damaged, UserError

FORMAT = 1  # of the manifest and the files it speaks of


class Part(NamedTuple):
    """A shard, or the validation or test reviews: its name, what is in it, and the SHA-256 of its bytes."""

    name: str
    reviews: int
    bytes: int
    sha256: str


def names(shards: int) -> list[str]:
    """The names of all parts, in their order."""
    return [f"train-{n:05}" for n in range(shards)] + ["validation", "test"]


class Mapped(Sequence[Bytes]):
    """The bytes of parts, each mapped into memory when it is asked for.

    What is mapped is an open file, of which a process may have fewer than a corpus has shards.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]):
        self._folder, self._parts = folder, parts
        self._map = lru_cache(2)(lambda number: np.memmap(folder / f"{parts[number].name}.bin", np.uint8, "r"))

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> Bytes: ...
    @overload
    def __getitem__(self, number: slice) -> "Mapped": ...
    def __getitem__(self, number: int | slice) -> "Bytes | Mapped":
        if isinstance(number, slice):
            return Mapped(self._folder, self._parts[number])
        return self._map(range(len(self))[number])


class Fetched(Sequence[Bytes]):
    """The bytes of parts in a bucket, each fetched into a folder of this machine before it is asked for.

    The folder holds the part that is used, the one before it and the next one, which comes while the first is used.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], near: Path):
        self._folder, self._parts, self._near = folder, parts, near
        self._pool, self._coming = ThreadPoolExecutor(1), {}
        self._map = lru_cache(2)(lambda number: np.memmap(self._here(number), np.uint8, "r"))

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> Bytes: ...
    @overload
    def __getitem__(self, number: slice) -> "Fetched": ...
    def __getitem__(self, number: int | slice) -> "Bytes | Fetched":
        if isinstance(number, slice):
            return Fetched(self._folder, self._parts[number], self._near)
        return self._map(range(len(self))[number])

    def _file(self, number: int) -> Path:
        return self._near / f"{self._parts[number].name}.bin"

    def _here(self, number: int) -> Path:
        if not self._file(number).is_file():
            self._get(number)
        return self._file(number)

    def fetch(self, number: int) -> None:
        """Have a part here, whole and verified, and begin to fetch the next one. Raises UserError where it differs."""
        coming = self._coming.pop(number, None)
        coming.result() if coming else self._get(number)
        following = (number + 1) % len(self)
        kept = {self._file(each).name for each in (number - 1, number, following)}
        for file in self._near.glob("*.bin"):
            if file.name not in kept:
                file.unlink(missing_ok=True)
        if following not in self._coming:
            self._coming = {following: self._pool.submit(self._get, following)}

    def _get(self, number: int) -> None:
        part, file = self._parts[number], self._file(number)
        if _is_whole(file, part):
            return
        try:
            storage.get(self._folder / file.name, file)
        except FileNotFoundError:
            raise UserError(f"{self._folder / file.name} is missing; make the corpus again") from None
        if not _is_whole(file, part):
            file.unlink(missing_ok=True)
            raise UserError(f"{self._folder / file.name} is not as it was written: its SHA-256 differs")


def _is_whole(file: Path, part: Part) -> bool:
    try:
        return file.stat().st_size == part.bytes and digest(file) == part.sha256
    except FileNotFoundError:
        return False


class Digested:
    """A binary file that is being written, and the SHA-256 of all that was."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sha = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write and count in."""
        self._sha.update(data)
        return self._file.write(data)

    def digest(self) -> str:
        """The SHA-256 so far, in hexadecimal."""
        return self._sha.hexdigest()


class Manifest(NamedTuple):
    """What a manifest says of the files beside it: the parts, and the SHA-256 of all others by their name."""

    parts: list[Part]
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder; raises UserError where there is none, Damaged where it is not as written."""
    path = folder / "manifest.json"
    storage.fetch(path)
    if not path.is_file():
        raise UserError(f"{folder} holds no manifest.json: it is no corpus, or one that was never finished")
    data = read_json(path, {"format": int, "options": dict, "parts": list})
    if data["format"] != FORMAT:
        raise UserError(f"{path} is of format {data['format']}; this program reads {FORMAT}")
    shards, files = data["options"].get("shards"), data.get("files", {})  # version 0.1.0 had no digests of the others
    try:
        parts = [Part(**part) for part in data["parts"]]
    except TypeError:  # no object, or one of other names
        parts = []
    sizes = [size for part in parts for size in (part.reviews, part.bytes)]
    typed = all(type(size) is int and size >= 1 for size in sizes) and all(type(part.sha256) is str for part in parts)
    whole = type(shards) is int and shards == len(parts) - 2 >= 1 and [part.name for part in parts] == names(shards)
    named = type(files) is dict and all(Path(name).name == name and type(files[name]) is str for name in files)
    if not (is_sealed(data) and typed and whole and named):
        raise Damaged(f"{path} lacks parts, or has been changed; make the corpus again")
    return Manifest(parts, files)


def load(folder: Path) -> list[Part]:
    """The parts of a corpus folder in their order, training shards first.

    Raises UserError, with the part's name, for one that is missing or not of the size in the manifest.
    """
    parts = read_manifest(folder).parts
    if storage.is_remote(folder):
        sizes = {name: entry.size for name, entry in storage.files(folder).items()}
    else:
        sizes = {file.name: file.stat().st_size for file in os.scandir(folder) if file.is_file()}
    for part in parts:
        file = folder / f"{part.name}.bin"
        if file.name not in sizes:
            raise UserError(f"{file} is missing; make the corpus again")
        if (size := sizes[file.name]) != part.bytes:
            raise UserError(f"{file} has {size:,} bytes, and should have {part.bytes:,}; make the corpus again")
    return parts


def verify(folder: Path, part: Part) -> None:
    """Raise UserError unless a part's bytes are those that were written."""
    _verify(folder / f"{part.name}.bin", part.sha256)


def verify_others(folder: Path) -> None:
    """Raise UserError unless a corpus's ends, labels and bad lines are those that were written."""
    for name, sha in read_manifest(folder).files.items():
        storage.fetch(folder / name)
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; make the corpus again")
        _verify(folder / name, sha)


def _verify(path: Path, sha: str) -> None:
    if digest(path) != sha:
        raise UserError(f"{path} has changed since it was written: its SHA-256 differs; make the corpus again")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
