"""Readers: files of reviews to texts with labels, in two halves, so that much is read in parallel, in little memory.

`chunks` decompresses and cuts at newline bytes, in one process; `parse` reads a chunk anywhere. Nothing is skipped:
every line or row that is not blank is a text, an empty text, or said to be wrong. Invalid UTF-8 is kept.
"""

import ast
import bz2
import contextlib
import csv
import glob
import gzip
import importlib
import io
import json
import numbers
import os
import re
import sys
import textwrap
import warnings
import zlib
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mlstm_jax.config import UserError, require
from mlstm_jax.text import decode, encode

TEXT_KEYS = ("reviewText", "text", "review_body", "sentence", "review", "content")
LABEL_KEYS = ("overall", "rating", "star_rating", "label", "polarity")
KINDS = {
    ".txt": "lines",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}
KNOWN = f"{' '.join(KINDS)} (text also {' '.join(COMPRESSIONS)})"
PIECE = 1 << 18  # bytes that are decompressed at a time
HEAD = 1 << 20  # bytes of whole lines among whose records the keys are looked for
ROW_LINES = 10_000  # that one row of a table may span: a quote that is never closed does not swallow the rest

Row = tuple[int, str | None, str | None, str | None]  # line, text, label, what is wrong; the text or the last is None


class Keys(NamedTuple):
    """Names of the text and of the label in a record; None finds them by their usual names."""

    text: str | None = None
    label: str | None = None


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


def read_texts(path: str | Path, key: str | None = None) -> Iterator[str]:
    """The texts of whatever `sources` takes, in order; `key` names the text in its records.

    Raises UserError as `sources` and `chunks` do, and for the first line that is wrong.
    """
    for index, source in enumerate(sources([str(path)])):
        for chunk in chunks(source, index, Keys(key)):
            for line, text, _, wrong in parse(chunk):
                require(wrong is None, f"{source.name}, line {line}: {wrong}")
                yield text


# What there is to read


def sources(inputs: list[str]) -> list[Source]:
    """Files, folders (all files of a known kind in them), patterns, "-" (standard input), "tfds:NAME[/CONFIG][:SPLIT]".

    Raises UserError for a missing file, an unknown kind, an input that holds nothing, the same file twice.
    """
    require(inputs, "nothing to read; name files, folders, patterns, tfds:NAME or - for standard input")
    found, seen = [source for item in inputs for source in _expand(item)], {}
    for source in found:
        info = os.stat(source.name) if source.time is not None else None
        same = (info.st_dev, info.st_ino) if info else source.name
        require(same not in seen, f"{source.name} is the same input as {seen.get(same)}; name it once")
        seen[same] = source.name
    return found


def _expand(item):
    if item == "-" or item.startswith("tfds:"):
        return [Source(item, "tfds" if item != "-" else "lines", None, None)]
    try:
        if os.path.isdir(item):
            names = _files_in(item)
            require(names, f"{item}: this folder holds no file of a known kind: {KNOWN}")
        elif glob.has_magic(item) and not os.path.exists(item):
            names = sorted(name for name in glob.glob(item, recursive=True) if not os.path.isdir(name))
            require(names, f"no file matches {item}")
        else:
            names = [item]
        return [_file(name) for name in names]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such file: {error.filename}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{item}: {getattr(error, 'strerror', None) or error}") from None


def _files_in(folder):
    def refuse(error):  # os.walk passes over what it may not read, unless it is told
        raise error

    names = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [os.path.join(root, name) for name in files if not name.startswith(".") and _kind(name)[0]]
    return sorted(names)


def _file(name):
    info, (kind, suffix) = os.stat(name), _kind(name)
    require(kind, f"{name}: unknown kind of file {suffix!r}; known are {KNOWN}")
    return Source(name, kind, info.st_size, info.st_mtime_ns)


def _kind(name):
    """A file's kind, or None, and the suffix that says so."""
    path = Path(os.path.basename(name).lower())
    inner = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return None if inner != path.suffix and inner == ".parquet" else KINDS.get(inner), inner or path.suffix


