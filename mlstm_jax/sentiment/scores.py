"""The value of the sentiment unit after each of many reviews."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mlstm_jax.corpus.records import size_of
from mlstm_jax.errors import UserError
from mlstm_jax.unit_record import UnitRecord

if TYPE_CHECKING:
    from mlstm_jax.inference.language_model import LanguageModel


class Review(NamedTuple):
    """A row: its source and line, what it holds, what is read of it, its share of the bytes of the input, all cells."""

    source: str
    line: int
    text: str
    label: str | None
    note: str | None  # why nothing is read
    framed: bytes
    share: float
    cells: Mapping[str, Any] = {}
    """By their columns' names; of a row that cannot be read, its line stands in the text's column."""


def groups(reviews: Iterable[Review], rows: int, size: int) -> Iterator[list[Review]]:
    """Reviews in groups of at most `rows`, and of `size` bytes unless one has more; the input alone says where."""
    group, held = [], 0
    for review in reviews:
        length = max(len(review.framed), len(review.text), size_of(review.cells))
        if group and (len(group) == rows or held + length > size):
            yield group
            group, held = [], 0
        group.append(review)
        held += length
    if group:
        yield group


def read(
    model: "LanguageModel", group: list[Review], record: UnitRecord, done: Callable[[float], None] = lambda share: None
) -> Float[np.ndarray, "n"]:
    """The unit's value after the last byte of every review, float64; NaN where there is nothing to read.

    `done` is called with the shares of the input. Raises UserError for values that are not finite.
    """
    from mlstm_jax.inference.encode import features  # late, because it imports jax

    values = np.full(len(group), np.nan)
    places = [place for place, review in enumerate(group) if review.note is None]
    framed = [group[place].framed for place in places]
    share = sum(review.share for review in group) / max(1, sum(map(len, framed)))
    x = features(model.weights, framed, record.feature, lambda count: done(count * share))
    values[places] = x[:, record.unit]
    finite = np.isfinite(x[:, record.unit]).all()
    if not finite:
        raise UserError("the unit's values are not finite: the weights are damaged, or their training diverged")
    if not framed:
        done(sum(review.share for review in group))
    return values
