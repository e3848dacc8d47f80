"""Dialects of CSV and TSV: detected from a file's first lines; lines in a dialect to rows."""

import csv
import io
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

from mlstm_jax.corpus.lines import HEAD, LINE, TOO_LONG
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_bytes, to_text

ROW_LINES = 10_000  # that one row may span: a quote that is never closed does not swallow the rest
DELIMITERS = ",;\t|"
MANY = 1000  # rows that do not fit a dialect: no more of them are counted


@dataclass(frozen=True)
class Dialect:
    """How rows and cells are written; `start` is the line of the first row, from 1, `end` what ends a row.

    With `quotes`, a cell may stand in quotes; else they are text, as in the TSV files of GLUE, IMDb and Amazon. With
    `escapes`, a quote in a cell (and without `quotes` a delimiter and a newline) stands behind a backslash, else it is
    doubled.
    """

    delimiter: str
    quotes: bool = True
    escapes: bool = False
    end: bytes = b"\n"
    start: int = 1


def recognise(head: bytes, delimiter: str = ",", name: str = "") -> Dialect:
    """The dialect that a file's first lines contradict least; `delimiter` where the first row holds none.

    Of several that nothing contradicts: one with backslashes (all of them stand where it has them), then doubled
    quotes, then none. Raises UserError, which begins with `name`, for backslashes that are not everywhere as they
    should be, where they hide where the cells and rows end that fit the first one.
    """
    best, least = Dialect(delimiter), math.inf
    for dialect in _candidates(head, delimiter):
        count = _contradictions(head, dialect)
        if count and dialect.end != best.end and least < math.inf:
            continue  # against a first row that ends in \r\n, only what nothing contradicts
        if count < least or (count == least and best.escapes):
            best, least = dialect, count
        if count == 0:
            break
    if least and b"\\" in head and _hides(head, best, least):
        escapes = f"{name}: its quotes, or delimiters in cells, stand behind backslashes, but not all of them"
        raise UserError(f"{escapes}; write it with doubled quotes")
    return best


def _hides(head: bytes, dialect: Dialect, contradictions: float) -> bool:
    """Whether rows that fit may be others, or parts of others, by the backslashes in them or before them.

    They may where no more rows fit than contradict the dialect.
    """
    there, columns, fit = list(lines([head], dialect)), None, 0
    for number, row, data, wrong in rows(iter(there), dialect):
        columns = len(row) if columns is None else columns
        before = there[number - dialect.start - 1] if number > dialect.start else b""
        if not wrong and len(row) == columns:
            fit += 1
            if (dialect.escapes and b"\\" in data) or before.rstrip(b"\r\n").endswith(b"\\"):
                return True
    return fit <= contradictions


def _candidates(head: bytes, delimiter: str) -> Iterator[Dialect]:
    named = _SEP.match(head)
    among = [to_text(named[1])] if named else dict.fromkeys(delimiter + DELIMITERS)
    ends = [b"\r"] if _RETURN.match(head) else [b"\n", b"\r"] if _ALONE.search(head) else [b"\n"]
    for end in ends:
        plain = [Dialect(delimiter, start=2 if named else 1, end=end) for delimiter in among]
        first = [next(rows(lines([head], dialect), dialect), (1, [], b"", None)) for dialect in plain]
        some = [(dialect, row) for dialect, row in zip(plain, first, strict=True) if len(row[1]) > 1]
        for dialect, (_, names, data, wrong) in some or [(plain[0], first[0])]:
            if end == b"\r" and b"\n" in data and b'"' not in data:
                continue  # these are several rows, not the names of columns
            unquoted = not wrong and len(names) > 1 and b'"' not in data  # of one column, any line would be a row
            if b"\\" in head:
                yield replace(dialect, escapes=True)
            if b"\\" in head and unquoted:
                yield replace(dialect, quotes=False, escapes=True)
            yield dialect
            if b'"' in head and unquoted:
                yield replace(dialect, quotes=False)


_SEP = re.compile(rb'"?sep=([^\w"\\\r\n])"?\r?[\r\n]')  # as Excel's files say themselves
_NEWLINE = "\ud800"  # for one that ends no row; `decode` never gives it
_ALONE = re.compile(rb"\r(?!\n)")
_RETURN = re.compile(rb'(?:[^"\r\n]++|"[^"]*+")*+\r(?!\n)')  # a first row that ends in nothing else


def lines(blocks: Iterable[bytes], dialect: Dialect, name: str = "") -> Iterator[bytes]:
    """The lines of a file, each with its end, from its first row on.

    Raises UserError, which begins with `name`, for rows that end in carriage returns alone and are too many.
    """
    found = _newline_ended(blocks) if dialect.end == b"\n" else _return_ended(blocks, name)
    return islice(found, dialect.start - 1, None)


