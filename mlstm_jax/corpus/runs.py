"""Runs: what the first pass over the inputs leaves, and the second reads in slices.

A chunk of an input becomes a run: a row for each review, in the order of the keys, then the texts with their labels.
Keys are 64 bits, and their order is the shuffle. A row also holds checksums of all that comes before its end, so that
any slice of a run can be checked when it is read.
"""

import hashlib
import json
import zlib
from collections import Counter
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from mlstm_jax.corpus.readers import Chunk, parse
from mlstm_jax.disk import is_sealed, read_json, seal, unsynced
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.text import EMPTY, frame

BUCKET = 32 << 20  # bytes of the second pass that one worker holds
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("text", "<u8"),  # where the review's text ends, behind all rows
        ("end", "<u8"),  # where its label ends, and the next text begins
        ("crc", "<u4"),  # CRC-32 of the texts and labels up to here
        ("sum", "<u4"),  # sum of `_hashes` of the rows up to here
    ]
)


class Run(NamedTuple):
    """A run as its note tells it."""

    path: Path
    counts: Counter[str]  # reviews, their bytes, and the chunk's empty, bad and doubled ones
    last: list[int]  # end, crc and sum of the last row
    bad: str  # SHA-256 of the file of bad lines, where there are any


def path(work: Path, chunk: Chunk) -> Path:
    """Where the run of a chunk lies."""
    return work / f"{chunk.source:05}-{chunk.number:07}.run"


def make(
    task: tuple[str, Chunk], work: Path, seed: int, distinct: bool, on_error: Literal["quarantine", "fail"]
) -> int:
    """Read, frame and sort the reviews of one chunk; returns the bytes of input. Its note is written last."""
    name, chunk = task
    run = path(work, chunk)
    if run.with_suffix(".json").exists():
        return chunk.read
    framed, labels, bad, counts, seen = [], [], [], Counter(), set()
    for line, text, label, wrong, _ in parse(chunk):
        if wrong is not None:
            if on_error != "quarantine":
                raise UserError(f"{name}, line {line}: {wrong}")
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
    last = _write(run, keys[order], [framed[i] for i in order], [labels[i] for i in order])
    digest = _write_bad(run, bad) if bad else ""
    with unsynced(run.with_suffix(".json")) as file:
        file.write(json.dumps(seal({"counts": counts, "last": last, "bad": digest})).encode())
    return chunk.read


