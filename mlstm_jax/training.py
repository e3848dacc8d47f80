"""The training state, one update, and the scoring of held-out bytes: pure functions, no disk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from mlstm_jax import model
from mlstm_jax.model import Params, Precision
from mlstm_jax.recurrence import State, Weights, unroll, zero_state

LOG2 = 0.6931471805599453  # nats in one bit
Metrics = dict[str, Array]

adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


class TrainState(NamedTuple):
    """All that an update changes. A run is this, the config and the place in the data."""

    params: Params
    moments: optax.OptState  # Adam's
    lanes: State  # the carried (c, h) of every lane
    update: Int[Array, ""]
    skipped: Int[Array, ""]  # non-finite updates, which changed nothing, so far
    skipped_in_a_row: Int[Array, ""]


def init_state(params: Params, lanes: int) -> TrainState:
    """The state before the first update."""
    hidden = params["wmh"].shape[0]
    zeros = jnp.zeros((lanes, hidden), jnp.float32)
    count = lambda: jnp.zeros((), jnp.int32)
    return TrainState(params, adam.init(params), (zeros, jnp.zeros_like(zeros)), count(), count(), count())


def learning_rate(initial: float, update: int, start: int, end: int) -> float:
    """Linear decay from `initial` at update `start` to zero at update `end`."""
    return initial * (1 - (update - start) / (end - start))


def loss(
    params: Params, window: UInt8[Array, "lanes window_and_one"], lanes: State, precision: Precision
) -> tuple[Float[Array, ""], State]:
    """Mean cross-entropy in nats of every next byte, and the state after the window."""
    logits, lanes = model.forward(params, window[:, :-1], lanes, precision)
    targets = window[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), lanes


def train_step(
    state: TrainState,
    window: UInt8[Array, "lanes window_and_one"],
    fresh: Bool[Array, ""] | bool,
    rate: Float[Array, ""] | float,
    *,
    clip: float,
    precision: Precision,
) -> tuple[TrainState, Metrics]:
    """One update of Adam at the given learning rate on one window; `fresh` starts every lane from the zero state."""
    lanes = jax.tree.map(lambda a: jnp.where(fresh, jnp.zeros_like(a), a), state.lanes)
    (nats, lanes), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, window, lanes, precision)
    return apply_gradient(state, gradient, nats, lanes, rate, clip=clip)


def apply_gradient(
    state: TrainState,
    gradient: Params,
    nats: Float[Array, ""],
    lanes: State,
    rate: Float[Array, ""] | float,
    *,
    clip: float,
) -> tuple[TrainState, Metrics]:
    """The update that a window's gradient, loss in nats and last state make.

    A loss, gradient or new parameter that is not finite changes nothing but the counters, and starts the lanes afresh.
    """
    norm = optax.tree.norm(gradient)
    if clip:
        gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / norm), gradient)
    direction, moments = adam.update(gradient, state.moments)
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)

    good = jnp.isfinite(nats) & jnp.isfinite(norm)
    good = jax.tree.reduce(lambda so_far, p: so_far & jnp.isfinite(p).all(), params, good)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    state = TrainState(
        params=keep(params, state.params),
        moments=keep(moments, state.moments),
        lanes=keep(lanes, jax.tree.map(jnp.zeros_like, lanes)),
        update=state.update + 1,
        skipped=state.skipped + ~good,
        skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )
    return state, {
        "bits_per_byte": nats / LOG2,
        "gradient_norm": norm,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }


def score_step(
    weights: Weights,
    lanes: State,
    window: UInt8[Array, "lanes window_and_one"],
    inside: Bool[Array, "lanes window"],
) -> tuple[State, Float[Array, ""]]:
    """The state after the window, and the bits that the targets inside the mask cost, summed."""
    hidden, lanes = unroll(weights, window[:, :-1], lanes)
    logits = model.read_out(weights, hidden).swapaxes(0, 1)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:].astype(jnp.int32))
    return lanes, jnp.where(inside, nats, 0).sum() / LOG2


_score_step = jax.jit(score_step)


def bits_per_byte(weights: Weights, windows, lanes: int) -> float:
    """Mean bits per byte over all targets of `scoring_windows`, every lane from the zero state."""
    state, bits, targets = zero_state(weights, lanes), 0.0, 0
    for window, inside in windows:
        state, cost = _score_step(weights, state, window, inside)
        bits, targets = bits + float(cost), targets + int(inside.sum())
    return bits / targets
