"""Sampling: one compiled scan that chooses a byte from the logits, reads it, and holds units where asked."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mlstm_jax.encode import trace
from mlstm_jax.model import read_out
from mlstm_jax.recurrence import State, Weights, step, zero_state

CHUNK = 64  # bytes in one compiled call, whatever the length asked for
GROUP = 16  # samples side by side on a CPU, where rounding, and so a text, would depend on the size of the batch


def choose(
    key: Key[Array, ""], logits: Float[Array, "vocab"], temperature: Float[Array, ""] | float
) -> UInt8[Array, ""]:
    """A byte drawn from softmax(logits / temperature); temperature 0 is argmax."""
    drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1))
    return jnp.where(temperature > 0, drawn, logits.argmax()).astype(jnp.uint8)


@partial(jax.jit, donate_argnames="state")
def _write(weights, state, keys, first, temperature, clamp):
    def body(state, position):
        keys_here = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        bytes_ = jax.vmap(choose, (0, 0, None))(keys_here, read_out(weights, state[1]), temperature)
        return step(weights, state, bytes_, clamp), bytes_

    state, written = jax.lax.scan(body, state, first + jnp.arange(CHUNK))
    return state, written.T


def generate(
    weights: Weights,
    prime: bytes,
    num: int,
    length: int,
    temperature: float = 1.0,
    clamp: Float[Array, "hidden"] | None = None,
    seed: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> list[bytes]:
    """`num` samples of `length` bytes that follow `prime`, which is read unclamped. `done(bytes)` hears of progress.

    Sample i draws with the key fold_in(seed, i): in float32 on a CPU it is the same text alone and in a batch.
    `clamp` is NaN where a unit is free; elsewhere it overwrites the cell state after every byte written.
    """
    group = GROUP if jax.default_backend() == "cpu" else num
    clamp = jnp.full(weights.wmh.shape[0], jnp.nan) if clamp is None else jnp.asarray(clamp, jnp.float32)
    state = zero_state(weights, 1)
    for _, after in trace(weights, prime, state, None, "hidden"):
        state = after
    samples = []
    for first in range(0, num, group):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(first + jnp.arange(group))
        samples += _samples(weights, state, keys, length, temperature, clamp, done)[: num - first]
    return samples


def _samples(weights, state: State, keys, length, temperature, clamp, done):
    state = tuple(jnp.repeat(s, len(keys), axis=0) for s in state)
    pieces = [np.zeros((len(keys), 0), np.uint8)]
    for start in range(0, length, CHUNK):
        state, piece = _write(weights, state, keys, start, jnp.float32(temperature), clamp)
        pieces.append(np.asarray(piece))
        done(min(CHUNK, length - start) * len(keys))
    return [row[:length].tobytes() for row in np.concatenate(pieces, axis=1)]
