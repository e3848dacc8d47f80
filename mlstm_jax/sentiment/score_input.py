"""What is scored: the rows of all sources, one after another, and the columns that they have."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from mlstm_jax import storage
from mlstm_jax.corpus.columns import Keys
from mlstm_jax.corpus.readers import Chunk, Source, chunks, parse
from mlstm_jax.errors import UserError
from mlstm_jax.sentiment.scores import Review
from mlstm_jax.text import EMPTY, frame

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes that are read at a time


class Input(NamedTuple):
    """All reviews, in order, the names of their columns by first appearance, and whether any has labels."""

    reviews: Iterator[Review]
    names: list[str]
    labelled: bool


def begin(
    found: list[Source],
    keys: Keys,
    whole: bool,
    log: Callable[[str], None] = logger.warning,
    phrase: Callable[[str], str] = str,
) -> Input:
    """The reviews of all sources; `whole` keeps all their cells. A source that cannot be begun is an error now.

    `log` is told what people should know of a source; `phrase` words for them why a row cannot be read.
    """
    parts, names, labelled = [], {}, False
    for index, source in enumerate(found):
        if source.size == 0:
            raise UserError(f"{source.name} is empty")
        piped = source.name == "-"
        cut = chunks(source, index, keys, CHUNK if piped else 1, whole, log if piped else _silent)
        first = next(cut, None)
        if first is not None:
            labelled |= first.keys.label is not None
            names |= dict.fromkeys([*(first.names or ()), *([first.keys.text or "text"] if whole else [])])
        if piped:  # it cannot be read twice
            parts.append(chain([first] if first else [], cut))
            continue
        cut.close()  # there may be more files than can be open
        if whole and first is not None and first.kind == "json":  # a later record may have other keys
            again = chunks(source, index, keys, CHUNK, whole)
            names |= dict.fromkeys(name for chunk in again for row in parse(chunk) for name in row.cells)
        parts.append(chunks(source, index, keys, CHUNK, whole, log))
    reviews = (review for part in parts for chunk in part for review in _reviews(chunk, found, phrase))
    listed = list(names)
    return Input(_known(reviews, listed, log) if whole else reviews, listed, labelled)


def _silent(line: str) -> None:
    """What is said of a source is said when all of it is read."""


def _reviews(chunk: Chunk, found: list[Source], phrase: Callable[[str], str]) -> Iterator[Review]:
    rows = list(parse(chunk))
    for line, text, label, wrong, cells in rows:
        framed = EMPTY if wrong else frame(text)
        note = f"not readable: {phrase(wrong)}" if wrong else "empty" if framed == EMPTY else None
        kept = {chunk.keys.text or "text": text} if wrong and not cells else cells
        name = storage.name(found[chunk.source].name)
        yield Review(name, line, text, label, note, framed, chunk.read / len(rows), kept)


def _known(reviews: Iterator[Review], names: list[str], log: Callable[[str], None]) -> Iterator[Review]:
    """The reviews; the first that has a cell of no known column is told of: on standard input it comes too late."""
    known, told = {*names}, False
    for review in reviews:
        if not told and not review.cells.keys() <= known:
            late = next(name for name in review.cells if name not in known)
            keeps = f"line {review.line} is the first with a key {late!r}"
            log(f"standard input: {keeps}, too late for a column of CSV; `json` keeps such keys")
            told = True
        yield review