def _newline_ended(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield from io.BytesIO(block)


def _return_ended(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        advice = f"rows that end in carriage returns alone are read up to {LINE >> 20} MB; write newlines behind them"
        if len(block) > LINE:
            raise UserError(f"{name}: {advice}")
        *whole, held = (held + block).split(b"\r")
        yield from (line + b"\r" for line in whole)
    if held:
        yield held


def rows(lines: Iterator[bytes], dialect: Dialect) -> Iterator[tuple[int, list[str], bytes, str | None]]:
    """First line, cells, data and what is wrong of every row. Of one that does not end only its first line is given up.

    The lines behind that one are read again: where many of them fail, in shorter rows, so that time stays linear.
    """
    row_lines, again, number, failures = [], deque(), dialect.start, 0
    plain, escapes = dialect.end == b"\n", dialect.escapes

    def feed() -> Iterator[str]:
        size = 0
        while (line := again.popleft() if again else next(lines, None)) is not None:
            row_lines.append(line)
            size = len(line) - line.endswith(b"\n") + (size if len(row_lines) > 1 else 0)
            if len(row_lines) > max(1, ROW_LINES >> failures) or size > LINE:
                raise csv.Error("a quote is not closed" if len(row_lines) > 1 else TOO_LONG)
            yield to_text(line) if plain else to_text(line).replace("\n", _NEWLINE)

    reader = _reader(feed(), dialect)
    while True:
        row_lines.clear()
        try:
            row, wrong = next(reader, []), None
        except csv.Error as error:
            row, wrong = [], str(error)
            failures += len(row_lines) > 1
            again.extendleft(reversed(row_lines[1:]))
            del row_lines[1:]
            reader = _reader(feed(), dialect)
        if not row_lines:
            return
        if not plain:
            row = [cell.replace(_NEWLINE, "\n") for cell in row]
        if row or wrong:
            data = b"".join(row_lines).removesuffix(b"\n")
            if (escapes or b"\\" in data) and not wrong and not _row(dialect).fullmatch(data):
                wrong = "its quotes and backslashes are not those of the file's first lines"
            yield number, row, data, wrong
        number += len(row_lines)
        failures = failures if again else 0


def _reader(lines: Iterable[str], dialect: Dialect):
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes
    return csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE,
        doublequote=not dialect.escapes,
        escapechar="\\" if dialect.escapes else None,
        strict=True,
    )


# What contradicts a dialect


def _edge(dialect: Dialect) -> str:
    return re.escape(dialect.delimiter) + r"\r\n"


@cache
def _row(dialect: Dialect) -> re.Pattern[bytes]:
    """Matches the rows that are written in this dialect; without escapes, of those that have a backslash."""
    edge = _edge(dialect)
    if dialect.escapes and dialect.quotes:
        cell = rf'(?:"(?:[^"\\]++|\\["\\])*+"|(?:[^"\\{edge}]++|\\["\\])*+)'
        cell = rf"{cell}(?:{edge[:-4]}{cell})*+[\r\n]*+"
        return re.compile(to_bytes(cell))
    if dialect.escapes:
        return re.compile(to_bytes(rf'(?:[^"\\]++|\\["\\{edge}])*+'))
    if dialect.quotes:
        return re.compile(to_bytes(rf'(?:[^\\]++|\\(?!"(?:"")*+(?![{edge}"]|\Z)))*+'))
    return re.compile(rb'(?:[^\\]++|\\(?!"))*+')


@cache
def _stray(dialect: Dialect) -> re.Pattern[bytes]:
    """Finds quotes inside of cells that this dialect never writes: neither doubled nor behind a backslash."""
    before = _edge(dialect) + ('"\\\\' if dialect.escapes else '"')
    return re.compile(to_bytes(rf'(?<![{before}])(?<!\A)"(?:"")*+(?![{_edge(dialect)}"]|\Z)'))


def _contradictions(head: bytes, dialect: Dialect) -> int:
    """How much of a file's first lines does not fit a dialect."""
    there = list(lines([head], dialect))
    plain = b"\\" not in head and dialect.end == b"\n"
    ends, columns = (plain and _ends(there, dialect)) or (None, 0)
    wrong = 0
    if ends is None:  # the slow way, which goes on behind what is wrong
        ends, columns = [], None
        for number, row, data, error in rows(iter(there), dialect):
            columns = len(row) if columns is None else columns
            if error == "unexpected end of data" and len(head) >= HEAD and 10 * number > 9 * len(there):
                ends.append(number - dialect.start)  # the last row goes on behind the head
                break
            wrong += error is not None or len(row) != columns or (dialect.end == b"\r" and data.startswith(b"\n"))
            ends.append(number - dialect.start)
            if wrong == MANY:
                break
        else:
            ends.append(len(there))
    cells = lambda line: line.rstrip(b"\r\n").split(to_bytes(dialect.delimiter))
    if not dialect.quotes:
        return wrong + sum(any(map(_is_quoted, cells(line))) for line in there if b'"' in line)
    merged = 0
    if columns and columns > 1:
        spans = [there[a:b] for a, b in zip([0, *ends], ends, strict=False) if b - a > 1]
        spans = [list(map(cells, span)) for span in spans if not any(b'""' in line for line in span)]
        alone = [cells(there[a]) for a, b in zip([0, *ends], ends, strict=False) if b - a == 1]
        merged = _merged(spans, alone, columns)
    return wrong + merged + len(_stray(dialect).findall(head))


def _ends(there: list[bytes], dialect: Dialect) -> tuple[list[int], int] | None:
    """Behind which lines rows end, and the number of columns; None where a row is wrong."""
    reader, ends, columns = _reader(map(to_text, there), dialect), [], 0
    try:
        for row in reader:
            columns = columns or len(row)
            if row and len(row) != columns:
                return None
            ends.append(reader.line_num)
    except csv.Error:
        return None
    return ends, columns


def _is_quoted(cell: bytes) -> bool:
    return len(cell) > 1 and cell[:1] == cell[-1:] == b'"' and b'"' not in cell[1:-1].replace(b'""', b"")


def _merged(spans: list[list[list[bytes]]], alone: list[list[bytes]], columns: int) -> int:
    """How many rows of several lines are as many rows: each line has all columns, and values of rows of one."""
    spans = [span for span in spans if all(len(cells) == columns for cells in span)]
    if not spans:
        return 0
    usual = {at for cells in alone if len(cells) == columns for at in enumerate(cells) if at[1]}
    return sum(any(sum((i, cells[i]) in usual for cells in span) > 1 for i in range(columns)) for span in spans)