def _keys(framed: list[bytes], chunk: Chunk, seed: int, distinct: bool) -> UInt64[np.ndarray, "n"]:
    """Each review's place in the shuffle: by its text where equal ones are to meet, else by its place in the input."""
    if distinct:
        key = seed.to_bytes(8, "big")
        return np.array(
            [int.from_bytes(hashlib.blake2b(f, digest_size=8, key=key).digest(), "big") for f in framed], np.uint64
        )
    start = hashlib.blake2b(f"{seed} {chunk.source} {chunk.number}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):  # SplitMix64 of consecutive numbers
        z = np.uint64(int.from_bytes(start, "big")) + np.arange(1, len(framed) + 1, dtype=np.uint64) * GOLDEN
        return _mix(z)


def _mix(z: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """What SplitMix64 (Steele, Lea and Flood 2014) makes of a number."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hashes(rows: np.ndarray) -> UInt32[np.ndarray, "n"]:
    """32 bits of each row's key and ends."""
    z = _mix(_mix(_mix(rows["key"] + GOLDEN) ^ rows["text"]) ^ rows["end"])
    return (z >> np.uint64(32)).astype(np.uint32)


def _write(run: Path, keys: UInt64[np.ndarray, "n"], framed: list[bytes], labels: list[str | None]) -> list[int]:
    """Write a run; end, crc and sum of its last row."""
    lines = {label: (json.dumps(label) + "\n").encode() for label in set(labels)}
    items = list(chain.from_iterable(zip(framed, (lines[label] for label in labels), strict=True)))
    ends, data, crc = np.cumsum(np.fromiter(map(len, items), np.uint64)), memoryview(b"".join(items)), 0
    rows = np.zeros(len(keys), ROW)
    rows["key"], rows["text"], rows["end"] = keys, ends[::2], ends[1::2]
    places = [0, *rows["end"].tolist()]
    rows["crc"] = [crc := zlib.crc32(data[begin:end], crc) for begin, end in pairwise(places)]
    rows["sum"] = np.cumsum(_hashes(rows), dtype=np.uint32)
    with unsynced(run) as file:  # what a power cut takes is noticed, and made again; to wait for each costs a tenth
        file.write(rows.tobytes())
        file.write(data)
    return _last(rows)


def _last(rows: np.ndarray) -> list[int]:
    return [int(rows[-1][name]) if len(rows) else 0 for name in ("end", "crc", "sum")]


def _write_bad(run: Path, bad: list[dict[str, Any]]) -> str:
    """Write the bad lines of a chunk; their SHA-256."""
    lines = b"".join((json.dumps(line) + "\n").encode() for line in bad)
    with unsynced(run.with_suffix(".bad")) as file:
        file.write(lines)
    return hashlib.sha256(lines).hexdigest()


def notes(work: Path) -> list[Path]:
    """The notes of all runs that are made, in the order of the input."""
    return sorted(path for path in work.glob("*.json") if path.name != "plan.json")


def read_note(note: Path) -> Run:
    """The run that a note speaks of; raises Damaged for a note that is not as it was written."""
    stored = read_json(note, {"counts": dict, "last": list, "bad": str, "checksum": str})
    counts, last = stored["counts"], stored["last"]
    numbers = all(type(number) is int and number >= 0 for number in (*counts.values(), *last))
    if not (is_sealed(stored) and numbers and len(last) == 3):
        raise Damaged(f"{note} is damaged: its checksum differs")
    return Run(note.with_suffix(".run"), Counter(counts), last, stored["bad"])


def bad_lines(run: Run) -> bytes:
    """The lines of a chunk that could not be read, as JSON lines; raises Damaged where they have changed."""
    if not run.bad:
        return b""
    lines = (path := run.path.with_suffix(".bad")).read_bytes()
    if hashlib.sha256(lines).hexdigest() != run.bad:
        raise _changed(path)
    return lines


def is_whole(note: Path) -> bool:
    """Whether a note, its run and its bad lines are as they were written."""
    try:
        run = read_note(note)
        bad_lines(run)
        _read_rows(run)
        _read(run, 0, run.counts["reviews"])
    except (Damaged, FileNotFoundError):
        return False
    return True


def _changed(path: Path | str) -> Damaged:
    return Damaged(f"{path} has changed since it was written; the same command makes it again")


def _read_rows(run: Run) -> np.ndarray:
    """All rows of a run, checked."""
    count = run.counts["reviews"]
    size = count * ROW.itemsize + run.last[0]
    rows = np.fromfile(run.path, ROW, count) if run.path.stat().st_size == size else np.zeros(0, ROW)
    sums = np.cumsum(_hashes(rows), dtype=np.uint32)
    if len(rows) != count or _last(rows) != run.last or (sums != rows["sum"]).any():
        raise _changed(run.path)
    return rows


class _Slice(NamedTuple):
    """Reviews of a run that follow one another."""

    rows: np.ndarray
    sum: int  # of `_hashes` of the rows, as the run tells it
    texts: list[bytes]
    labels: list[bytes]


def _read(run: Run, first: int, last: int) -> _Slice:
    """The reviews first ... last - 1 of a run, their texts and labels checked."""
    skipped = max(first - 1, 0)
    with open(run.path, "rb") as file:
        file.seek(ROW.itemsize * skipped)
        found = file.read(ROW.itemsize * (last - skipped))
        rows = np.frombuffer(found, ROW, len(found) // ROW.itemsize)
        before, rows = (rows[:1], rows[1:]) if first else (np.zeros(1, ROW), rows)
        if len(rows) != last - first:
            raise _changed(run.path)
        begin, crc, total = _last(before)
        end, last_crc, last_total = _last(rows) if len(rows) else (begin, crc, total)
        if not begin <= end <= run.last[0]:
            raise _changed(run.path)
        file.seek(ROW.itemsize * run.counts["reviews"] + begin)
        data = file.read(end - begin)
    if len(data) != end - begin or zlib.crc32(data, crc) != last_crc:
        raise _changed(run.path)
    ends = (rows["end"] - np.uint64(begin)).tolist()
    text_ends = (rows["text"] - np.uint64(begin)).tolist()
    return _Slice(
        rows,
        (last_total - total) % 2**32,
        [data[a:b] for a, b in zip([0, *ends], text_ends, strict=False)],
        [data[a:b] for a, b in zip(text_ends, ends, strict=True)],
    )


# Slices of all runs.


class _Index(NamedTuple):
    """All runs, and where each bucket of keys begins and ends in each of them."""

    runs: list[Run]
    places: UInt32[np.ndarray, "runs buckets_and_one"]


@lru_cache(1)
def _index(work: Path, made: int) -> _Index:
    """The index that `make_index` made at that time; every worker reads it once."""
    try:
        return _Index(_all(work), np.load(work / "index.npy", mmap_mode="r"))
    except ValueError:
        raise _changed(work / "index.npy") from None


def make_index(work: Path, counts: Counter[str], buckets: int) -> tuple[Int[np.ndarray, "buckets"], int]:
    """Reviews in each bucket, at least so many buckets, and the time of the index that tells where they are."""
    # A review costs about 100 bytes besides its own. Where a task ends within a bucket, two tasks read that bucket.
    buckets = max(buckets, (counts["bytes"] + 100 * counts["reviews"]) // BUCKET)
    edges = np.array([(bucket << 64) // buckets for bucket in range(buckets)], np.uint64)
    runs, sizes = _all(work), np.zeros(buckets, np.int64)
    header = {"descr": "<u4", "fortran_order": False, "shape": (len(runs), buckets + 1)}
    with unsynced(work / "index.npy") as file:  # row by row: of a large input it has some hundred megabytes
        np.lib.format.write_array_header_1_0(file, header)
        for run in runs:
            keys = np.ascontiguousarray(_read_rows(run)["key"])
            row = np.append(np.searchsorted(keys, edges), len(keys)).astype("<u4")
            sizes += np.diff(row)
            file.write(row.tobytes())
    return sizes, (work / "index.npy").stat().st_mtime_ns


def _all(work: Path) -> list[Run]:
    return [run for run in map(read_note, notes(work)) if run.counts["reviews"]]


def bucket(number: int, work: Path, made: int, distinct: bool) -> tuple[list[bytes], list[bytes]]:
    """Texts and labels of one bucket, in the order of their keys; of equal keys, in the order of the input.

    Raises Damaged where a run has changed since it was written.
    """
    index = _index(work, made)
    rows, texts, labels, total = [np.zeros(0, ROW)], [], [], 0
    for run, places in zip(index.runs, index.places, strict=True):
        first, last = int(places[number]), int(places[number + 1])
        if first < last:
            some = _read(run, first, last)
            rows.append(some.rows)
            texts += some.texts
            labels += some.labels
            total += some.sum
    rows = np.concatenate(rows)
    if int(_hashes(rows).sum(dtype=np.uint32)) != total % 2**32:
        raise _changed(f"a run in {work}")
    order = np.argsort(rows["key"], kind="stable").tolist()
    if distinct:  # equal texts have equal keys, so that they meet in one bucket; the first of them is kept
        firsts = {}
        for i in order:
            firsts.setdefault(texts[i], i)
        order = firsts.values()
    return [texts[i] for i in order], [labels[i] for i in order]