# Chunks


def chunks(source: Source, index: int, keys: Keys, size: int = 16 << 20) -> Iterator[Chunk]:
    """Cut a source into chunks of about `size` bytes; where, depends on its content and on `size` alone.

    Raises UserError for a file that cannot be read or lacks the keys; for one that is damaged, after all before that.
    """
    if source.kind in ("lines", "json"):
        kind, keys, blocks = _line_blocks(source, keys)
        payloads = _cut(blocks, size)
    else:
        kind = source.kind
        keys, rows = {"parquet": _parquet, "tfds": _tfds}.get(kind, _table)(source, keys)
        payloads = _batches(rows, size)
    line = 1
    for number, payload in enumerate(payloads):
        yield Chunk(index, number, line if isinstance(payload, bytes) else payload[0][0], kind, payload, keys)
        line += payload.count(b"\n") if isinstance(payload, bytes) else 0


def _line_blocks(source, keys):
    blocks = _blocks(source)
    head = next(blocks)
    is_json = source.kind == "json" or source.name == "-" and head.lstrip().startswith(b"{")
    if is_json:
        keys = _json_keys(source, head, keys)
    named = "--text-key" if keys.text else "--label-key"
    why = "every line of a .txt file is a text"
    require(is_json or keys == Keys(), f"{source.name}: {named} goes with JSON, CSV, TSV and Parquet; {why}")
    return "json" if is_json else "lines", keys, chain([head], blocks)


def _blocks(source):
    """Whole lines, about 1 MB of them at a time, without a byte order mark; at least one block."""
    blocks = _cut(_pieces(source), HEAD)
    yield next(blocks, b"").removeprefix(BOM_UTF8)
    yield from blocks


def _cut(pieces, size):
    """Join and cut pieces of bytes behind the first newline at which a block has `size` bytes, and at the end."""
    held, searched, damage = bytearray(), 0, None
    try:
        for piece in pieces:
            held += piece
            while (end := held.find(b"\n", max(searched, size - 1)) + 1) > 0:
                yield bytes(held[:end])
                del held[:end]
                searched = 0
            searched = len(held)
    except UserError as error:  # what is whole comes first
        damage = error
        del held[held.rfind(b"\n") + 1 :]
    if held:
        yield bytes(held)
    if damage:
        raise damage


def _batches(rows, size):
    """Lists of rows, about `size` bytes each."""
    batch, held, damage = [], 0, None
    try:
        for row in rows:
            batch.append(row)
            held += 100 + len(row[1] or "")  # a tuple costs about 100 bytes
            if held >= size:
                yield batch
                batch, held = [], 0
    except UserError as error:
        damage = error
    if batch:
        yield batch
    if damage:
        raise damage


def _pieces(source):
    """The bytes of a file or of standard input, decompressed, as they come."""
    suffix = Path(source.name).suffix.lower()
    try:
        if source.name == "-":
            yield from iter(lambda: sys.stdin.buffer.read1(PIECE), b"")
        elif suffix == ".bz2":
            yield from _frames(source.name, bz2.BZ2Decompressor, OSError)
        elif suffix == ".zst":
            zstandard = _optional("zstandard", source.name)
            zstd = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as large as zstd --long makes it
            yield from _frames(source.name, zstd.decompressobj, zstandard.ZstdError)
        else:
            with (gzip.open if suffix == ".gz" else open)(source.name, "rb") as file:
                yield from iter(lambda: file.read1(PIECE), b"")  # read1 gives what there is before what is damaged
        if suffix in COMPRESSIONS and source.size == 0:
            raise EOFError("it is empty")
    except (OSError, EOFError, zlib.error) as error:
        if suffix in COMPRESSIONS and not getattr(error, "errno", None):
            raise UserError(f"{source.name}: not a whole {COMPRESSIONS[suffix]} file ({error})") from None
        raise UserError(f"{source.name}: {getattr(error, 'strerror', None) or error}") from None


