"""Readers: files of reviews to texts with labels, in two halves, so that much is read in parallel, in little memory.

`chunks` decompresses and cuts at newline bytes, in one process; `parse` reads a chunk anywhere. Nothing is skipped:
every line or row that is not blank is a text, an empty text, or reported as wrong. Invalid UTF-8 is kept.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from mlstm_jax import storage
from mlstm_jax.corpus import line_labels, tables, workbooks
from mlstm_jax.corpus.columns import Keys
from mlstm_jax.corpus.lines import COMPRESSIONS, LINE, TOO_LONG, blocks, cut, kept, opened, require_known
from mlstm_jax.corpus.records import keys_of_lines, line_reader, size_of
from mlstm_jax.corpus.tables import NO_CELLS, Row
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
    ".xlsx": "xlsx",
}
PACKED = (".parquet", ".xlsx")  # they are compressed as they are
KNOWN = f"{' '.join(KINDS)} (text also {' '.join(COMPRESSIONS)})"


class Source(NamedTuple):
    """Something to read: a file, "-" or "tfds:..."; bytes and time of change (ns) of a file."""

    name: str
    kind: str
    size: int | None
    time: int | None
    encoding: str | None = None
    """Of a file of text; None finds UTF-8, UTF-16 and UTF-32."""


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
    names: tuple[str, ...] | None = None
    """The names of all columns, of JSON those near the file's start, where rows are to be kept whole."""


def read_texts(
    path: str | Path,
    key: str | None = None,
    on_error: Literal["skip", "fail"] = "fail",
    log: Callable[[str], None] = lambda line: None,
    encoding: str | None = None,
) -> Iterator[str]:
    """The texts of whatever `sources` takes, in order; `key` names the text in its records.

    Says what is left out. Raises UserError as `sources` and `chunks` do, and for the first line that is wrong; with
    "skip" for a source more than half of whose lines are.
    """
    for index, source in enumerate(sources([str(path)], encoding)):
        count, bad, why = 0, [], ""
        for chunk in chunks(source, index, Keys(key), log=log):
            for line, text, _, wrong, _ in parse(chunk):
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


def _labels_within(source: Source, chunk: Chunk) -> str | None:
    """What people should know of a text file whose lines hold labels; else None."""
    if chunk.kind == "lines" and chunk.keys.label:
        kind = f"its lines hold labels ({chunk.keys.label}); they are split off, and no part of the texts"
        return f"{source.name}: {kind}"
    return None


_NO_TEXT = re.compile("[\udc80-\udcff]")  # bytes that are not of the encoding, as `text.to_text` keeps them


def _other_encoding(source: Source, chunk: Chunk) -> str | None:
    """What people should know of a chunk that holds bytes which are not of its encoding; else None."""
    if isinstance(chunk.payload, bytes):
        try:
            chunk.payload.decode()
            return None
        except UnicodeDecodeError as error:
            line = chunk.line + chunk.payload.count(b"\n", 0, error.start)
    else:
        of_text = (row.line for row in chunk.payload if not row.text.isascii() and _NO_TEXT.search(row.text))
        line = next(of_text, None)
        if line is None:
            return None
    held = f"it holds bytes that are not {source.encoding or 'UTF-8'}, which are kept as they are"
    name = "name another `encoding`" if source.encoding else "name its `encoding`, as windows-1252"
    return f"{source.name}, line {line}: {held}; if letters look wrong, {name}"


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


def sources(inputs: list[str], encoding: str | None = None) -> list[Source]:
    """Files, folders (all files of a known kind in them), patterns, "-" (standard input), "tfds:NAME[/CONFIG][:SPLIT]".

    Raises UserError for a missing file, an unknown kind or encoding, an input that holds nothing, the same file twice.
    """
    if not inputs:
        raise UserError("nothing to read; name files, folders, patterns, tfds:NAME or - for standard input")
    require_known(encoding)
    found, seen = [source._replace(encoding=encoding) for item in inputs for source in _expand(item)], {}
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
    item = storage.fetched(item)
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
        kept = (name for name in files if not name.startswith((".", "~$")))  # the latter are Excel's, of open files
        names += [os.path.join(root, name) for name in kept if _kind(name)[0]]
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
        return source.time is None or _file(source.name)._replace(encoding=source.encoding) == source
    except OSError:
        return False


def _kind(name: str) -> tuple[str | None, str]:
    """A file's kind, or None, and the suffix that says so."""
    path = Path(os.path.basename(name).lower())
    inner = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return None if inner != path.suffix and inner in PACKED else KINDS.get(inner), inner or path.suffix


# Chunks


