"""Sampling: one compiled scan that samples a byte from the logits, reads it, and holds clamped units."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mlstm_jax.errors import UserError
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model.cell import Held, State, Weights, scan, step, zero_state
from mlstm_jax.model.parameters import read_out

Schedule = Mapping[int, float | Sequence[tuple[int, float | None]]]  # unit -> value, or [(from this byte on, value)]

CHUNK = 16  # bytes in one compiled call, whatever the length asked for: as often a stream is heard of
GROUP = 64  # samples side by side on a CPU, at most: a few shapes, and products large enough


class Limits(NamedTuple):
    """The numbers that decide which byte is drawn; as arrays, so that other numbers compile nothing again."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]


class Piece(NamedTuple):
    """The next bytes of a sample, and its number."""

    sample: int
    data: bytes


def likely(
    logits: Float[Array, "vocab"], top_k: Int[Array, ""] | int, top_p: Float[Array, ""] | float
) -> Bool[Array, "vocab"]:
    """Which bytes may be drawn: the `top_k` likeliest (0: all), and of these the fewest with `top_p` of their mass.

    The likeliest byte always may. Of equal logits the lower byte goes first, as in argmax.
    """
    one, other = logits[:, None], logits[None]
    lower = jnp.tri(len(logits), k=-1, dtype=bool)
    ahead = (other > one) | ((other == one) & lower)  # comparing all pairs is faster than sorting
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


def _several(value) -> TypeGuard[Sequence]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def stretches(clamp: Schedule) -> dict[int, dict[int, float]]:
    """A schedule by the bytes at which it changes, 0 among them: {12: [(0, 1), (200, None)]} is {0: {12: 1}, 200: {}}.

    Byte 0 is the first one written; the value None frees the unit. Raises UserError unless bytes are whole numbers
    that increase.
    """
    changes = {unit: list(v) if _several(v) else [(0, v)] for unit, v in clamp.items()}
    for unit, parts in changes.items():
        pairs = all(_several(part) and len(part) == 2 for part in parts)
        starts = [start for start, _ in parts] if pairs else []
        whole = lambda start: isinstance(start, int | np.integer) and not isinstance(start, bool)
        known = all(whole(start) and 0 <= start < 2**31 for start in starts)
        in_order = known and starts and starts == sorted(set(starts))
        if not in_order:
            raise UserError(f"the values of unit {unit} need bytes that increase, from 0 on, as in 1.0@0,-1.0@200")
    value = lambda parts, byte: next((v for start, v in reversed(parts) if start <= byte), None)
    return {
        byte: {unit: v for unit, parts in changes.items() if (v := value(parts, byte)) is not None}
        for byte in sorted({0}.union(int(start) for parts in changes.values() for start, _ in parts))
    }


@partial(jax.jit, static_argnames="of")
def _read(weights, data, state, lengths, clamp, of):
    return scan(weights, data, state, lengths, clamp, of=of)[0]


def _prime(weights, prime: bytes, clamp, of) -> State:
    """The state after the prime, in pieces of one shape."""
    state = zero_state(weights, 1)
    for start in range(0, len(prime), CHUNK):
        piece = np.frombuffer(prime[start : start + CHUNK], np.uint8)
        padded = np.pad(piece, (0, CHUNK - len(piece)))[None]
        state = _read(weights, padded, state, np.array([len(piece)], np.int32), clamp, of)
    return state


def limits_of(options: SamplingOptions) -> Limits:
    """What `write` needs of the options."""
    return Limits(jnp.float32(options.temperature), jnp.int32(min(options.top_k, 256)), jnp.float32(options.top_p))


@partial(jax.jit, donate_argnames="state", static_argnames="of")
def write(weights, state, keys, first, limits, clamps, of):
    """The state after the next bytes of every sample, and these, uint8 [samples, bytes]; takes the state's memory.

    `first` is the number of the first of them, which decides what is drawn. `clamps` has one `Held` a byte, stacked.
    """

    def body(state, inputs):
        position, clamp = inputs
        keys_here = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        logits = read_out(weights, state[1])
        bytes_ = jax.vmap(choose, (0, 0, None, None, None))(keys_here, logits, *limits)
        return step(weights, state, bytes_, clamp, of), bytes_

    state, written = jax.lax.scan(body, state, (first + jnp.arange(len(clamps.units), dtype=jnp.int32), clamps))
    return state, written.T


def stream(
    weights: Weights,
    prime: bytes,
    num: int,
    length: int,
    clamp: Held | Mapping[int, Held | None] | None = None,
    options: SamplingOptions = SamplingOptions(),
) -> Iterator[Piece]:
    """`num` samples of `length` bytes that follow `prime`, piece by piece, as they are written.

    Sample i draws with the key fold_in(seed, i), and is the same text alone and in a batch, unless the last digit,
    which depends on the size of the batch, decides between two bytes.
    `clamp` overwrites the state of the units that it holds after every byte written; one that changes is a mapping
    from the byte at which a stretch begins, 0 among them.
    """
    held = dict(sorted(clamp.items())) if isinstance(clamp, Mapping) else {0: clamp}
    free = Held(np.zeros(weights.hidden, bool), np.zeros(weights.hidden, np.float32))
    stretches = [free if value is None else value for value in held.values()]
    of = options.clamp_feature
    after_prime = _prime(weights, prime, stretches[0] if options.clamp_prime else free, of)
    clamps = jax.tree.map(lambda *parts: np.stack(parts), *stretches)
    limits = limits_of(options)
    on_cpu = jax.default_backend() == "cpu"
    group = min(GROUP, 1 << (num - 1).bit_length()) if on_cpu else num
    chunk = CHUNK if on_cpu else 4 * CHUNK  # there a call costs more
    for first in range(0, num, group):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(options.seed)))(
            first + jnp.arange(group, dtype=jnp.int32)
        )
        state = tuple(jnp.repeat(s, group, axis=0) for s in after_prime)
        writing = list(range(min(group, num - first)))
        for start in range(0, length, chunk):
            # One clamp for every byte: the shape, and so the compiled program, is the same whatever is held when.
            now = np.searchsorted(list(held), start + np.arange(chunk), side="right") - 1
            clamps_now = jax.tree.map(lambda part, now=now: part[now], clamps)
            state, written = write(weights, state, keys, np.int32(start), limits, clamps_now, of)
            written = np.asarray(written)[:, : length - start]
            for i in list(writing):
                piece = written[i].tobytes()
                if options.stop and b"\n" in piece:
                    piece = piece[: piece.index(b"\n")]
                    writing.remove(i)
                yield Piece(first + i, piece)
            if not writing:
                break


def generate(
    weights: Weights,
    prime: bytes,
    num: int,
    length: int,
    clamp: Held | Mapping[int, Held | None] | None = None,
    options: SamplingOptions = SamplingOptions(),
    on_bytes: Callable[[int, bytes], None] = lambda sample, piece: None,
) -> list[bytes]:
    """All that `stream` writes, sample by sample. `on_bytes(sample, bytes)` is called with every piece."""
    samples = [bytearray() for _ in range(num)]
    for i, piece in stream(weights, prime, num, length, clamp, options):
        samples[i] += piece
        on_bytes(i, piece)
    return [bytes(sample) for sample in samples]
