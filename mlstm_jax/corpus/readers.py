"""Readers: files of reviews to an iterator of texts. Lines are split at newline bytes alone; invalid UTF-8 is kept."""

import csv
import gzip
import io
import json
import sys
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
    require(path.exists(), f"no such file: {path}")
    require(path.is_file(), f"{path} is not a file; name a .txt, .json, .jsonl or .csv file (also .gz)")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = {".txt": _lines, ".json": _json, ".jsonl": _json, ".ndjson": _json, ".csv": _csv}.get(kind)
    require(reader is not None, f"{path}: unknown kind of file {kind!r}; known are .txt .json .jsonl .ndjson .csv, also with .gz")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield from reader(path, file, key)
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _lines(path, file, key):
    require(key is None, f"{path}: --text-key goes with JSON and CSV; every line of a .txt file is a text")
    for line in file:
        yield decode(line)


def _json(path, file, key):
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(decode(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        require(isinstance(record, dict), f"{path}, line {number}: not a JSON object")
        key = key or _find_key(f"{path}, line {number}", record)
        require(key in record, f"{path}, line {number}: no key {key!r}; there are: {', '.join(record)}")
        require(isinstance(record[key], str), f"{path}, line {number}: {key!r} is not a text")
        yield record[key]


def _csv(path, file, key):
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    rows = csv.reader(text)
    try:
        header = next(rows, [])
        if header:
            header[0] = header[0].removeprefix("\ufeff")
        key = key or _find_key(f"{path}, its first line", header)
        require(key in header, f"{path}: no column {key!r}; there are: {', '.join(header)}")
        column = header.index(key)
        for row in rows:
            if row:
                require(len(row) > column, f"{path}, line {rows.line_num}: {len(row)} columns, {key!r} is number {column + 1}")
                yield row[column]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None


def _find_key(where, record):
    found = next((k for k in TEXT_KEYS if k in record), None)
    require(found is not None, f"{where}: none of {', '.join(TEXT_KEYS)} is here; name the text with --text-key, one of: {', '.join(record)}")
    return found
