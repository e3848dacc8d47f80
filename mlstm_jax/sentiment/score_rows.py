"""Scored reviews as rows of CSV or of JSON lines: which columns there are, how cells are written, values read back."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from json import dumps, loads
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mlstm_jax.corpus.columns import distinct
from mlstm_jax.sentiment.scores import Review
from mlstm_jax.text import to_bytes, to_text
from mlstm_jax.unit_record import UnitRecord, positive, probability

ADDED = ("value", "probability", "sentiment", "note")


class Layout(NamedTuple):
    """How rows are written."""

    kept: list[str]
    """The columns that come first: those of the input, or of the narrow form."""
    added: list[str]
    """The names of `ADDED` behind them, no two columns equal."""
    as_json: bool = False
    safe_cells: bool = False
    """In CSV, a single quote stands before what a spreadsheet would compute."""
    narrow: bool = False
    """Only source, line, text and label are kept."""
    several: bool = False
    """The sources are named, since there are several."""

    @property
    def columns(self) -> list[str]:
        """All columns, in order."""
        return self.kept + self.added


def narrow(labelled: bool, several: bool, as_json: bool, safe_cells: bool) -> Layout:
    """The text with its line, and its label and source where there are any, whatever else the input has."""
    kept = ["source"] * several + ["line", "text"] + ["label"] * labelled
    return Layout(kept, list(ADDED), as_json, safe_cells, narrow=True, several=several)


def wide(names: Sequence[str], several: bool, as_json: bool, safe_cells: bool) -> Layout:
    """All columns of the input; what is added gets another name where the input has that already."""
    added = distinct(["source"] * several + [*ADDED], names)
    return Layout([*names, *added[: -len(ADDED)]], added[-len(ADDED) :], as_json, safe_cells, several=several)


def renamed(layout: Layout) -> list[str]:
    """Lines for people on what is added under another name than its usual one."""
    names = ["source"] * (layout.several and not layout.narrow) + [*ADDED]
    pairs = zip(names, layout.columns[-len(names) :], strict=True)
    return [f"the input has a column {name!r}; the added one is {now!r}" for name, now in pairs if name != now]


def header(layout: Layout) -> bytes:
    """What stands before the first row."""
    names = map(safe_cell, layout.columns) if layout.safe_cells else layout.columns
    return b"" if layout.as_json else as_csv([list(names)])


def judged(group: Sequence[Review], values: Float[np.ndarray, "n"], record: UnitRecord) -> list[tuple[Any, ...]]:
    """`ADDED` of every review, None for what it has not."""
    chances, above = probability(values, record).tolist(), positive(values, record).tolist()
    found = []
    for review, value, chance, is_positive in zip(group, values.tolist(), chances, above, strict=True):
        known = (value, chance, "positive" if is_positive else "negative") if review.note is None else (None,) * 3
        found.append((*known, review.note))
    return found


def as_rows(group: Sequence[Review], values: Float[np.ndarray, "n"], record: UnitRecord, layout: Layout) -> bytes:
    """The rows of a group; numbers are written so that they read back as they were."""
    rows = [
        _kept(review, layout) | dict(zip(layout.added, added, strict=True))
        for review, added in zip(group, judged(group, values, record), strict=True)
    ]
    if layout.as_json:
        return "".join(f"{dumps(row)}\n" for row in rows).encode()
    shown = (lambda cell: safe_cell(_as_text(cell))) if layout.safe_cells else _as_text
    return as_csv([[shown(row.get(name)) for name in layout.columns] for row in rows])


def _kept(review: Review, layout: Layout) -> dict[str, Any]:
    """What is kept of a row by the names of columns. Cells of others are left out of CSV alone."""
    if layout.narrow:
        row = {"source": review.source, "line": review.line, "text": review.text, "label": review.label}
        return {name: row[name] for name in layout.kept}
    cells = dict(review.cells)
    if layout.as_json and not cells.keys() <= {*layout.kept}:  # keys that were not known when it began
        others = [name for name in cells if name not in layout.kept]
        now = dict(zip(others, distinct(others, layout.columns), strict=True))
        cells = {now.get(name, name): cell for name, cell in cells.items()}
    return cells | ({layout.kept[-1]: review.source} if layout.several else {})


def as_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows of CSV, UTF-8; bytes that were none come out as they went in (`text.to_bytes`)."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)  # with its own line ends \r\n, so that a text that holds one of them is quoted
    return to_bytes(file.getvalue())


def _as_text(cell: Any) -> Any:
    """A cell of CSV: what JSON alone can say is written as JSON."""
    return dumps(cell, ensure_ascii=False) if isinstance(cell, bool | list | dict) else cell


_COMPUTED = re.compile("'*[=+@\\-\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are = + - @ of full width


def safe_cell(cell: Any) -> Any:
    """A text that a spreadsheet shows as it is: a single quote before what it would compute. Numbers stay.

    Quotes that stand there already get one more, so that taking one away gives the text back.
    """
    return f"'{cell}" if isinstance(cell, str) and _COMPUTED.match(cell) else cell


def values_of(path: Path, layout: Layout) -> Iterator[float]:
    """The unit's values in a file that was written so, in order; NaN where a row has none."""
    with open(path, "rb") as file:
        if layout.as_json:
            cells = (loads(line)[layout.added[0]] for line in file)
        else:
            csv.field_size_limit(2**31 - 1)  # the largest that every platform takes
            place = len(layout.kept)
            rows = islice(csv.reader(map(to_text, file), strict=True), 1, None)
            cells = (row[place] or None for row in rows)
        yield from (np.nan if cell is None else float(cell) for cell in cells)
