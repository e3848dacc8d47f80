"""Preparing a corpus: reviews by the million, framed and shuffled into shards on disk, in bounded memory.

Two passes. The first reads the inputs chunk by chunk; every review gets a key of 64 bits, and every chunk becomes a
*run*: its framed reviews in the order of their keys. The second cuts the order of all keys into parts of equal numbers
of reviews and writes each part, a bucket of neighbouring keys at a time, out of slices of all runs. The order of the
keys is the shuffle: the result depends neither on the number of workers nor on what was done before a run was killed.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

import numpy as np

from mlstm_jax import storage
from mlstm_jax.corpus import runs, shards
from mlstm_jax.corpus.readers import Chunk, Keys, Source, chunks, sources, unchanged
from mlstm_jax.corpus.shards import FORMAT, Digested, Part
from mlstm_jax.disk import (
    Unwritable,
    atomic,
    is_sealed,
    locked,
    parse_json,
    read_json,
    seal,
    sync_files,
    sync_folder,
    unsynced,
)
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.signals import undisturbed
from mlstm_jax.text import printable

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # as progress.progress
OnError = Literal["quarantine", "fail"]
# spread(expand, do, items): `do(task)` of every task in `expand(item)` of every item, somewhere, in any order. It
# returns plain values, which survive JSON. See `processes` and beam.runner.
Spread = Callable[[Callable[[Any], Iterable[Any]], Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Options:
    """What decides which bytes a corpus has."""

    shards: int
    seed: int = 0
    text_key: str | None = None
    label_key: str | None = None
    distinct: bool = False
    """Keep one of several reviews with the same framed text."""


def prepare(
    inputs: list[str],
    out: Path,
    options: Options,
    spread: Spread,
    *,
    on_error: OnError = "quarantine",
    log: Callable[[str], None] = logger.info,
    progress: Progress = lambda what, total: nullcontext(lambda count: None),
    encoding: str | None = None,
) -> dict[str, Any]:
    """Write the corpus folder `out`; returns its manifest, which is written last.

    A killed run goes on where it was when it is called again with the same inputs and options. `progress` shows
    how far each pass is. Raises UserError for inputs that cannot be read, a folder that holds a corpus already or is
    being prepared by another process, a full disk.
    """
    written = os.path.join(os.path.realpath(out), "")  # is no input, where a folder is read that `out` lies in
    is_file = lambda source: source.time is not None
    found = [s for s in sources(inputs, encoding) if not (is_file(s) and os.path.realpath(s.name).startswith(written))]
    if options.shards < 1:
        raise UserError("`shards` must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise UserError("`seed` must lie between 0 and 2**63 - 1")
    work, finished = out / ".work", out / "manifest.json"
    full = f"{out} holds a corpus already; name a new folder"
    plan = {
        "format": FORMAT,
        "options": asdict(options),
        "sources": [source._asdict() | {"name": storage.name(source.name)} for source in found],
    }
    there = set(storage.names(out)) - {".lock"}
    ours = _is_of(plan, out) if storage.is_remote(out) else work.exists()
    if finished.name in there and not ours:
        raise UserError(full)
    if there and not ours:
        raise UserError(f"{out} holds something else; name a new folder")
    hint = "when that is put right, the same command goes on from here"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, "prepared"):
            storage.fetch(finished)
            if finished.exists():  # another process has just finished it, or was killed when it cleared away
                if not work.exists():
                    raise UserError(full)
                manifest = read_json(finished, {name: type(value) for name, value in plan.items()})
                if not all(manifest[name] == value for name, value in plan.items()):
                    raise UserError(full)
            else:
                manifest = _prepare(found, out, plan, options, spread, on_error, log, progress)
            shutil.rmtree(work)
            (out / ".lock").unlink()
            if storage.is_remote(out):
                storage.remove([out / PLAN])
                shutil.rmtree(out)
            return manifest
    except Unwritable as error:
        raise UserError(f"{error}; {hint}") from None
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}; {hint}") from None


PLAN = ".plan.json"  # in a bucket, until the corpus is finished: what is being made there


def _is_of(plan: dict[str, Any], out: Path) -> bool:
    """Whether a bucket holds what a killed call has left of the same corpus, here or on another machine."""
    try:
        old = parse_json(storage.read(out / PLAN), str(out / PLAN))
    except (FileNotFoundError, Damaged):
        return False
    return is_sealed(old) and all(old.get(name) == value for name, value in plan.items())


def _send(path: Path) -> None:
    """Move a finished file to its bucket, where the corpus lies in one."""
    if storage.is_remote(path):
        storage.put(path)
        path.unlink()


def _prepare(
    found: list[Source],
    out: Path,
    plan: dict[str, Any],
    options: Options,
    spread: Spread,
    on_error: OnError,
    log: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    work = out / ".work"
    if _resume_or_start(work, found, plan, log):
        _drop_damaged(work, out, spread, log, progress)
    if storage.is_remote(out):
        storage.put(out / PLAN, work / "plan.json")
    counts, bad = _make_runs(found, options, work, spread, on_error, progress)
    written = _write_parts(out, work, options, counts, spread, progress)
    parts, files = [each.part for each in written], {name: sha for each in written for name, sha in each.files.items()}
    kept = sum(part.reviews for part in parts)
    (out / "bad_lines.jsonl").unlink(missing_ok=True)
    if counts["bad"]:
        os.replace(work / "bad_lines.jsonl", out / "bad_lines.jsonl")
        _send(out / "bad_lines.jsonl")
        files["bad_lines.jsonl"] = bad
    manifest = plan | {
        "reviews": {
            "read": counts["reviews"] + counts["duplicates"] + counts["empty"] + counts["bad"],
            "kept": kept,
            "empty": counts["empty"],
            "duplicates": counts["duplicates"] + counts["reviews"] - kept,
            "bad": counts["bad"],
        },
        "bytes": sum(part.bytes for part in parts),
        "parts": [part._asdict() for part in parts],
        "files": files,
    }
    manifest = seal(manifest)
    with atomic(work / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())
    if storage.is_remote(out):
        storage.put(out / "manifest.json", work / "manifest.json")
        return manifest
    sync_files([*(out / f"{part.name}.bin" for part in parts), *(out / name for name in files)])
    sync_folder(out)
    os.replace(work / "manifest.json", out / "manifest.json")
    sync_folder(out)
    return manifest


def _resume_or_start(work: Path, found: list[Source], plan: dict[str, Any], log: Callable[[str], None]) -> bool:
    """Whether there is something of an earlier call of the same kind; otherwise the work folder is empty now."""
    path = work / "plan.json"
    why = ""
    try:
        old = read_json(path, {name: type(value) for name, value in plan.items()})
        if not is_sealed(old):
            raise Damaged(f"{path} is damaged: its checksum differs")
        if not all(old[name] == value for name, value in plan.items()):
            raise UserError(
                f"{work.parent} holds an unfinished corpus of other inputs, or of other options; "
                "give the same command to go on with it, or remove the folder"
            )
        if all(source.size is not None for source in found):
            log(printable(f"going on with what {work} holds"))
            return True
        why = "what comes from a pipe comes once"
    except FileNotFoundError:
        why = f"{path} is missing" if work.exists() and any(work.iterdir()) else ""
    except Damaged as error:
        why = str(error)
    if why:
        log(printable(f"{why}: starting anew, without what {work} holds"))
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    with atomic(path) as file:
        file.write(json.dumps(seal(plan)).encode())
    return False


def _drop_damaged(work: Path, out: Path, spread: Spread, log: Callable[[str], None], progress: Progress) -> None:
    """Take away the notes of all that is not as it was written (a power cut may do that), so that it is made again."""
    for path in work.glob(".*"):  # of a killed call
        path.unlink()
    notes = [path.name for path in (*runs.notes(work), *sorted(work.glob("*.done")))]
    dropped = 0
    with progress("checking", sum(path.stat().st_size for path in (*work.glob("*.run"), *out.glob("*.bin")))) as done:
        for name, size in spread(_alone, partial(_check, work=work, out=out), notes):
            done(size or 0)
            if size is None:
                (work / name).unlink()
                dropped += 1
    if dropped:
        log(printable(f"{dropped} of {len(notes)} files in {work} are damaged and are made again"))


def _check(name: str, work: Path, out: Path) -> tuple[str, int | None]:
    """A note's name, and the bytes of its run or part, None where these are not as they were written."""
    note = work / name
    if note.suffix == ".json":
        return name, note.with_suffix(".run").stat().st_size if runs.is_whole(note) else None
    try:
        written = _read_done(note)
        parts = {f"{written.part.name}.bin": written.part.sha256} | written.files
        if storage.is_remote(out):
            found = storage.files(out / f"{written.part.name}.bin").get("")
            whole = found is not None and found.size == written.part.bytes
        else:
            whole = all(shards.digest(out / name) == sha for name, sha in parts.items())
        whole = whole and note.stem == written.part.name
    except (Damaged, FileNotFoundError):
        return name, None
    return name, written.part.bytes if whole else None


