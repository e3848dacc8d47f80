"""Shards on disk: reviews by the million, framed and shuffled into files of bytes, in bounded memory.

Two passes. The first reads the inputs chunk by chunk; every review gets a key of 64 bits, and every chunk becomes a
*run*: its framed reviews in the order of their keys. The second cuts the order of all keys into parts of equal numbers
of reviews and writes each part, a bucket of neighbouring keys at a time, out of slices of all runs. The order of the
keys is the shuffle: the result depends neither on the number of workers nor on what was done before a run was killed.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt32

from mlstm_jax.config import UserError, require
from mlstm_jax.corpus.readers import Chunk, Keys, Source, chunks, parse, sources
from mlstm_jax.corpus.windows import Bytes
from mlstm_jax.disk import atomic
from mlstm_jax.text import EMPTY, decode, frame

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # as log.progress

FORMAT = 1  # of the manifest and the files it speaks of
BUCKET = 32 << 20  # bytes of the second pass that one worker holds


@dataclass(frozen=True)
class Options:
    """What decides which bytes a corpus has."""

    shards: int
    seed: int = 0
    text_key: str | None = None
    label_key: str | None = None
    distinct: bool = False
    """Keep one of several reviews with the same framed text."""


class Part(NamedTuple):
    """A shard, or the validation or test reviews: its name, what is in it, and the SHA-256 of its bytes."""

    name: str
    reviews: int
    bytes: int
    sha256: str


def prepare(
    inputs: list[str],
    out: Path,
    options: Options,
    *,
    workers: int,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    say: Callable[[str], None] = print,
    progress: Progress = lambda what, total: nullcontext(lambda count: None),
) -> dict[str, Any]:
    """Write the corpus folder `out`; returns its manifest, which is written last.

    A killed run goes on where it was when it is called again with the same inputs and options. `progress` shows
    how far each pass is. Raises UserError for inputs that cannot be read, a folder that holds a corpus already, a
    full disk.
    """
    found = sources(inputs)
    require(options.shards >= 1, "--shards must be at least 1")
    require(not (out / "manifest.json").exists(), f"{out} holds a corpus already; name a new folder")
    work = out / ".work"
    strange = out.exists() and not work.exists() and any(out.iterdir())
    require(not strange, f"{out} holds something else; name a new folder")
    _resume_or_start(work, found, options, say)
    try:
        with _Pool(workers) as pool:
            counts = _make_runs(found, options, work, pool, on_error, progress)
            parts = _write_parts(out, work, options, counts, pool, progress)
    except OSError as error:
        raise UserError(
            f"{out}: {error.strerror or error}; make room and call it again: it goes on from here"
        ) from None
    kept = sum(part.reviews for part in parts)
    manifest = {
        "format": FORMAT,
        "options": asdict(options),
        "sources": [source._asdict() for source in found],
        "reviews": {
            "read": counts["reviews"] + counts["empty"] + counts["bad"],
            "kept": kept,
            "empty": counts["empty"],
            "duplicates": counts["reviews"] - kept,
            "bad": counts["bad"],
        },
        "bytes": sum(part.bytes for part in parts),
        "parts": [part._asdict() for part in parts],
    }
    if counts["bad"]:
        os.replace(work / "bad_lines.jsonl", out / "bad_lines.jsonl")
    with atomic(out / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())
    shutil.rmtree(work)
    return manifest


def _resume_or_start(work, found, options, say):
    """Keep what an earlier call of the same kind has left, or start with an empty work folder."""
    plan = {"format": FORMAT, "options": asdict(options), "sources": [source._asdict() for source in found]}
    plan = json.dumps(plan).encode()
    again = all(source.size is not None for source in found)  # what comes from a pipe comes once
    if again and (work / "plan.json").is_file() and (work / "plan.json").read_bytes() == plan:
        say(f"going on with what {work} holds")
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    with atomic(work / "plan.json") as file:
        file.write(plan)


class _Pool:
    """Processes that do tasks as they come, a few more of them waiting than there are processes."""

    def __init__(self, workers: int):
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self.limit = workers + 2

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Results in the order in which they are there."""
        running: set[Future] = set()
        for task in tasks:
            running.add(self.pool.submit(function, task))
            if len(running) >= self.limit:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        yield from (future.result() for future in running)


# The first pass: chunks to runs.


def _make_runs(found, options, work, pool, on_error, progress) -> Counter:
    """A run for every chunk that has none yet; what was counted in all of them."""
    keys = Keys(options.text_key, options.label_key)

    def missing():
        for index, source in enumerate(found):
            for chunk in chunks(source, index, keys):
                if not _run(work, chunk.source, chunk.number).with_suffix(".json").exists():
                    yield chunk

    make = partial(_make_run, work=work, options=options, found=found, on_error=on_error)
    with progress("reading", sum(source.size or 0 for source in found)) as done:
        for size in pool.map(make, missing()):
            done(size)
    counts = Counter()
    with open(work / "bad_lines.jsonl", "w", encoding="utf-8") as bad:
        for path in sorted(work.glob("*.json")):
            if path.name != "plan.json":
                record = json.loads(path.read_bytes())
                counts += Counter(record["counts"])
                bad.writelines(json.dumps(line) + "\n" for line in record["bad"])
    return counts


