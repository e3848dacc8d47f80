"""A file that was dropped on the page, or pasted text, scored row by row as `mlstm score` does it."""

import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anyio import to_thread
from jaxtyping import Float

from mlstm_jax.corpus.columns import Keys, has_usual_name
from mlstm_jax.corpus.readers import KINDS, PACKED, sources
from mlstm_jax.demo.choice import Choice
from mlstm_jax.demo.turns import Turns
from mlstm_jax.errors import UserError
from mlstm_jax.sentiment import score_input, score_rows
from mlstm_jax.sentiment.scores import Review, groups, read
from mlstm_jax.text import show, to_bytes
from mlstm_jax.unit_record import UnitRecord

SUFFIXES = tuple(suffix for suffix in KINDS if suffix not in PACKED)  # of text alone, which is as long as it looks
ROWS, BYTES = 128, 1 << 16  # of a group, which is what the page shows at once
LONGEST = 300  # characters of a cell in the page's table


class File(NamedTuple):
    """What the page says of a file: its name ("" is pasted text), and the column and encoding that were named."""

    name: str
    text_key: str | None
    encoding: str | None


class Part(NamedTuple):
    """A group of rows: what the page shows of each, the same rows of CSV, and what people should know by now."""

    rows: list[dict[str, Any]]
    csv: bytes
    notes: list[str]


async def scored(turns: Turns, choice: Choice, file: File, data: bytes) -> AsyncIterator[Part]:
    """The rows of a file, group by group; their CSV, put together, has all its columns. Others compute in between.

    Raises UserError where it cannot be read.
    """
    if choice.known is None:
        raise UserError(f"nothing is known of unit {choice.unit}: take the unit of a task")
    suffix = Path(file.name).suffix.lower() if file.name else _kind_of_pasted(data)
    if suffix not in SUFFIXES:
        raise UserError(f"{file.name}: the page reads files {' '.join(SUFFIXES)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        named = lambda line: line.replace(str(path), file.name or "the pasted text")
        notes: list[str] = []
        log = lambda line: notes.append(named(line))
        try:
            found = sources([str(path)], file.encoding)
            reading = await to_thread.run_sync(score_input.begin, found, Keys(file.text_key), True, log)
            layout = score_rows.wide(reading.names, several=False, as_json=False, safe_cells=True)
            notes += score_rows.renamed(layout)
            begin, reviews = score_rows.header(layout), groups(reading.reviews, ROWS, BYTES)
            while (group := await to_thread.run_sync(next, reviews, None)) is not None:
                values = await turns.run(read, choice.model, group, choice.known, lambda share: turns.give_way())
                rows = begin + score_rows.as_rows(group, values, choice.known, layout)
                yield Part(_shown(group, values, choice.known), rows, notes.copy())
                begin = b""
                notes.clear()
        except UserError as error:
            raise UserError(named(str(error))) from None


def _kind_of_pasted(data: bytes) -> str:
    """Pasted text is a table where its first line names columns as usual, else one review a line."""
    first = show(data.lstrip().partition(b"\n")[0])
    if first.startswith(("{", "[")):
        return ".json"
    return ".csv" if has_usual_name([cell.strip(' "') for cell in re.split("[,;\t|]", first)]) else ".txt"


def _shown(group: list[Review], values: Float[np.ndarray, "n"], record: UnitRecord) -> list[dict[str, Any]]:
    rows = []
    for review, added in zip(group, score_rows.judged(group, values, record), strict=True):
        label = None if review.label is None else _shortened(review.label)
        row = {"line": review.line, "text": _shortened(review.text), "label": label}
        rows.append(row | dict(zip(score_rows.ADDED, added, strict=True)))
    return rows


def _shortened(cell: str) -> str:
    return show(to_bytes(cell[:LONGEST])) + " ..." * (len(cell) > LONGEST)
