"""Training batches and validation batches, cut from bytes. A position in the stream is one number."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from mlstm_jax.errors import UserError

Bytes = UInt8[np.ndarray, "bytes"]


class Batch(NamedTuple):
    """Bytes of one update."""

    rows: UInt8[np.ndarray, "own seq_plus_one"]
    fresh: bool  # a shard begins here, where the state starts from zero


class ScoringBatch(NamedTuple):
    """Bytes to be scored."""

    rows: UInt8[np.ndarray, "batch seq_plus_one"]
    inside: Bool[np.ndarray, "batch seq"]  # the targets that count


class Batches:
    """Training batches over shards of bytes.

    Every shard is cut into `batch_size` contiguous rows; a batch is the next `seq_length` bytes of every row, and one
    byte more, the last target, which is the real next byte of the shard. Batch `position` (0, 1, ... without end, pass
    after pass) depends on nothing else, so that one number, the same on any number of processes, is the cursor.
    """

    def __init__(self, shards: Sequence[Bytes], batch_size: int, seq_length: int, sizes: Sequence[int] | None = None):
        """`sizes` are the bytes of the shards, where they are known; else all are opened.

        Raises UserError where a shard has fewer bytes than one batch takes.
        """
        self.shards, self.batch_size, self.seq_length = shards, batch_size, seq_length
        need, sizes = batch_size * seq_length + 1, sizes or [len(shard) for shard in shards]
        for number, size in enumerate(sizes):
            if size < need:
                raise UserError(
                    f"shard {number + 1} of {len(shards)} has {size:,} bytes, but {batch_size} sequences x "
                    f"{seq_length} "
                    "bytes + 1 "
                    f"= {need:,} are needed for one update; lower `batch_size`, `seq_length` or `shards`"
                )
        self.bytes = sum(sizes)
        self.counts = np.array([(size - 1) // (batch_size * seq_length) for size in sizes])
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        """Batches in one pass over the shards."""
        return int(self.counts.sum())

    @property
    def unused(self) -> int:
        """Bytes at the shards' ends that fill no batch."""
        return self.bytes - len(self) * self.batch_size * self.seq_length

    def at(self, position: int, own: Int[np.ndarray, "own"] | slice = slice(None)) -> Batch:
        """Batch number `position`, and whether a shard begins there, where the state starts from zero.

        Only the rows named in `own` are read.
        """
        number = self.shard(position)
        place = position % len(self) - int(self.ends[number] - self.counts[number])
        return Batch(self._rows(number, place, own), fresh=place == 0)

    def _rows(
        self, number: int, place: int, own: Int[np.ndarray, "own"] | slice
    ) -> UInt8[np.ndarray, "own {self.seq_length}+1"]:
        row_bytes = int(self.counts[number]) * self.seq_length
        rows = np.lib.stride_tricks.as_strided(  # the last row ends within the shard: see __init__ and counts
            self.shards[number][place * self.seq_length :],
            (self.batch_size, self.seq_length + 1),
            (row_bytes, 1),
            writeable=False,
        )
        return np.array(rows[own])

    def shard(self, position: int) -> int:
        """The number of the shard that batch `position` lies in."""
        return int(np.searchsorted(self.ends, position % len(self), side="right"))


def stream(
    batches: Batches,
    position: int,
    check: Callable[[int], None] = lambda shard: None,
    own: Int[np.ndarray, "own"] | slice = slice(None),
    ahead: int = 8,
) -> Generator[Batch, None, None]:
    """Batches from `position` on, without end, read by a thread that stays `ahead` of whoever takes them.

    Of every batch only the rows named in `own`, a process's own ones, are read. `check(shard)` is called before the
    first batch of each shard; what it raises is raised in that batch's place.
    """
    ready, stop = queue.Queue(ahead), threading.Event()

    def read() -> None:
        last = None
        for number in itertools.count(position):
            try:
                if (shard := batches.shard(number)) != last:
                    check(shard)
                    last = shard
                item = batches.at(number, own)
            except Exception as error:
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if stop.is_set() or isinstance(item, Exception):
                return

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()


def scoring_batches(data: Bytes, batch_size: int, seq_length: int) -> Iterator[ScoringBatch]:
    """All of `data` in a fixed number of rows, batch by batch, with a mask of the targets that count.

    A row reads on into the next row's first byte, so that every byte but the first of `data` is a target once
    (the last row is the shorter one).
    """
    targets = len(data) - 1
    row_bytes = -(-targets // batch_size)
    padded = np.zeros(batch_size * row_bytes + seq_length + 1, np.uint8)
    padded[: len(data)] = data
    starts = np.arange(batch_size)[:, None] * row_bytes
    for place in range(0, row_bytes, seq_length):
        offsets = place + np.arange(seq_length + 1)
        inside = (offsets[:-1] < row_bytes) & (starts + offsets[:-1] < targets)
        yield ScoringBatch(padded[starts + offsets], inside)