def _run(work, source, chunk):
    return work / f"{source:05}-{chunk:07}.run"


def _make_run(chunk: Chunk, work: Path, options: Options, found: list[Source], on_error: str) -> int:
    """Read, frame and sort the reviews of one chunk. Its counts are written last: they say that the run is whole."""
    framed, labels, bad, counts = [], [], [], Counter()
    for line, text, label, wrong in parse(chunk):
        if wrong is not None:
            where = f"{found[chunk.source].name}, line {line}"
            require(on_error == "quarantine", f"{where}: {wrong}")
            bad.append({"file": found[chunk.source].name, "line": line, "why": wrong})
        elif (review := frame(text)) == EMPTY:
            counts["empty"] += 1
        else:
            framed.append(review)
            labels.append(label)
    if bad and isinstance(chunk.payload, bytes):
        lines = chunk.payload.split(b"\n")
        bad = [record | {"data": decode(lines[record["line"] - chunk.line])} for record in bad]
    counts["bad"], counts["reviews"], counts["bytes"] = len(bad), len(framed), sum(map(len, framed))
    keys = _keys(framed, chunk, options)
    order = np.argsort(keys, kind="stable")
    _write_run(
        _run(work, chunk.source, chunk.number), keys[order], [framed[i] for i in order], [labels[i] for i in order]
    )
    with atomic(_run(work, chunk.source, chunk.number).with_suffix(".json")) as file:
        file.write(json.dumps({"counts": counts, "bad": bad}).encode())
    return len(chunk.payload) if isinstance(chunk.payload, bytes) else counts["bytes"]


