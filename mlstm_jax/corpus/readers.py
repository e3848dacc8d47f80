"""Readers: files of reviews to an iterator of texts. Lines are split at newline bytes alone; invalid UTF-8 is kept."""

import csv
import gzip
import io
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from mlstm_jax.config import UserError, require
from mlstm_jax.text import decode

TEXT_KEYS = ("reviewText", "text", "review_body", "sentence", "review", "content")


def read_texts(path: str | Path, key: str | None = None) -> Iterator[str]:
    """The texts of a .txt, .json, .jsonl, .ndjson or .csv file, plain or .gz, in file order.

    `key` names the JSON key or CSV column of the text; None takes the first of TEXT_KEYS that the first record has.
    Raises UserError for a missing file, an unknown kind of file, a record without the key, a line that is not JSON.
    """
    path = Path(path)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    reader = {".txt": _lines, ".json": _json, ".jsonl": _json, ".ndjson": _json, ".csv": _csv}.get(kind)
    try:
        require(path.exists(), f"no such file: {path}")
        require(path.is_file(), f"{path} is not a file; name a .txt, .json, .jsonl or .csv file (also .gz)")
        require(reader, f"{path}: unknown kind of file {kind!r}; known are .txt .json .jsonl .ndjson .csv (also .gz)")
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            yield from reader(path, file, key)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _lines(path, file, key):
    require(key is None, f"{path}: --text-key goes with JSON and CSV; every line of a .txt file is a text")
    for line in file:
        yield decode(line.rstrip(b"\r\n"))


def _json(path, file, key):
    for number, line in enumerate(file, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(decode(line.strip()))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({getattr(error, 'msg', error)}); one object a line is read") from None
        require(isinstance(record, dict), f"{where}: not a JSON object; one object a line is read")
        key = key or _find_key(where, record)
        require(key in record, f"{where}: no key {key!r}; there are: {', '.join(record)}")
        require(isinstance(record[key], str), f"{where}: {key!r} is not a text")
        yield record[key]


def _csv(path, file, key):
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes
    with io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, strict=True)  # a quote that is never closed would swallow the rest
        try:
            header = next(rows, [])
            key = key or _find_key(f"{path}, line 1", header)
            require(key in header, f"{path}, line 1: no column {key!r}; there are: {', '.join(header) or 'none'}")
            column = header.index(key)
            for row in rows:
                if row:
                    where = f"{path}, line {rows.line_num}"
                    require(len(row) > column, f"{where}: {len(row)} columns, {key!r} is number {column + 1}")
                    yield row[column]
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}") from None


def _find_key(where, record):
    found = next((k for k in TEXT_KEYS if k in record), None)
    known, there = ", ".join(TEXT_KEYS), ", ".join(record) or "nothing"
    require(found, f"{where}: none of {known} is here; name the text with --text-key, one of: {there}")
    return found