def _frames(name, new_frame, refusal):
    """The frames of a file, all of them; raises EOFError for one that is damaged or cut.

    (bz2.open ignores what is damaged behind the first one; zstandard does not notice where one is cut.)
    """
    frame, ended = new_frame(), True
    with open(name, "rb") as file:
        while piece := file.read(1 << 10):  # no more: in zstd 4 bytes may stand for 128 kB
            while piece:
                try:
                    yield frame.decompress(piece)
                except refusal as error:
                    raise EOFError(error) from None
                piece, ended = frame.unused_data, frame.eof
                if ended:
                    frame = new_frame()
    if not ended:
        raise EOFError("it ends within a frame")


def _optional(module, name) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"{name}: reading it takes {package}; pip install 'mlstm-jax[data]'") from None


def _find(there, keys, where, what):
    """The keys by which records are read, given the names that are there."""
    text = keys.text or next((key for key in TEXT_KEYS if key in there), None)
    label = keys.label or next((key for key in LABEL_KEYS if key in there and key != text), None)
    listed = textwrap.shorten(", ".join(there) or "nothing", 300, placeholder=" ...")
    usual = ", ".join(TEXT_KEYS)
    require(text, f"{where}: none of {usual} is here; name the text with --text-key, one of: {listed}")
    for key in filter(None, (text, label)):
        require(key in there, f"{where}: no {what} {key!r}; there are: {listed}")
        require(there.count(key) == 1, f"{where}: more than one {what} is named {key!r}")
    require(text != label, f"{where}: {text!r} cannot be both the text and the label")
    return Keys(text, label)


def _json_keys(source, head, keys):
    """The keys of a file by its first records: some lack the text, so that one record alone does not say."""
    first, there = None, {}
    for number, line in enumerate(head.split(b"\n"), 1):
        record = _record(line.strip()) if line.strip() else None
        if isinstance(record, dict):
            first = first or number
            there |= dict.fromkeys(key for key in record if isinstance(key, str))
    return _find(list(there), keys, f"{source.name}, line {first}", "key") if first else keys


# Tables: rows with the number of their line


def _table(source, keys):
    """The rows of CSV or TSV, below a header."""
    lines = (line for block in _blocks(source) for line in io.StringIO(decode(block), newline="\n"))
    first = next(lines, "")
    dialect = {"delimiter": "\t"} if source.kind == "tsv" else {}
    if first.startswith("marketplace\tcustomer_id\t"):  # Amazon's own files quote nothing
        dialect["quoting"] = csv.QUOTE_NONE
    rows = _csv_rows(chain([first], lines), dialect)
    number, header, wrong = next(rows, (1, [], None))
    where = f"{source.name}, line {number}"
    require(wrong is None, f"{where}: {wrong}")
    keys = _find(header, keys, where, "column")

    def values():
        text, label = header.index(keys.text), header.index(keys.label) if keys.label else None
        for number, row, wrong in rows:
            if wrong is None and len(row) != len(header):
                wrong = f"{len(row)} columns, the header has {len(header)}"
            if wrong:
                yield number, None, None, wrong
            else:
                yield number, row[text], None if label is None else row[label] or None, None

    return keys, values()


def _csv_rows(lines, dialect):
    """First line, fields and what is wrong of every row. Of a wrong row only its first line is given up.

    The lines behind that one are read again: where many of them fail, in shorter rows, so that time stays linear.
    """
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes
    row_lines, again, number, failures = [], deque(), 1, 0

    def feed():
        while (line := again.popleft() if again else next(lines, None)) is not None:
            row_lines.append(line)
            if len(row_lines) > max(1, ROW_LINES >> failures):
                raise csv.Error("a quote is not closed")
            yield line

    reader = csv.reader(feed(), strict=True, **dialect)
    while True:
        row_lines.clear()
        try:
            row, wrong = next(reader, []), None
        except csv.Error as error:
            row, wrong = [], str(error)
            failures += len(row_lines) > 1
            again.extendleft(reversed(row_lines[1:]))
            del row_lines[1:]
            reader = csv.reader(feed(), strict=True, **dialect)
        if not row_lines:
            return
        if row or wrong:
            yield number, row, wrong
        number += len(row_lines)
        failures = failures if again else 0


