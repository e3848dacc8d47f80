"""Records: a line of JSON, strict or as Python prints a dict, to its text and its label."""

import ast
import json
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from mlstm_jax.corpus.columns import Keys, find_keys
from mlstm_jax.signals import undisturbed
from mlstm_jax.text import to_bytes, to_text

LITERAL = 1 << 20  # bytes of a line that Python's own parser is given: it may take 500 times as much memory


Read = tuple[str | None, str | None, str | None, dict[str, Any]]  # text, label, what is wrong, all cells if asked for


def keys_of_lines(head: bytes, keys: Keys, name: str) -> tuple[Keys, list[str]]:
    """The keys of a file by its first lines, and all names there: some records lack the text, one alone says little."""
    first, there = None, {}
    for number, line in enumerate(head.split(b"\n"), 1):
        record = _record(line.strip()) if line.strip() else None
        if isinstance(record, dict):
            first = first or number
            there |= dict.fromkeys(key for key in record if isinstance(key, str))
    return find_keys(list(there), keys, f"{name}, line {first}", "key") if first else keys, list(there)


def line_reader(keys: Keys, whole: bool = False) -> Callable[[bytes], Read]:
    """Reads a line that is not blank; its text, or what is wrong, is None. Never raises. `whole` keeps all cells."""
    plain = None if whole else _plain_record(keys)

    def read(line: bytes) -> Read:
        line = line.strip()
        if line.startswith(b"{'") and plain and (match := plain.fullmatch(line)):
            text, label = match.groups()
            return "" if text is None else _string(text), None if label is None else _plain_label(label), None, {}
        record = _record(line, exact=whole)
        if isinstance(record, str):
            return None, None, record, {}
        cells = {str(key): as_cell(value) for key, value in record.items()} if whole else {}
        if keys.text is None:
            nowhere = "no record near the file's start says where the text is; name it with `text_key`"
            return None, None, nowhere, cells
        return *values(record.get(keys.text), record.get(keys.label), keys), cells

    return read


def values(text: Any, label: Any, keys: Keys) -> tuple[str | None, str | None, str | None]:
    """Text, label and what is wrong, of the values in a record; the text or the last is None."""
    if isinstance(text, bytes):
        text = to_text(text)
    if text is not None and not isinstance(text, str):
        return None, None, f"{keys.text!r} is not a text"
    return text or "", _label(label), None


def as_cell(value: Any) -> Any:
    """A value as a cell keeps it: what JSON can hold; what it cannot, as a date, as text."""
    if isinstance(value, bytes):
        return to_text(value)
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return json.loads(json.dumps(value, default=_as_text))
    except (TypeError, ValueError, RecursionError):
        return reprlib.repr(value)


def size_of(cells: Mapping[str, Any]) -> int:
    """Characters of a row's cells, about: what they take in memory and in a file."""
    return sum(len(cell) if isinstance(cell, str) else len(repr(cell)) for cell in cells.values())


def _as_text(value: Any) -> Any:
    return to_text(value) if isinstance(value, bytes) else value.tolist() if hasattr(value, "tolist") else str(value)


def _label(value: Any) -> str | None:
    """A label as text: a text, or a number of at most 64 bits (JSON's readers differ on larger ones)."""
    if isinstance(value, bytes):
        return to_text(value)
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float | Decimal) and abs(value) < 2**63 else None


def _record(line: bytes, exact: bool = False) -> dict[Any, Any] | str:
    """The record of a stripped line, or what is wrong with it; `exact` keeps whole numbers of any length."""
    try:
        record = json.loads(to_text(line), strict=False) if exact else _loads()(line)
    except (ValueError, RecursionError):  # orjson refuses some that we take: NaN, raw tabs, lone surrogates, no UTF-8
        try:
            record = json.loads(to_text(line), strict=False)
        except (ValueError, RecursionError) as error:
            record = _python(line)
            if record is None:
                return f"not JSON ({getattr(error, 'msg', error)}); one object a line is read"
    return record if isinstance(record, dict) else "not a JSON object; one object a line is read"


@cache
def _loads() -> Callable[[bytes], Any]:
    try:
        with undisturbed():  # an exception from outside while it is imported is a crash
            import orjson
    except ImportError:
        return lambda line: json.loads(to_text(line), strict=False)
    return orjson.loads


# "Loose" JSON: the dicts of Python in which Amazon's reviews of 2014 are printed

_PRINTED = re.compile(rb"\{\s*+[uUbBrR]{0,2}'")
_INVALID = re.compile(r"(?<!\\)((?:\\\\)*+)([\udc80-\udcff])")


def _python(line: bytes) -> Any:
    """What `ast.literal_eval` makes of a line, or None; invalid UTF-8, which it refuses, is kept.

    Only of a line whose first key is quoted as Python alone does it: the escapes of JSON mean something else in Python.
    """
    if not _PRINTED.match(line) or len(line) > LITERAL:
        return None
    source = _INVALID.sub(lambda found: f"{found[1]}\\u{ord(found[2]):x}", to_text(line))
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
def _plain_record(keys: Keys) -> re.Pattern[bytes] | None:
    """Matches plain records; its groups are the last text and the last label. None for keys that are not plain."""
    if not all(key is None or key.isidentifier() for key in keys):
        return None
    text, label = (f"""(?:'{key}'|"{key}")""" if key else "(?!)" for key in keys)
    other = rf"(?!{text}|{label}){_NAME}: *+(?:{_ATOM}|{_LIST}|{_DICT})"
    item = rf"(?:{text}: *+({_STRING})|{label}: *+({_ATOM})|{other})"
    return re.compile(to_bytes(rf"\{{(?:{item}(?:, *+|(?=\}})))*+\}}"))


def _string(literal: bytes) -> str:
    body = literal[1:-1]
    if b"\\" not in body:
        return to_text(body)
    return to_text(body).encode("ascii", "backslashreplace").decode("unicode_escape")  # as Python does it


@lru_cache
def _plain_label(literal: bytes) -> str | None:
    return _string(literal) if literal[:1] in b"'\"" else _label(ast.literal_eval(literal.decode()))
