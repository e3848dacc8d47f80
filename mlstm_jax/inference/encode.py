"""Encoding: texts of any length to features, in batches; one text byte by byte; raw bytes to logits. All use `scan`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from mlstm_jax.model.cell import Held, State, Weights, scan, zero_state
from mlstm_jax.model.parameters import read_out

Feature = Literal["cell", "tanh_cell", "hidden"]
FEATURES: dict[Feature, Callable[[State], Float[Array, "batch hidden"]]] = {
    "cell": lambda state: state[0],
    "tanh_cell": lambda state: jnp.tanh(state[0]),
    "hidden": lambda state: state[1],
}
BATCH = 64  # texts read side by side
CHUNK = 32  # bytes of every row in one compiled call, where texts are not short: few shapes, little padding


@partial(jax.jit, static_argnames="emit")
def _read(weights, data, state, lengths, clamp, emit: Feature | None = None):
    return scan(weights, data, state, lengths, clamp, None if emit is None else FEATURES[emit])


@jax.jit
def _read_on(weights, data, state, lengths, fresh):
    """Rows go on with their texts, those that are fresh from the zero state."""
    state = jax.tree.map(lambda s: jnp.where(fresh[:, None], 0, s), state)
    return scan(weights, data, state, lengths)[0]


def features(
    weights: Weights, texts: list[bytes], feature: Feature = "cell", done: Callable[[int], None] = lambda count: None
) -> Float[np.ndarray, "texts hidden"]:
    """The feature after the last byte of every text, float32. `done(bytes)` is a progress callback.

    Rows read chunk by chunk; one whose text has ended takes the next, the longest first, and at the end, when none are
    left, the rows become fewer. So little is read but text. Neither padding nor the order of the texts nor those
    beside it change a text's feature (1e-5 relative).
    """
    features = np.zeros((len(texts), weights.hidden), np.float32)
    lengths = np.array([len(text) for text in texts], np.int64)
    waiting = iter(np.argsort(-lengths, kind="stable").tolist())
    chunk = chunk_of(lengths)
    rows = min(BATCH, _power_of_two(len(texts)))
    state, text, place = zero_state(weights, rows), np.full(rows, -1), np.zeros(rows, np.int64)
    while True:
        for row in np.flatnonzero(text < 0):
            text[row], place[row] = next(waiting, -1), 0
        live = np.flatnonzero(text >= 0)
        if not len(live):
            return features
        if (fewer := _power_of_two(len(live))) <= len(text) // 4:
            kept = np.argsort(text < 0, kind="stable")[:fewer]
            state, text, place = tuple(s[kept] for s in state), text[kept], place[kept]
            live = np.flatnonzero(text >= 0)
        data, left = np.zeros((len(text), chunk), np.uint8), np.zeros(len(text), np.int32)
        for row in live:
            piece = texts[text[row]][place[row] : place[row] + chunk]
            data[row, : len(piece)], left[row] = np.frombuffer(piece, np.uint8), len(piece)
        state = _read_on(weights, data, state, left, place == 0)
        done(int(left.sum()))
        place += chunk
        ended = live[place[live] >= lengths[text[live]]]
        if len(ended):
            features[text[ended]] = np.asarray(FEATURES[feature](state))[ended]
            text[ended] = -1


def chunk_of(lengths: Integer[np.ndarray, "texts"]) -> int:
    """Bytes of a chunk: a power of two so short that half of one, which an end wastes, is a twentieth of a text."""
    mean = float(lengths.mean()) if len(lengths) else 0.0
    return max(8, min(CHUNK, 1 << int(mean / 10).bit_length() >> 1))


def _power_of_two(rows: int) -> int:
    return 1 << max(0, rows - 1).bit_length()


def trace(
    weights: Weights, data: bytes, state: State, clamp: Held | None, feature: Feature
) -> Iterator[tuple[Float[np.ndarray, "bytes hidden"], State]]:
    """The feature after every byte and the state, piece by piece, in pieces of a few fixed shapes."""
    longest = 8 * CHUNK
    for start in range(0, len(data), longest):
        piece = np.frombuffer(data[start : start + longest], np.uint8)
        padded = np.zeros((1, max(CHUNK, 1 << (len(piece) - 1).bit_length())), np.uint8)
        padded[0, : len(piece)] = piece
        state, emitted = _read(weights, padded, state, np.array([len(piece)], np.int32), clamp, feature)
        yield np.asarray(emitted[0, : len(piece)]), state


@partial(jax.jit, static_argnames="feature")
def _read_unit(weights, data, state, lengths, unit, feature: Feature):
    return scan(weights, data, state, lengths, emit=lambda state: FEATURES[feature](state)[:, unit])


def trace_unit(
    weights: Weights,
    texts: list[bytes],
    unit: int,
    feature: Feature = "cell",
    done: Callable[[int], None] = lambda count: None,
) -> list[Float[np.ndarray, "_"]]:
    """One unit's feature after every byte of every text, float32, an array each. `done(bytes)` is a progress callback.

    Texts of about the same length are read side by side.
    """
    values = [np.zeros(len(text), np.float32) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        state = zero_state(weights, _power_of_two(len(rows)))
        for place in range(0, len(texts[rows[-1]]), CHUNK):
            data, left = np.zeros((len(state[0]), CHUNK), np.uint8), np.zeros(len(state[0]), np.int32)
            for row, text in enumerate(rows):
                piece = texts[text][place : place + CHUNK]
                data[row, : len(piece)], left[row] = np.frombuffer(piece, np.uint8), len(piece)
            state, emitted = _read_unit(weights, data, state, left, unit, feature)
            emitted = np.asarray(emitted)
            for row, text in enumerate(rows):
                values[text][place : place + CHUNK] = emitted[row, : left[row]]
            done(int(left.sum()))
    return values


_read_out = jax.jit(read_out)


def logits(
    weights: Weights, data: bytes, state: State, clamp: Held | None = None
) -> Iterator[tuple[Float[np.ndarray, "bytes vocab"], State]]:
    """Logits of the byte that follows every byte, and the state, piece by piece."""
    for hidden, after in trace(weights, data, state, clamp, "hidden"):
        yield np.asarray(_read_out(weights, hidden)), after


def read(
    weights: Weights, data: bytes, state: State, clamp: Held | None = None
) -> tuple[Float[np.ndarray, "bytes vocab"], State]:
    """All of `logits` in one array, and the last state."""
    pieces = [np.zeros((0, weights.out_b.shape[0]), np.float32)]
    for piece, after in logits(weights, data, state, clamp):
        pieces.append(piece)
        state = after
    return np.concatenate(pieces), state