def _parquet(source, keys):
    pyarrow, parquet = _optional("pyarrow", source.name), _optional("pyarrow.parquet", source.name)

    @contextlib.contextmanager
    def told():
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{source.name}: not a whole Parquet file ({_one_line(error)})") from None

    with told():
        file = parquet.ParquetFile(source.name)
    keys = _find(file.schema_arrow.names, keys, source.name, "column")

    def values():
        number = 0
        with told(), file:
            for batch in file.iter_batches(1024, columns=[key for key in keys if key]):
                columns = [_objects(pyarrow, batch.column(key)) if key else [None] * len(batch) for key in keys]
                for text, label in zip(*columns, strict=True):
                    number += 1
                    yield number, *_values(text, label, keys)

    return keys, values()


def _objects(pyarrow, column):
    """A column's values; text as bytes, since it need not be UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()


def _tfds(source, keys):
    name, _, split = source.name.removeprefix("tfds:").partition(":")
    with _told_by_tfds(source.name):
        import tensorflow_datasets as tfds

        builder = tfds.builder(name)
        if not builder.info.splits:
            refused = name.partition("/")[0] == "amazon_us_reviews"
            require(not refused, f"{source.name}: its owner has withdrawn it since 2023; {INSTEAD}")
            print(f"fetching {name} into {builder.data_path}", file=sys.stderr)
            config = tfds.download.DownloadConfig(try_download_gcs=False)  # what lies there takes TensorFlow
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=config, file_format="array_record")
        stored = builder.info.file_format.value  # tensorflow-datasets' own Parquet files lack rows
        advice = "set TFDS_DATA_DIR to another folder to have it prepared as array_record"
        require(stored == "array_record", f"{source.name}: it is stored as {stored}; {advice}")
        rows = builder.as_data_source(split or "train")
    keys = _find(list(builder.info.features), keys, source.name, "feature")

    def values():
        for start in range(0, len(rows), 1000):
            with _told_by_tfds(source.name):
                some = rows.__getitems__(range(start, min(start + 1000, len(rows))))
                some = [[row[key] if key else None for key in keys] for row in some]
            for number, (text, label) in enumerate(some, start + 1):
                yield number, *_values(text, label.item() if hasattr(label, "item") else label, keys)

    return keys, values()


INSTEAD = "Amazon Reviews 2023 as .jsonl files works, and so does tfds:imdb_reviews"


@contextlib.contextmanager
def _told_by_tfds(name):
    """Whatever tensorflow-datasets raises, in one line: there is no end to the kinds of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"tensorflow-datasets cannot read it without TensorFlow ({_one_line(error)})"
        raise UserError(f"{name}: {why}; {INSTEAD}") from None


def _one_line(error):
    return textwrap.shorten((str(error) or type(error).__name__).strip().partition("\n")[0], 300, placeholder=" ...")


# Chunks to rows


def parse(chunk: Chunk) -> Iterator[Row]:
    """Line, text, label and what is wrong of every line or row that is not blank. Never raises for content."""
    if isinstance(chunk.payload, list):
        yield from chunk.payload
        return
    read = _json_reader(chunk.keys) if chunk.kind == "json" else _line
    for number, line in enumerate(chunk.payload.split(b"\n"), chunk.line):
        if line and not line.isspace():
            yield number, *read(line)


def _line(line):
    return decode(line.removesuffix(b"\r")), None, None


def _json_reader(keys) -> Callable[[bytes], tuple]:
    plain = _plain_record(keys)

    def read(line):
        line = line.strip()
        if line.startswith(b"{'") and plain and (match := plain.fullmatch(line)):
            text, label = match.groups()
            return "" if text is None else _string(text), None if label is None else _plain_label(label), None
        record = _record(line)
        if isinstance(record, str):
            return None, None, record
        if keys.text is None:
            return None, None, "no record near the file's start says where the text is; name it with --text-key"
        return _values(record.get(keys.text), record.get(keys.label), keys)

    return read