def chunks(
    source: Source,
    index: int,
    keys: Keys,
    size: int = 16 << 20,
    whole: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Generator[Chunk, None, None]:
    """Cut a source into chunks of about `size` bytes; where, depends on its content and on `size` alone.

    With `whole`, rows keep all cells. `log` is told, once each, what people should know of the source. Raises UserError
    for a file that cannot be read or lacks the keys; for one that is damaged, after all before that.
    """
    read = {"parquet": _parquet, "tfds": _dataset, "xlsx": _workbook}.get(source.kind, _file_of_lines)
    line, before, untold = 1, 0, [_labels_within, _other_encoding]
    for number, (kind, found, payload, place, names) in enumerate(read(source, keys, size, whole, log)):
        line = line if isinstance(payload, bytes) else payload[0].line
        names = tuple(names) if whole else None
        chunk = Chunk(index, number, line, kind, payload, found, place - before, names)
        for note in [*untold]:
            if words := note(source, chunk):
                log(words)
                untold.remove(note)
        yield chunk
        line += payload.count(b"\n") if isinstance(payload, bytes) else 0
        before = place


class Payload(NamedTuple):
    """Of a chunk; how much of the stored file has been read by then; names of columns, of JSON near the start."""

    kind: str
    keys: Keys
    payload: bytes | list[Row]
    place: int
    names: list[str]


def _file_of_lines(source: Source, keys: Keys, size: int, whole: bool, log: Callable[[str], None]) -> Iterator[Payload]:
    with opened(source.name) as file:
        found = blocks(file, source.name, source.kind == "json" or source.name == "-", source.encoding)
        kind = source.kind
        if kind in ("csv", "tsv"):
            keys, names, rows = tables.separated(found, "\t" if kind == "tsv" else ",", keys, source.name, whole, log)
            payloads = _batches(rows, size)
        else:
            head, names = next(found), []
            if source.name == "-" and head.lstrip().startswith(b"{"):
                kind = "json"
            if kind == "json":
                keys, names = keys_of_lines(head, keys, source.name)
            named, why = "`text_key`" if keys.text else "`label_key`", "every line of a .txt file is a text"
            fits = kind == "json" or keys == Keys()
            if not fits:
                raise UserError(f"{source.name}: {named} goes with JSON, CSV, TSV and Parquet; {why}")
            if kind == "lines":
                keys = Keys(None, line_labels.layout(head))
                names = ["text"] + ["label"] * (keys.label is not None)
            payloads = cut(chain([head], found), size)
        for payload in payloads:
            yield Payload(kind, keys, payload, 0 if source.size is None else file.tell(), names)


def _parquet(source: Source, keys: Keys, size: int, whole: bool, log: Callable[[str], None]) -> Iterator[Payload]:
    with opened(source.name):  # says what is wrong with any file
        pass
    (keys, names, rows), count = tables.parquet(source.name, keys, whole)
    for payload in _batches(rows, size):
        yield Payload(source.kind, keys, payload, (source.size or 0) * payload[-1].line // count, names)


def _workbook(source: Source, keys: Keys, size: int, whole: bool, log: Callable[[str], None]) -> Iterator[Payload]:
    with opened(source.name):
        pass
    (keys, names, rows), count = workbooks.workbook(source.name, keys, whole, log)
    for payload in _batches(rows, size):
        place = min(payload[-1].line, count) / max(1, count)  # what a sheet says of its rows need not be so
        yield Payload(source.kind, keys, payload, int((source.size or 0) * place), names)


def _dataset(source: Source, keys: Keys, size: int, whole: bool, log: Callable[[str], None]) -> Iterator[Payload]:
    keys, names, rows = tables.dataset(source.name, keys, whole)
    for payload in _batches(rows, size):
        yield Payload(source.kind, keys, payload, 0, names)


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of rows, about `size` bytes each; the last comes when the rows have ended, as with `cut`."""
    batch, held, damage = [], 0, None
    try:
        for row in rows:
            if held >= size:
                yield batch
                batch, held = [], 0
            batch.append(row)
            held += 100 + len(row.text) + size_of(row.cells)  # a tuple costs about 100 bytes
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
    whole = chunk.names is not None
    read = line_reader(chunk.keys, whole) if chunk.kind == "json" else partial(_plain_text, layout=chunk.keys.label)
    for number, line in enumerate(chunk.payload.split(b"\n"), chunk.line):
        if len(line) > LINE:
            yield Row(number, kept(line), None, TOO_LONG)
        elif line and not line.isspace():
            text, label, wrong, cells = read(line)
            yield Row(number, to_text(line) if text is None else text, label, wrong, cells if whole else NO_CELLS)


def _plain_text(line: bytes, layout: str | None) -> tuple[str, str | None, None, dict[str, str | None]]:
    """A line of text, its label where the file has some, nothing wrong, and both as cells."""
    text, label = (to_text(line.removesuffix(b"\r")), None) if layout is None else line_labels.split(line, layout)[:2]
    return text, label, None, {"text": text} | ({} if layout is None else {"label": label})