@contextmanager
def processes(workers: int) -> Iterator[Spread]:
    """Processes of this machine that do tasks as they come, a few more of them waiting than there are processes."""
    if workers < 1:
        raise UserError("`workers` must be at least 1")

    def submit(do: Callable[[Any], Any], task: Any) -> Future[Any]:
        with undisturbed():  # this may start a process, or the pool's own thread
            return pool.submit(do, task)

    def spread(expand: Callable[[Any], Iterable[Any]], do: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        running: set[Future[Any]] = set()
        for task in chain.from_iterable(map(expand, items)):
            running.add(submit(do, task))
            if len(running) >= workers + 2:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        yield from (future.result() for future in running)

    context = get_context("spawn")
    alive, end = context.Pipe(duplex=False)
    with undisturbed():  # this starts a process that keeps count of locks
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with, initargs=(alive,))
    try:
        yield spread
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, perhaps for lack of memory; the same command goes on, with fewer `workers` if need be"
        ) from None
    finally:
        end.close()
        with undisturbed():  # a process that still starts would miss what the pool has taken away
            pool.shutdown(wait=True, cancel_futures=True)
        alive.close()


def _end_with(alive: Connection) -> None:
    """In a process of the pool: end, in the midst of a task, when the program has ended or was killed.

    (A pool's processes would wait for its next task for ever.)
    """

    def watch() -> None:
        alive.poll(None)  # nothing is ever sent: it returns when the other end is closed
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _alone(item: Any) -> Iterator[Any]:
    """For `spread`: an item that is one task."""
    yield item


