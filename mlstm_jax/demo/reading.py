"""A text that is read while it is typed: what an edit leaves as it was is not read again."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mlstm_jax.inference.encode import FEATURES, Feature
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model.cell import State, Weights, step
from mlstm_jax.report.heatmap import spans
from mlstm_jax.text import to_text

Kept = tuple[Float[np.ndarray, "1 hidden"], Float[np.ndarray, "1 hidden"]]  # (c, h), outside of the device

LONGEST = 64  # bytes of a piece, which is the size of what is compiled
APART = 32  # bytes between states that are kept along a text; at its end, where people type, every one is


class Cells(NamedTuple):
    """Characters that have been read, from number `start` on, and the unit's value after the last byte of each."""

    start: int
    characters: list[str]
    values: list[float]


@jax.jit
def _read(
    weights: Weights, data: UInt8[Array, "longest"], count: Int[Array, ""], state: State
) -> tuple[Float[Array, "longest hidden"], Float[Array, "longest hidden"]]:
    """c and h after each of the first `count` bytes: one program for any count, so that every byte is the same step."""

    def read(i, carry):
        state, kept = carry
        state = step(weights, state, data[i][None])
        return state, tuple(every.at[i].set(one[0]) for every, one in zip(kept, state, strict=True))

    empty = jnp.zeros((len(data), weights.hidden), jnp.float32)
    return jax.lax.fori_loop(0, count, read, (state, (empty, empty)))[1]


class Reader:
    """A text, the values of one unit after every byte of it, and states from which reading goes on after an edit.

    Values are the same, bit for bit, however the text came to be.
    """

    def __init__(self, model: LanguageModel, unit: int, feature: Feature = "cell"):
        self.weights, self.unit = model.weights, unit
        self.feature: Feature = feature
        self.piece = max(8, min(LONGEST, (1 << 26) // model.hidden**2))  # some 50 ms on two cores
        self.data, self.values = b"", np.zeros(0, np.float32)
        zeros = np.zeros((1, model.hidden), np.float32)
        self.states: dict[int, Kept] = {0: (zeros, zeros)}
        self._shown = 0

    def edit(self, data: bytes) -> None:
        """Take another text in place of this one. `advance` reads what has changed, and what comes after it."""
        shorter = min(len(data), len(self.values))
        a, b = (np.frombuffer(text[:shorter], np.uint8) for text in (self.data, data))
        changed = np.flatnonzero(a != b)
        same = int(changed[0]) if len(changed) else shorter
        start = max(place for place in self.states if place <= same)
        self.states = {place: state for place, state in self.states.items() if place <= start}
        self.data, self.values = data, self.values[:start]
        self._shown = min(self._shown, boundary(data, start))

    @property
    def is_done(self) -> bool:
        """Whether all of the text has been read."""
        return len(self.values) == len(self.data)

    @property
    def state(self) -> Kept:
        """The state after all that has been read."""
        return self.states[len(self.values)]

    def advance(self) -> Cells:
        """Read the next piece. Gives the characters that are whole by now and were not given, or have changed."""
        start = len(self.values)
        piece = np.frombuffer(self.data[start : start + self.piece], np.uint8)
        padded = np.pad(piece, (0, LONGEST - len(piece)))
        cells, hiddens = (np.asarray(s) for s in _read(self.weights, padded, np.int32(len(piece)), self.state))
        unit = slice(self.unit, self.unit + 1)
        values = FEATURES[self.feature]((jnp.asarray(cells[:, unit]), jnp.asarray(hiddens[:, unit])))
        self.values = np.concatenate([self.values, np.asarray(values)[: len(piece), 0]])
        dense = len(self.data) - APART
        for i in range(len(piece)):
            self.states[start + i + 1] = (cells[i : i + 1].copy(), hiddens[i : i + 1].copy())
        last = len(self.values)
        self.states = {p: s for p, s in self.states.items() if p % APART == 0 or p > dense or p == last}
        return self._new()

    def rest(self) -> Iterator[Cells]:
        """`advance` until all is read."""
        while not self.is_done:
            yield self.advance()

    def _new(self) -> Cells:
        start, end = self._shown, boundary(self.data, len(self.values))
        found = spans(self.data[start:end], self.values[start:end])
        self._shown = end
        return Cells(len(to_text(self.data[:start])), [s.character for s in found], [s.value for s in found])


def boundary(data: bytes, place: int) -> int:
    """The nearest place at or before this one at which no UTF-8 character is cut."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
