"""Readers: files of reviews to texts with labels, in two halves, so that much is read in parallel, in little memory.

`chunks` decompresses and cuts at newline bytes, in one process; `parse` reads a chunk anywhere. Nothing is skipped:
every line or row that is not blank is a text, an empty text, or reported as wrong. Invalid UTF-8 is kept.
"""

import glob
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from mlstm_jax.corpus import line_labels, tables
from mlstm_jax.corpus.columns import Keys
from mlstm_jax.corpus.lines import COMPRESSIONS, LINE, TOO_LONG, blocks, cut, kept, opened
from mlstm_jax.corpus.records import keys_of_lines, line_reader
from mlstm_jax.corpus.tables import Row
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_text

KINDS = {
    ".txt": "lines",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
KNOWN = f"{' '.join(KINDS)} (text also {' '.join(COMPRESSIONS)})"


class Source(NamedTuple):
    """Something to read: a file, "-" or "tfds:..."; bytes and time of change (ns) of a file."""

    name: str
    kind: str
    size: int | None
    time: int | None


class Chunk(NamedTuple):
    """A part of a source: whole lines as bytes, or rows of a table; the number of its first line or row, from 1."""

    source: int
    number: int
    line: int
    kind: str
    payload: bytes | list[Row]
    keys: Keys
    read: int = 0
    """Bytes of the file, as it is stored, since the chunk before; together they are its size. 0 where it has none."""


def read_texts(
    path: str | Path,
    key: str | None = None,
    on_error: Literal["skip", "fail"] = "fail",
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The texts of whatever `sources` takes, in order; `key` names the text in its records.

    Says what is left out. Raises UserError as `sources` and `chunks` do, and for the first line that is wrong; with
    "skip" for a source more than half of whose lines are.
    """
    for index, source in enumerate(sources([str(path)])):
        count, bad, why = 0, [], ""
        for chunk in chunks(source, index, Keys(key)):
            if words := labels_within(source, chunk):
                log(words)
            for line, text, _, wrong in parse(chunk):
                count += 1
                if wrong is None:
                    yield text
                else:
                    if on_error != "skip":
                        raise UserError(f"{source.name}, line {line}: {wrong}")
                    bad.append(line)
                    why = why or wrong
        require_most_readable(source, count, bad, why)
        if bad:
            log(left_out(source, {cannot_be_read(why): bad}))


# Notes on a source


def labels_within(source: Source, chunk: Chunk) -> str | None:
    """What people should know of a text file whose lines hold labels, with its first chunk; else None."""
    if chunk.kind == "lines" and chunk.keys.label and chunk.number == 0:
        kind = f"its lines hold labels ({chunk.keys.label}); they are split off, and no part of the texts"
        return f"{source.name}: {kind}"
    return None


def left_out(source: Source, lines: dict[str, list[int]]) -> str:
    """Lines of a source that are left out, by what is wrong with them: how many, and the first."""
    first = lambda found: ", ".join(map(str, found[:3])) + " ..." * (len(found) > 3)
    notes = (f"{len(found):,} {what}, line{'s' * (len(found) > 1)} {first(found)}" for what, found in lines.items())
    return f"{source.name}: rows left out: {'; '.join(notes)}"


def cannot_be_read(why: str) -> str:
    """What is said of lines that are wrong, and why the first of them is."""
    return f"that cannot be read (the first: {why})"


def require_most_readable(source: Source, count: int, bad: list[int], why: str) -> None:
    """Raise UserError where more than half of a source's lines are wrong."""
    if 2 * len(bad) > count:
        most = f"{len(bad):,} of {count:,} rows cannot be read"
        raise UserError(f"{source.name}: {most}; the first is line {bad[0]}: {why}")


# What there is to read


def sources(inputs: list[str]) -> list[Source]:
    """Files, folders (all files of a known kind in them), patterns, "-" (standard input), "tfds:NAME[/CONFIG][:SPLIT]".

    Raises UserError for a missing file, an unknown kind, an input that holds nothing, the same file twice.
    """
    if not inputs:
        raise UserError("nothing to read; name files, folders, patterns, tfds:NAME or - for standard input")
    found, seen = [source for item in inputs for source in _expand(item)], {}
    for source in found:
        same = source.name if source.time is None else _identity(source.name)
        if same in seen:
            raise UserError(f"{source.name} is the same input as {seen.get(same)}; name it once")
        seen[same] = source.name
    return found


def _identity(name: str) -> tuple[int, int]:
    info = os.stat(name)
    return info.st_dev, info.st_ino


def _expand(item: str) -> list[Source]:
    if item == "-" or item.startswith("tfds:"):
        return [Source(item, "tfds" if item != "-" else "lines", None, None)]
    try:
        if os.path.isdir(item):
            names = _files_in(item)
            if not names:
                raise UserError(f"{item}: this folder holds no file of a known kind: {KNOWN}")
        elif glob.has_magic(item) and not os.path.exists(item):
            names = sorted(name for name in glob.glob(item, recursive=True) if not os.path.isdir(name))
            if not names:
                raise UserError(f"no file matches {item}")
        else:
            names = [item]
        return [_file(name) for name in names]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such file: {error.filename}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{item}: {getattr(error, 'strerror', None) or error}") from None


def _files_in(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:  # os.walk ignores errors by default
        raise error

    names, seen = [], {_identity(folder)}
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = []
        for name in here:  # links are followed, but not in a circle
            if (same := _identity(os.path.join(root, name))) not in seen:
                seen.add(same)
                folders.append(name)
        names += [os.path.join(root, name) for name in files if not name.startswith(".") and _kind(name)[0]]
    return sorted(names)


def _file(name: str) -> Source:
    info, (kind, suffix) = os.stat(name), _kind(name)
    if not kind:
        raise UserError(f"{name}: unknown kind of file {suffix!r}; known are {KNOWN}")
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{name} is no file but a pipe or a device; give it to standard input: - < {name}")
    return Source(name, kind, info.st_size, info.st_mtime_ns)


def unchanged(source: Source) -> bool:
    """Whether a file has still the size and the time with which it was found; what is no file cannot tell."""
    try:
        return source.time is None or _file(source.name) == source
    except OSError:
        return False


def _kind(name: str) -> tuple[str | None, str]:
    """A file's kind, or None, and the suffix that says so."""
    path = Path(os.path.basename(name).lower())
    inner = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return None if inner != path.suffix and inner == ".parquet" else KINDS.get(inner), inner or path.suffix


# Chunks


def chunks(source: Source, index: int, keys: Keys, size: int = 16 << 20) -> Generator[Chunk, None, None]:
    """Cut a source into chunks of about `size` bytes; where, depends on its content and on `size` alone.

    Raises UserError for a file that cannot be read or lacks the keys; for one that is damaged, after all before that.
    """
    parts = {"parquet": _parquet, "tfds": _dataset}.get(source.kind, _file_of_lines)(source, keys, size)
    line, before = 1, 0
    for number, (kind, found, payload, place) in enumerate(parts):
        line = line if isinstance(payload, bytes) else payload[0][0]
        yield Chunk(index, number, line, kind, payload, found, place - before)
        line += payload.count(b"\n") if isinstance(payload, bytes) else 0
        before = place


# Kind, keys and payload of every chunk, and how much of the stored file has been read by then
Payload = tuple[str, Keys, bytes | list[Row], int]


def _file_of_lines(source: Source, keys: Keys, size: int) -> Iterator[Payload]:
    with opened(source.name) as file:
        found = blocks(file, source.name, source.kind == "json" or source.name == "-")
        kind = source.kind
        if kind in ("csv", "tsv"):
            keys, rows = tables.separated(found, "\t" if kind == "tsv" else ",", keys, source.name)
            payloads = _batches(rows, size)
        else:
            head = next(found)
            if source.name == "-" and head.lstrip().startswith(b"{"):
                kind = "json"
            if kind == "json":
                keys = keys_of_lines(head, keys, source.name)
            named, why = "`text_key`" if keys.text else "`label_key`", "every line of a .txt file is a text"
            fits = kind == "json" or keys == Keys()
            if not fits:
                raise UserError(f"{source.name}: {named} goes with JSON, CSV, TSV and Parquet; {why}")
            if kind == "lines":
                keys = Keys(None, line_labels.layout(head))
            payloads = cut(chain([head], found), size)
        for payload in payloads:
            yield kind, keys, payload, 0 if source.size is None else file.tell()


def _parquet(source: Source, keys: Keys, size: int) -> Iterator[Payload]:
    with opened(source.name):  # says what is wrong with any file
        pass
    keys, rows, count = tables.parquet(source.name, keys)
    for payload in _batches(rows, size):
        yield source.kind, keys, payload, (source.size or 0) * payload[-1][0] // count


def _dataset(source: Source, keys: Keys, size: int) -> Iterator[Payload]:
    keys, rows = tables.dataset(source.name, keys)
    for payload in _batches(rows, size):
        yield source.kind, keys, payload, 0


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of rows, about `size` bytes each; the last comes when the rows have ended, as with `cut`."""
    batch, held, damage = [], 0, None
    try:
        for row in rows:
            if held >= size:
                yield batch
                batch, held = [], 0
            batch.append(row)
            held += 100 + len(row[1])  # a tuple costs about 100 bytes
    except UserError as error:
        damage = error
    if batch:
        yield batch
    if damage:
        raise damage


# Chunks to rows


def parse(chunk: Chunk) -> Iterator[Row]:
    """Line, text, label and what is wrong of every line or row that is not blank; of a wrong one its data for the text.

    Never raises for content.
    """
    if isinstance(chunk.payload, list):
        yield from chunk.payload
        return
    if chunk.kind == "json":
        read = line_reader(chunk.keys)
    else:
        read = partial(line_labels.split, name=chunk.keys.label) if chunk.keys.label else _line
    for number, line in enumerate(chunk.payload.split(b"\n"), chunk.line):
        if len(line) > LINE:
            yield number, kept(line), None, TOO_LONG
        elif line and not line.isspace():
            text, label, wrong = read(line)
            yield number, to_text(line) if text is None else text, label, wrong


def _line(line: bytes) -> tuple[str, None, None]:
    return to_text(line.removesuffix(b"\r")), None, None