# The first pass: chunks to runs.


def _make_runs(
    found: list[Source], options: Options, work: Path, spread: Spread, on_error: OnError, progress: Progress
) -> tuple[Counter[str], str]:
    """A run for every chunk that has none yet; what was counted in all of them, the SHA-256 of their bad lines."""
    cut = partial(_chunks, work=work, keys=Keys(options.text_key, options.label_key))
    make = partial(runs.make, work=work, seed=options.seed, distinct=options.distinct, on_error=on_error)
    with progress("reading", sum(source.size or 0 for source in found)) as done:
        for size in spread(cut, make, list(enumerate(found))):
            done(size)
    counts: Counter[str] = Counter()
    with unsynced(work / "bad_lines.jsonl") as file:
        bad = Digested(file)
        for run in map(runs.read_note, runs.notes(work)):
            counts += run.counts
            lines = runs.bad_lines(run)
            if lines and on_error == "fail":  # of an earlier call, which may have taken them
                first = json.loads(lines[: lines.index(b"\n")])
                raise UserError(f"{first['file']}, line {first['line']}: {first['why']}")
            bad.write(lines)
    for source in found:
        if not unchanged(source):
            raise UserError(f"{source.name} has changed while it was read; remove {work.parent} and start again")
    return counts, bad.digest()


def _chunks(item: tuple[int, Source], work: Path, keys: Keys) -> Iterator[tuple[str, Chunk]]:
    """The chunks of a source, with its name; those that have a run already come empty."""
    index, source = item
    for chunk in chunks(source, index, keys, log=logger.warning):
        made = runs.path(work, chunk).with_suffix(".json").exists()
        yield source.name, chunk._replace(payload=b"") if made else chunk


# The second pass: runs to parts.

Bucket = Callable[[int], tuple[list[bytes], list[bytes]]]  # as runs.bucket, of one work folder


class Written(NamedTuple):
    """A part that is written, and the SHA-256 of its other files by their name."""

    part: Part
    files: dict[str, str]


