"""Reading: texts to features, any length, batched; one text byte by byte; raw bytes to logits. All through `scan`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlstm_jax.model import read_out
from mlstm_jax.recurrence import State, Weights, scan, zero_state

Feature = Literal["cell", "tanh_cell", "hidden"]
FEATURES: dict[Feature, Callable[[State], Float[Array, "batch hidden"]]] = {
    "cell": lambda state: state[0],
    "tanh_cell": lambda state: jnp.tanh(state[0]),
    "hidden": lambda state: state[1],
}
LANES = 64  # texts read side by side
CHUNK = 32  # bytes of every lane in one compiled call: few shapes, little padding


@partial(jax.jit, static_argnames="emit")
def _read(weights, data, state, lengths, clamp, emit=None):
    return scan(weights, data, state, lengths, clamp, FEATURES.get(emit))


def encode(
    weights: Weights, texts: list[bytes], feature: Feature = "cell", done: Callable[[int], None] = lambda count: None
) -> Float[np.ndarray, "texts hidden"]:
    """The feature after the last byte of every text, float32. `done(bytes)` hears of progress.

    Padding, batch order and the texts beside it do not change a text's feature (1e-5 relative).
    """
    features = np.zeros((len(texts), weights.wmh.shape[0]), np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")  # texts of like length together
    lanes = min(LANES, 1 << max(0, len(texts) - 1).bit_length())
    for first in range(0, len(texts), lanes):
        batch = order[first : first + lanes]
        lengths = np.array([len(texts[i]) for i in batch] + [0] * (lanes - len(batch)), np.int32)
        data = np.zeros((lanes, -(-lengths.max() // CHUNK) * CHUNK), np.uint8)
        for lane, i in enumerate(batch):
            data[lane, : lengths[lane]] = np.frombuffer(texts[i], np.uint8)
        state = zero_state(weights, lanes)
        for start in range(0, data.shape[1], CHUNK):
            state, _ = _read(weights, data[:, start : start + CHUNK], state, lengths - start, None)
        features[batch] = FEATURES[feature](state)[: len(batch)]
        done(int(lengths.sum()))
    return features


def trace(
    weights: Weights, data: bytes, state: State, clamp: Float[Array, "hidden"] | None, feature: Feature
) -> Iterator[tuple[Float[np.ndarray, "bytes hidden"], State]]:
    """The feature after every byte and the state, piece by piece, in pieces of a few fixed shapes."""
    longest = 8 * CHUNK
    for start in range(0, len(data), longest):
        piece = np.frombuffer(data[start : start + longest], np.uint8)
        padded = np.zeros((1, max(CHUNK, 1 << (len(piece) - 1).bit_length())), np.uint8)
        padded[0, : len(piece)] = piece
        state, emitted = _read(weights, padded, state, np.array([len(piece)], np.int32), clamp, feature)
        yield np.asarray(emitted[0, : len(piece)]), state


_read_out = jax.jit(read_out)


def logits(
    weights: Weights, data: bytes, state: State, clamp: Float[Array, "hidden"] | None = None
) -> Iterator[tuple[Float[np.ndarray, "bytes vocab"], State]]:
    """Logits of the byte that follows every byte, and the state, piece by piece."""
    for hidden, after in trace(weights, data, state, clamp, "hidden"):
        yield np.asarray(_read_out(weights, hidden)), after


def read(
    weights: Weights, data: bytes, state: State, clamp: Float[Array, "hidden"] | None = None
) -> tuple[Float[np.ndarray, "bytes vocab"], State]:
    """All of `logits` in one array, and the last state."""
    pieces = [np.zeros((0, weights.out_b.shape[0]), np.float32)]
    for piece, after in logits(weights, data, state, clamp):
        pieces.append(piece)
        state = after
    return np.concatenate(pieces), state
