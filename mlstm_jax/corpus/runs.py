"""Runs: what the first pass over the inputs leaves, and the second reads in slices.

A chunk of an input becomes a run: a row for each review (its key, where its text ends, where its label ends), in the
order of the keys, then all texts, then all labels. Keys are 64 bits, and their order is the shuffle.
"""

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from mlstm_jax.config import require
from mlstm_jax.corpus.readers import Chunk, parse
from mlstm_jax.disk import atomic
from mlstm_jax.text import EMPTY, frame

BUCKET = 32 << 20  # bytes of the second pass that one worker holds


def path(work: Path, chunk: Chunk) -> Path:
    """Where the run of a chunk lies."""
    return work / f"{chunk.source:05}-{chunk.number:07}.run"


def make(
    task: tuple[str, Chunk], work: Path, seed: int, distinct: bool, on_error: Literal["quarantine", "fail"]
) -> int:
    """Read, frame and sort the reviews of one chunk. Its counts are written last: they say that the run is whole."""
    name, chunk = task
    run = path(work, chunk)
    if run.with_suffix(".json").exists():
        return chunk.read
    framed, labels, bad, counts, seen = [], [], [], Counter(), set()
    for line, text, label, wrong in parse(chunk):
        if wrong is not None:
            require(on_error == "quarantine", f"{name}, line {line}: {wrong}")
            bad.append({"file": name, "line": line, "why": wrong, "data": text})
        elif (review := frame(text)) == EMPTY:
            counts["empty"] += 1
        elif distinct and review in seen:  # here already: all that are equal will be in one bucket, and may be millions
            counts["duplicates"] += 1
        else:
            if distinct:
                seen.add(review)
            framed.append(review)
            labels.append(label)
    counts["bad"], counts["reviews"], counts["bytes"] = len(bad), len(framed), sum(map(len, framed))
    keys = _keys(framed, chunk, seed, distinct)
    order = np.argsort(keys, kind="stable")
    _write(run, keys[order], [framed[i] for i in order], [labels[i] for i in order])
    with atomic(run.with_suffix(".json")) as file:
        file.write(json.dumps({"counts": counts, "bad": bad}).encode())
    return chunk.read


def _keys(framed, chunk, seed, distinct):
    """Each review's place in the shuffle: by its text where equal ones are to meet, else by its place in the input."""
    if distinct:
        seed = seed.to_bytes(8, "big")
        return np.array(
            [int.from_bytes(hashlib.blake2b(f, digest_size=8, key=seed).digest(), "big") for f in framed], np.uint64
        )
    start = hashlib.blake2b(f"{seed} {chunk.source} {chunk.number}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):  # SplitMix64 (Steele, Lea and Flood 2014) of consecutive numbers
        z = np.uint64(int.from_bytes(start, "big")) + np.arange(1, len(framed) + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _write(run, keys, framed, labels) -> None:
    lines = {label: (json.dumps(label) + "\n").encode() for label in set(labels)}
    told = [lines[label] for label in labels]
    ends = [np.cumsum([len(item) for item in column], dtype=np.uint64) for column in (framed, told)]
    with atomic(run) as file:
        file.write(np.stack([keys, *ends], axis=1).tobytes())
        file.writelines(framed)
        file.writelines(told)


def _read(run, count, size, first, last) -> tuple[UInt64[np.ndarray, "reviews"], list[bytes], list[bytes]]:
    """Keys, texts and labels of the reviews first ... last - 1 of a run of `count` reviews and `size` bytes of text."""
    with open(run, "rb") as file:

        def read(start, stop):
            file.seek(start)
            return file.read(stop - start)

        def items(column, offset):
            a, b = int(begin[column]), int(rows[-1, column])
            data = read(offset + a, offset + b)
            ends = (rows[:, column] - begin[column]).tolist()
            return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]

        rows = np.frombuffer(read(24 * max(first - 1, 0), 24 * last), np.uint64).reshape(-1, 3)
        begin, rows = (rows[0], rows[1:]) if first else (np.zeros(3, np.uint64), rows)
        return rows[:, 0], items(1, 24 * count), items(2, 24 * count + size)


# Slices of all runs.


class _Index(NamedTuple):
    """All runs, and where each bucket of keys begins and ends in each of them."""

    runs: list[tuple[Path, int, int]]  # path, reviews, bytes of text
    places: UInt32[np.ndarray, "runs buckets_and_one"]


@cache
def _index(work: Path, made: int) -> _Index:
    """The index that `make_index` made at that time; every worker reads it once."""
    return _Index(_all(work), np.load(work / "index.npy", mmap_mode="r"))


def make_index(work: Path, counts: Counter, buckets: int) -> tuple[Int[np.ndarray, "buckets"], int]:
    """Reviews in each bucket, at least so many buckets, and the time of the index that tells where they are."""
    # A review costs about 100 bytes besides its own. Where a task ends within a bucket, two tasks read that bucket.
    buckets = max(buckets, (counts["bytes"] + 100 * counts["reviews"]) // BUCKET)
    edges = np.array([(bucket << 64) // buckets for bucket in range(buckets)], np.uint64)
    runs, sizes = _all(work), np.zeros(buckets, np.int64)
    header = {"descr": "<u4", "fortran_order": False, "shape": (len(runs), buckets + 1)}
    with atomic(work / "index.npy") as file:  # row by row: of a large input it has some hundred megabytes
        np.lib.format.write_array_header_1_0(file, header)
        for path, count, _ in runs:
            keys = np.fromfile(path, np.uint64, 3 * count)[::3]
            row = np.append(np.searchsorted(keys, edges), count).astype("<u4")
            sizes += np.diff(row)
            file.write(row.tobytes())
    return sizes, (work / "index.npy").stat().st_mtime_ns


def _all(work):
    found = []
    for path in sorted(work.glob("*.run")):
        counts = json.loads(path.with_suffix(".json").read_bytes())["counts"]
        if counts["reviews"]:
            found.append((path, counts["reviews"], counts["bytes"]))
    return found


def bucket(number: int, work: Path, made: int, distinct: bool) -> tuple[list[bytes], list[bytes]]:
    """Texts and labels of one bucket, in the order of their keys; of equal keys, in the order of the input."""
    index = _index(work, made)
    keys, texts, labels = [np.empty(0, np.uint64)], [], []
    for (path, count, size), row in zip(index.runs, index.places, strict=True):
        first, last = int(row[number]), int(row[number + 1])
        if first < last:
            some = _read(path, count, size, first, last)
            keys.append(some[0])
            texts += some[1]
            labels += some[2]
    order = np.argsort(np.concatenate(keys), kind="stable").tolist()
    if distinct:  # equal texts have equal keys, so that they meet in one bucket; the first of them is kept
        firsts = {}
        for i in order:
            firsts.setdefault(texts[i], i)
        order = firsts.values()
    return [texts[i] for i in order], [labels[i] for i in order]