def _values(text, label, keys):
    """Text, label and what is wrong, of the values in a record."""
    if isinstance(text, bytes):
        text = decode(text)
    if text is not None and not isinstance(text, str):
        return None, None, f"{keys.text!r} is not a text"
    return text or "", _label(label), None


def _label(value):
    """A label as text: a text, or a number of at most 64 bits (JSON's readers differ on larger ones)."""
    if isinstance(value, bytes):
        return decode(value)
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, numbers.Number) and abs(value) < 2**63 else None


def _record(line: bytes) -> dict[Any, Any] | str:
    """The record of a stripped line, or what is wrong with it."""
    try:
        record = _loads()(line)
    except (ValueError, RecursionError):  # orjson refuses some that we take: NaN, lone surrogates, invalid UTF-8
        try:
            record = json.loads(decode(line))
        except (ValueError, RecursionError) as error:
            record = _python(line)
            if record is None:
                return f"not JSON ({getattr(error, 'msg', error)}); one object a line is read"
    return record if isinstance(record, dict) else "not a JSON object; one object a line is read"


@cache
def _loads() -> Callable[[bytes], Any]:
    try:
        import orjson
    except ImportError:
        return lambda line: json.loads(decode(line))
    return orjson.loads


# "Loose" JSON: the dicts of Python in which Amazon's reviews of 2014 are printed

_INVALID = re.compile(r"(?<!\\)((?:\\\\)*+)([\udc80-\udcff])")


def _python(line: bytes) -> Any:
    """What `ast.literal_eval` makes of a line, or None; invalid UTF-8, which it refuses, is kept."""
    if not line.startswith(b"{"):
        return None
    source = _INVALID.sub(lambda found: f"{found[1]}\\u{ord(found[2]):x}", decode(line))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on escapes that Python does not know
            return ast.literal_eval(source)
    except Exception:  # syntax, depth, memory, unhashable keys: all say the same
        return None


# The same at forty times the speed, for lines that hold nothing special: no string that is prefixed, tripled, joined to
# the next or escaped in a rare way. All quantifiers are possessive or bounded: nothing is tried twice.
_BODY = r"""[^"\\\r\0]*+(?:\\(?:['"\\abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})[^"\\\r\0]*+)*+"""
_STRING = f"""(?:"{_BODY}"|'{_BODY.replace('[^"', "[^'")}')"""
_NAME = r"""(?:"[^"\\\r\0]*+"|'[^'\\\r\0]*+')"""
_NUMBER = r"-?(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,18}+)?+(?:[eE][-+]?[0-9]{1,3}+)?+"
_ATOM = f"(?:{_STRING}|{_NUMBER}|None|True|False)"
_LIST = rf"\[(?:{_ATOM}(?:, *+{_ATOM})*+)?+\]"
_DICT = rf"\{{(?:{_NAME}: *+{_ATOM}(?:, *+{_NAME}: *+{_ATOM})*+)?+\}}"


@lru_cache
def _plain_record(keys) -> re.Pattern[bytes] | None:
    """Matches plain records; its groups are the last text and the last label. None for keys that are not plain."""
    if not all(key is None or key.isidentifier() for key in keys):
        return None
    text, label = (f"""(?:'{key}'|"{key}")""" if key else "(?!)" for key in keys)
    other = rf"(?!{text}|{label}){_NAME}: *+(?:{_ATOM}|{_LIST}|{_DICT})"
    item = rf"(?:{text}: *+({_STRING})|{label}: *+({_ATOM})|{other})"
    return re.compile(encode(rf"\{{(?:{item}(?:, *+|(?=\}})))*+\}}"))


def _string(literal: bytes) -> str:
    body = literal[1:-1]
    if b"\\" not in body:
        return decode(body)
    return decode(body).encode("ascii", "backslashreplace").decode("unicode_escape")  # as Python does it


@lru_cache
def _plain_label(literal: bytes) -> str | None:
    return _string(literal) if literal[:1] in b"'\"" else _label(ast.literal_eval(literal.decode()))
