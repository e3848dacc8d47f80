"""Workbooks: the first sheet of an .xlsx file to rows, its cells as text."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, time
from itertools import islice
from typing import Any

from mlstm_jax.corpus.columns import Keys, distinct, find_keys
from mlstm_jax.corpus.lines import optional
from mlstm_jax.corpus.tables import NO_CELLS, Row, Table, one_line, report_renamed
from mlstm_jax.errors import UserError

ROWS = 1000  # that are read at a time


def workbook(name: str, keys: Keys, whole: bool, log: Callable[[str], None]) -> tuple[Table, int]:
    """The first sheet below its first row that is not blank, and how many rows it says to have.

    Rows have the sheet's numbers. `whole` keeps all cells. Raises UserError for a file that cannot be read or lacks the
    keys.
    """
    openpyxl = optional("openpyxl", name, "xlsx")
    with contextlib.ExitStack() as opened:
        with _explained(name):
            book = openpyxl.load_workbook(name, read_only=True, data_only=True)
        opened.callback(book.close)
        sheet, *others = book.worksheets or [None]
        if sheet is None:
            raise UserError(f"{name}: there is no sheet in it")
        count = sheet.max_row or 0
        sheet.reset_dimensions()  # some programs write wrong ones
        if others:
            log(f"{name}: only its first sheet is read, {sheet.title!r}; there are {len(others) + 1}")
        rows = _rows(sheet.iter_rows(), name)
        line, header = next(rows, (1, []))
        where = f"{name}, row {line}"
        keys, names = find_keys(header, keys, where, "column"), distinct(header)
        if whole:
            report_renamed(header, names, where, log)
        opened = opened.pop_all()

    def below() -> Iterator[Row]:
        text, label = header.index(keys.text or ""), header.index(keys.label) if keys.label else None
        with opened:
            for number, row in rows:
                if len(row) > len(header):
                    yield Row(number, "\t".join(row), None, f"{len(row)} columns, the header has {len(header)}")
                    continue
                row += [""] * (len(header) - len(row))
                cells = dict(zip(names, row, strict=True)) if whole else NO_CELLS
                yield Row(number, row[text], None if label is None else row[label] or None, None, cells)

    return Table(keys, names, below()), count


def _rows(rows: Iterator[tuple[Any, ...]], name: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of every row that is not blank, without the empty cells at its end."""
    start = 1
    while True:
        with _explained(name):
            some = [
                [shown(cell.value, getattr(cell, "number_format", None) or "") for cell in row]
                for row in islice(rows, ROWS)
            ]
        for number, row in enumerate(some, start):
            while row and not row[-1]:
                row.pop()
            if row:
                yield number, row
        if len(some) < ROWS:
            return
        start += ROWS


def shown(value: Any, number_format: str = "") -> str:
    """A cell's value about as the sheet shows it: dates as 2024-03-01, per cent as 45%, numbers of 15 digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        percent = number_format.rstrip("_);").endswith("%")
        return f"{100 * value:.13g}%" if percent else f"{value:.15g}"
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return value.isoformat(" ") if isinstance(value, datetime) else str(value)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever openpyxl raises for a damaged file, in one line: there is no end to the kinds of it. No warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on styles and the like, which are not read
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: not a whole .xlsx file ({one_line(error)})") from None