def _keys(framed, chunk, options):
    """Each review's place in the shuffle: by its text where equal ones are to meet, else by its place in the input."""
    if options.distinct:
        seed = options.seed.to_bytes(8, "big")
        return np.array(
            [int.from_bytes(hashlib.blake2b(f, digest_size=8, key=seed).digest(), "big") for f in framed], np.uint64
        )
    start = hashlib.blake2b(f"{options.seed} {chunk.source} {chunk.number}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):  # SplitMix64 (Steele, Lea and Flood 2014) of consecutive numbers
        z = np.uint64(int.from_bytes(start, "big")) + np.arange(1, len(framed) + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _write_run(path, keys, framed, labels) -> None:
    """Keys, the ends of all texts, the ends of all labels, the texts, the labels."""
    lines = {label: (json.dumps(label) + "\n").encode() for label in set(labels)}
    told = [lines[label] for label in labels]
    with atomic(path) as file:
        file.write(keys.tobytes())
        for column in (framed, told):
            file.write(np.cumsum([len(item) for item in column], dtype=np.uint64).tobytes())
        file.writelines(framed)
        file.writelines(told)


def _read_run(path: Path, count: int, size: int, first: int, last: int) -> tuple[np.ndarray, list[bytes], list[bytes]]:
    """Keys, texts and labels of the reviews first ... last - 1 of a run of `count` reviews and `size` bytes of text."""
    with open(path, "rb") as file:

        def numbers(column, start, stop):
            file.seek(8 * (column * count + start))
            return np.fromfile(file, np.uint64, stop - start)

        def items(column, offset):
            ends = numbers(column, first, last).astype(np.int64)
            begin = int(numbers(column, first - 1, first)[0]) if first else 0
            file.seek(24 * count + offset + begin)
            data = file.read(int(ends[-1]) - begin)
            starts = np.concatenate([[0], ends[:-1] - begin])
            return [data[a:b] for a, b in zip(starts.tolist(), (ends - begin).tolist(), strict=True)]

        return numbers(0, first, last), items(1, 0), items(2, size)


# The second pass: runs to parts.


class _Index(NamedTuple):
    """All runs, and where each bucket of keys begins and ends in each of them."""

    runs: list[tuple[Path, int, int]]  # path, reviews, bytes of text
    places: UInt32[np.ndarray, "runs buckets_and_one"]


@cache
def _index(work: Path) -> _Index:
    """The index as `_make_index` left it; every worker reads it once."""
    return _Index(_runs(work), np.load(work / "index.npy", mmap_mode="r"))


def _write_parts(out, work, options, counts, pool, progress) -> list[Part]:
    places = _make_index(work, counts, options.shards + 2)
    if options.distinct:
        counted = dict(pool.map(partial(_count, work=work), range(places.shape[1] - 1)))
        sizes = np.array([counted[bucket] for bucket in sorted(counted)])
    else:
        sizes = np.diff(places.astype(np.int64), axis=1).sum(axis=0)
    names = [f"train-{n:05}" for n in range(options.shards)] + ["validation", "test"]
    few = f"{sizes.sum()} reviews do not fill {options.shards} shards and two parts to hold out; lower --shards"
    require(sizes.sum() >= len(names), few)
    ranks = int(sizes.sum()) * np.arange(len(names) + 1) // len(names)
    tasks = ((name, int(a), int(b)) for name, a, b in zip(names, ranks[:-1], ranks[1:], strict=True))
    parts = {}
    write = partial(_write_part, out=out, work=work, ends=np.cumsum(sizes), distinct=options.distinct)
    with progress("writing", counts["bytes"]) as done:
        for part in pool.map(write, tasks):
            parts[part.name] = part
            done(part.bytes)
    return [parts[name] for name in names]


def _make_index(work, counts, parts):
    runs = _runs(work)
    # A review costs about 100 bytes besides its own. Where a part ends within a bucket, two tasks read that bucket.
    buckets = max(8 * parts, (counts["bytes"] + 100 * counts["reviews"]) // BUCKET)
    edges = np.array([(bucket << 64) // buckets for bucket in range(buckets)], np.uint64)
    places = np.empty((len(runs), buckets + 1), np.uint32)
    for row, (path, count, _) in zip(places, runs, strict=True):
        row[:-1] = np.searchsorted(np.fromfile(path, np.uint64, count), edges)
        row[-1] = count
    with atomic(work / "index.npy") as file:
        np.save(file, places)
    return places


def _runs(work):
    found = []
    for path in sorted(work.glob("*.run")):
        counts = json.loads(path.with_suffix(".json").read_bytes())["counts"]
        if counts["reviews"]:
            found.append((path, counts["reviews"], counts["bytes"]))
    return found


def _bucket(index: _Index, number: int, distinct: bool) -> tuple[list[bytes], list[bytes]]:
    """Texts and labels of one bucket, in the order of their keys; of equal keys, in the order of the input."""
    keys, texts, labels = [np.empty(0, np.uint64)], [], []
    for (path, count, size), row in zip(index.runs, index.places, strict=True):
        first, last = int(row[number]), int(row[number + 1])
        if first < last:
            some = _read_run(path, count, size, first, last)
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


def _count(number: int, work: Path) -> tuple[int, int]:
    return number, len(_bucket(_index(work), number, distinct=True)[0])


def _write_part(task: tuple[str, int, int], out: Path, work: Path, ends: np.ndarray, distinct: bool) -> Part:
    """Write the reviews of ranks first ... last - 1: NAME.bin, NAME.ends.npy, and NAME.labels.jsonl if it has any."""
    name, first, last = task
    note = work / f"{name}.done"
    if note.exists():  # written before the program was killed
        return Part(**json.loads(note.read_bytes()))
    sha, lengths, labelled = hashlib.sha256(), [np.zeros(0, np.int64)], False
    with atomic(out / f"{name}.bin") as file, atomic(work / f"{name}.labels") as label_file:
        for number in range(*np.searchsorted(ends, [first, last - 1], side="right") + [0, 1]):
            begin = int(ends[number - 1]) if number else 0
            texts, labels = _bucket(_index(work), number, distinct)
            here = slice(max(first - begin, 0), last - begin)
            data = b"".join(texts[here])
            sha.update(data)
            file.write(data)
            lengths.append(np.array([len(text) for text in texts[here]], np.int64))
            label_file.writelines(labels[here])
            labelled = labelled or any(label != b"null\n" for label in labels[here])
    reviews = np.cumsum(np.concatenate(lengths))
    with atomic(out / f"{name}.ends.npy") as file:
        np.save(file, reviews)
    if labelled:
        os.replace(work / f"{name}.labels", out / f"{name}.labels.jsonl")
    part = Part(name, len(reviews), int(reviews[-1]), sha.hexdigest())
    with atomic(note) as file:
        file.write(json.dumps(part._asdict()).encode())
    return part


# What training reads.


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Bytes]]:
    """The manifest of a corpus folder, and its parts by name, mapped into memory.

    Raises UserError, with the part's name, for one that is missing or not of the size that the manifest tells.
    """
    path = folder / "manifest.json"
    require(path.is_file(), f"{folder} holds no manifest.json: it is no corpus, or one that was never finished")
    try:
        manifest = json.loads(path.read_bytes())
        parts = [Part(**part) for part in manifest["parts"]]
        require(manifest["format"] == FORMAT, f"{path} is of format {manifest['format']}; this program reads {FORMAT}")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the corpus again") from None
    mapped = {}
    for part in parts:
        file = folder / f"{part.name}.bin"
        require(file.is_file(), f"{file} is missing; make the corpus again")
        size = file.stat().st_size
        require(size == part.bytes, f"{file} has {size:,} bytes, and should have {part.bytes:,}; make the corpus again")
        mapped[part.name] = np.memmap(file, np.uint8, "r")
    return manifest, mapped


def verify(folder: Path, part: Part) -> None:
    """Raise UserError unless a part's bytes are those that were written."""
    with open(folder / f"{part.name}.bin", "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
    require(
        same, f"{folder / part.name}.bin has changed since it was written: its SHA-256 differs; make the corpus again"
    )
