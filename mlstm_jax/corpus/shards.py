"""A corpus folder: parts of framed reviews as raw bytes, and the manifest that says what they are."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlstm_jax.config import UserError, require
from mlstm_jax.corpus.windows import Bytes

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


class Mapped(Sequence):
    """The bytes of parts, each mapped into memory when it is asked for.

    What is mapped is an open file, of which a process may have fewer than a corpus has shards.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]):
        self._parts = parts
        self._map = lru_cache(2)(lambda number: np.memmap(folder / f"{parts[number].name}.bin", np.uint8, "r"))

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Bytes:
        return self._map(range(len(self))[number])


def load(folder: Path) -> list[Part]:
    """The parts of a corpus folder in their order, training shards first.

    Raises UserError, with the part's name, for one that is missing or not of the size that the manifest tells.
    """
    path = folder / "manifest.json"
    require(path.is_file(), f"{folder} holds no manifest.json: it is no corpus, or one that was never finished")
    try:
        manifest = json.loads(path.read_bytes())
        parts = [Part(**part) for part in manifest["parts"]]
        told = manifest["format"], manifest["options"]["shards"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the corpus again") from None
    require(told[0] == FORMAT, f"{path} is of format {told[0]}; this program reads {FORMAT}")
    kinds = tuple(Part.__annotations__.values())
    typed = all(isinstance(value, kind) for part in parts for value, kind in zip(part, kinds, strict=True))
    whole = told[1] == len(parts) - 2 >= 1 and [part.name for part in parts] == names(told[1])
    require(typed and whole, f"{path} lacks parts, or has been changed; make the corpus again")
    for part in parts:
        file = folder / f"{part.name}.bin"
        require(file.is_file(), f"{file} is missing; make the corpus again")
        size = file.stat().st_size
        require(size == part.bytes, f"{file} has {size:,} bytes, and should have {part.bytes:,}; make the corpus again")
    return parts


def verify(folder: Path, part: Part) -> None:
    """Raise UserError unless a part's bytes are those that were written."""
    with open(folder / f"{part.name}.bin", "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
    require(
        same, f"{folder / part.name}.bin has changed since it was written: its SHA-256 differs; make the corpus again"
    )