def _write_parts(
    out: Path, work: Path, options: Options, counts: Counter[str], spread: Spread, progress: Progress
) -> list[Written]:
    def enough(reviews: int) -> None:
        bad = f" ({counts['bad']} lines cannot be read: see {work / 'bad_lines.jsonl'})" if counts["bad"] else ""
        few = f"{reviews} reviews{bad} do not fill {options.shards} shards and two parts to hold out"
        if reviews < options.shards + 2:
            raise UserError(f"{few}; remove {out} and lower `shards`")

    enough(counts["reviews"])  # before there is a name for every shard
    names = shards.names(options.shards)
    group = min(8, max(1, len(names) // 16))  # parts that one task writes: neighbours share a bucket
    sizes, made = runs.make_index(work, counts, 8 * -(-len(names) // group))
    bucket = partial(runs.bucket, work=work, made=made, distinct=options.distinct)
    if options.distinct:
        counted = dict(spread(_alone, partial(_count, bucket=bucket), range(len(sizes))))
        sizes = np.array([counted[number] for number in range(len(sizes))])
    enough(int(sizes.sum()))
    ranks = int(sizes.sum()) * np.arange(len(names) + 1) // len(names)
    tasks = list(zip(names, ranks[:-1].tolist(), ranks[1:].tolist(), strict=True))
    write = partial(_write_group, out=out, work=work, ends=np.cumsum(sizes), bucket=bucket)
    parts = {}
    with progress("writing", counts["bytes"]) as done:
        for written in spread(_alone, write, [tasks[n : n + group] for n in range(0, len(tasks), group)]):
            for part, files in written:  # lists, where they came as JSON
                part = Part._make(part)
                parts[part.name] = Written(part, files)
                done(part.bytes)
    return [parts[name] for name in names]


def _count(number: int, bucket: Bucket) -> tuple[int, int]:
    return number, len(bucket(number)[0])


def _write_group(
    tasks: list[tuple[str, int, int]], out: Path, work: Path, ends: np.ndarray, bucket: Bucket
) -> list[Written]:
    """Write neighbouring parts."""
    bucket = lru_cache(1)(bucket)  # the last bucket of a part is the first of the next
    return [_write_part(*task, out, work, ends, bucket) for task in tasks]


def _write_part(name: str, first: int, last: int, out: Path, work: Path, ends: np.ndarray, bucket: Bucket) -> Written:
    """Write the reviews of ranks first ... last - 1: NAME.bin, NAME.ends.npy, and NAME.labels.jsonl if it has any.

    They are synced when all are written, together.
    """
    note = work / f"{name}.done"
    if note.exists():  # written before the program was killed
        return _read_done(note)
    lengths, labelled = [np.zeros(0, np.int64)], False
    with unsynced(work / f"{name}.bin") as file, unsynced(work / f"{name}.labels.jsonl") as label_file:
        data, lines = Digested(file), Digested(label_file)
        for number in range(*np.searchsorted(ends, [first, last - 1], side="right") + [0, 1]):
            begin = int(ends[number - 1]) if number else 0
            texts, labels = bucket(number)
            if len(texts) != ends[number] - begin:
                raise Damaged(f"{work / 'index.npy'} has changed since it was written; the same command makes it again")
            here = slice(max(first - begin, 0), last - begin)
            data.write(b"".join(texts[here]))
            lengths.append(np.array([len(text) for text in texts[here]], np.int64))
            lines.write(b"".join(labels[here]))
            labelled = labelled or any(label != b"null\n" for label in labels[here])
    reviews = np.cumsum(np.concatenate(lengths))
    with unsynced(work / f"{name}.ends.npy") as file:
        np.save(places := Digested(file), reviews)
    files = {f"{name}.ends.npy": places.digest()}
    if labelled:
        files[f"{name}.labels.jsonl"] = lines.digest()
    else:  # an earlier run, of what came from a pipe, may have had some
        (out / f"{name}.labels.jsonl").unlink(missing_ok=True)
        if storage.is_remote(out):
            storage.remove([out / f"{name}.labels.jsonl"])
    # From the work folder, so that of a killed run nothing half-made stays behind.
    for file_name in (f"{name}.bin", *files):
        os.replace(work / file_name, out / file_name)
        _send(out / file_name)
    part = Part(name, len(reviews), int(reviews[-1]), data.digest())
    with unsynced(note) as file:
        file.write(json.dumps(seal({"part": part._asdict(), "files": files})).encode())
    return Written(part, files)


def _read_done(note: Path) -> Written:
    """What a note says of a part that is written; raises Damaged for a note that is not as it was written."""
    stored = read_json(note, {"part": dict, "files": dict, "checksum": str})
    if not is_sealed(stored) or stored["part"].keys() != set(Part._fields):
        raise Damaged(f"{note} is damaged: its checksum differs")
    return Written(Part(**stored["part"]), stored["files"])
