"""Sampling: one compiled scan that chooses a byte from the logits, reads it, and holds units where asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mlstm_jax.config import require
from mlstm_jax.model import read_out
from mlstm_jax.recurrence import State, Weights, scan, step, zero_state

Schedule = Mapping[int, float | Sequence[tuple[int, float | None]]]  # unit -> value, or [(from this byte on, value)]
Held = Float[Array, "hidden"] | None  # the units held for a stretch, NaN where free; None holds none

CHUNK = 64  # bytes in one compiled call, whatever the length asked for
GROUP = 16  # samples side by side on a CPU, where rounding, and so a text, would depend on the size of the batch


def likely(
    logits: Float[Array, "vocab"], top_k: Int[Array, ""] | int, top_p: Float[Array, ""] | float
) -> Bool[Array, "vocab"]:
    """Which bytes may be drawn: the `top_k` likeliest (0: all), and of these the fewest with `top_p` of their mass.

    The likeliest byte always may. Of equal logits the lower byte goes first, as in argmax.
    """
    byte, one, other = jnp.arange(len(logits)), logits[:, None], logits[None]
    ahead = (other > one) | (
        (other == one) & (byte[None] < byte[:, None])
    )  # comparing all pairs is faster than sorting
    kept = (ahead.sum(axis=1) < top_k) | (top_k == 0)
    before = jnp.where(ahead, jax.nn.softmax(jnp.where(kept, logits, -jnp.inf))[None], 0).sum(axis=1)
    return kept & ((before < top_p) | (before == 0) | (top_p >= 1))


def choose(
    key: Key[Array, ""],
    logits: Float[Array, "vocab"],
    temperature: Float[Array, ""] | float,
    top_k: Int[Array, ""] | int = 0,
    top_p: Float[Array, ""] | float = 1.0,
) -> UInt8[Array, ""]:
    """A byte drawn from softmax(logits / temperature), cut to the `likely` ones; temperature 0 is argmax."""
    scaled = (logits - logits.max()) / jnp.where(temperature > 0, temperature, 1)
    cut = lambda scaled: jnp.where(likely(scaled, top_k, top_p), scaled, -jnp.inf)
    scaled = jax.lax.cond((top_k > 0) | (top_p < 1), cut, lambda scaled: scaled, scaled)  # usually nothing is cut
    drawn = jax.random.categorical(key, scaled)
    return jnp.where(temperature > 0, drawn, logits.argmax()).astype(jnp.uint8)


def stretches(clamp: Schedule) -> dict[int, dict[int, float]]:
    """A schedule by the bytes at which it changes, 0 among them: {12: [(0, 1), (200, None)]} is {0: {12: 1}, 200: {}}.

    Byte 0 is the first one written; the value None frees the unit. Raises UserError unless bytes are whole numbers
    that increase.
    """
    changes = {unit: list(v) if isinstance(v, Sequence) else [(0, v)] for unit, v in clamp.items()}
    for unit, parts in changes.items():
        starts = [start for start, _ in parts]
        known = all(isinstance(start, int | np.integer) and 0 <= start < 2**31 for start in starts)
        in_order = known and starts and starts == sorted(set(starts))
        require(bool(in_order), f"the values of unit {unit} need bytes that increase, from 0 on, as in 1.0@0,-1.0@200")
    value = lambda parts, byte: next((v for start, v in reversed(parts) if start <= byte), None)
    return {
        byte: {unit: v for unit, parts in changes.items() if (v := value(parts, byte)) is not None}
        for byte in sorted({0}.union(int(start) for parts in changes.values() for start, _ in parts))
    }


_read = partial(jax.jit, static_argnames="of")(scan)


def _prime(weights, prime: bytes, clamp, of) -> State:
    """The state after the prime, in pieces of one shape."""
    state = zero_state(weights, 1)
    for start in range(0, len(prime), CHUNK):
        piece = np.frombuffer(prime[start : start + CHUNK], np.uint8)
        padded = np.pad(piece, (0, CHUNK - len(piece)))[None]
        state, _ = _read(weights, padded, state, np.array([len(piece)], np.int32), clamp, of=of)
    return state


@partial(jax.jit, donate_argnames="state", static_argnames="of")
def _write(weights, state, keys, first, temperature, top_k, top_p, starts, values, of):
    def body(state, position):
        keys_here = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        logits = read_out(weights, state[1])
        bytes_ = jax.vmap(choose, (0, 0, None, None, None))(keys_here, logits, temperature, top_k, top_p)
        clamp = values[jnp.searchsorted(starts, position, side="right") - 1]
        return step(weights, state, bytes_, clamp, of), bytes_

    state, written = jax.lax.scan(body, state, first + jnp.arange(CHUNK))
    return state, written.T


def stream(
    weights: Weights,
    prime: bytes,
    num: int,
    length: int,
    temperature: float = 1.0,
    clamp: Held | Mapping[int, Held] = None,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    of: Literal["cell", "hidden"] = "cell",
    clamp_prime: bool = False,
    stop: bool = False,
) -> Iterator[tuple[int, bytes]]:
    """`num` samples of `length` bytes that follow `prime`, as they are written: (sample, its next bytes), bytes apart.

    Sample i draws with the key fold_in(seed, i): in float32 on a CPU it is the same text alone and in a batch.
    `clamp` overwrites the state `of` the units that are not NaN after every byte written; one that changes is a
    mapping from the byte at which a stretch begins, 0 among them. With `clamp_prime` the prime is read under its first
    stretch. With `stop` a sample ends before the first newline that it writes.
    """
    held = clamp if isinstance(clamp, Mapping) else {0: clamp}
    free = jnp.full(weights.wmh.shape[0], jnp.nan)
    starts = jnp.array(sorted(held), jnp.int32)
    values = jnp.stack([free if held[start] is None else jnp.float32(held[start]) for start in sorted(held)])
    after_prime = _prime(weights, prime, held[0] if clamp_prime else None, of)
    limits = jnp.float32(temperature), jnp.int32(min(top_k, 256)), jnp.float32(top_p)
    group = GROUP if jax.default_backend() == "cpu" else num
    for first in range(0, num, group):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(first + jnp.arange(group))
        state = tuple(jnp.repeat(s, group, axis=0) for s in after_prime)
        writing = list(range(min(group, num - first)))
        for start in range(0, length, CHUNK):
            state, written = _write(weights, state, keys, start, *limits, starts, values, of)
            written = np.asarray(written)[:, : length - start]
            for i in list(writing):
                piece, end, _ = written[i].tobytes().partition(b"\n") if stop else (written[i].tobytes(), b"", b"")
                if end:
                    writing.remove(i)
                yield first + i, piece
            if not writing:
                break


def generate(
    weights: Weights,
    prime: bytes,
    num: int,
    length: int,
    temperature: float = 1.0,
    clamp: Held | Mapping[int, Held] = None,
    seed: int = 0,
    hear: Callable[[int, bytes], None] = lambda sample, piece: None,
    **options: Any,
) -> list[bytes]:
    """All that `stream` writes, sample by sample; its options. `hear(sample, bytes)` is called with every piece."""
    samples = [bytearray() for _ in range(num)]
    for i, piece in stream(weights, prime, num, length, temperature, clamp, seed, **options):
        samples[i] += piece
        hear(i, piece)
    return [bytes(sample) for sample in samples]
