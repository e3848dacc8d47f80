"""The training state and one update: pure functions, no disk."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from mlstm_jax.config import Config, Optimizer, Precision
from mlstm_jax.model import kernels, parameters
from mlstm_jax.model.cell import State, Weights
from mlstm_jax.model.parameters import Params
from mlstm_jax.model.unroll import unroll
from mlstm_jax.training import sharding

LOG2 = 0.6931471805599453  # nats in one bit
Metrics = dict[str, Array]

adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
# Muon (Jordan et al. 2024) moves a matrix by its orthogonalised momentum, here each gate's recurrent matrix alone.
MATRICES = {
    "wh": optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=2),
    "wmh": optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1),
}
muon = optax.contrib.scale_by_muon(weight_dimension_numbers=MATRICES)
MUON_RMS = 0.2  # of a matrix's direction, as Adam's about is, so that both take one rate (Liu et al. 2025, 2502.16982)


class TrainState(NamedTuple):
    """All that an update changes. A run is this, the config and the place in the data."""

    params: Params
    moments: optax.ScaleByAdamState
    carry: State  # the carried (c, h) of every row
    update: Int[Array, ""]
    skipped: Int[Array, ""]  # non-finite updates, which changed nothing, so far
    skipped_in_a_row: Int[Array, ""]


class Loss(NamedTuple):
    """What a batch costs, and the state after it."""

    nats: Float[Array, ""]  # mean of all next bytes
    carry: State


class Gradient(NamedTuple):
    """The gradient of a batch's loss, with what was found on the way."""

    nats: Float[Array, ""]
    carry: State  # after the batch
    slopes: Params  # float32


class WeightGradient(NamedTuple):
    """The same by the prepared weights."""

    nats: Float[Array, ""]
    carry: State
    slopes: Weights


class Update(NamedTuple):
    """What an update gives."""

    state: TrainState
    metrics: Metrics


class Inputs(NamedTuple):
    """What `jitted` takes, in its order."""

    state: TrainState
    batch: UInt8[Array, "batch seq_plus_one"] | jax.ShapeDtypeStruct
    fresh: Bool[Array, ""] | jax.ShapeDtypeStruct
    rate: Float[Array, ""] | jax.ShapeDtypeStruct


def init_state(params: Params, batch_size: int) -> TrainState:
    """The state before the first update."""
    hidden = params["wmh"].shape[0]
    zeros = jnp.zeros((batch_size, hidden), jnp.float32)
    count = lambda: jnp.zeros((), jnp.int32)
    moments = cast(optax.ScaleByAdamState, adam.init(params))
    return TrainState(params, moments, (zeros, jnp.zeros_like(zeros)), count(), count(), count())


def learning_rate(initial: float, update: int, start: int, end: int, decay_fraction: float = 1.0) -> float:
    """`initial` from update `start` on, with a linear decay to zero over the last `decay_fraction`, until `end`."""
    held_until = start + (1 - decay_fraction) * (end - start)
    return initial * min(1.0, 1 - (update - held_until) / (end - held_until))


def new_state(config: Config) -> TrainState:
    """The state of a run that starts from drawn weights."""
    return init_state(parameters.init(config.model, config.seed), config.batch_size)


def draw_state(config: Config, mesh: Mesh) -> TrainState:
    """`new_state`, each array in its place on the mesh. Raises UserError as `shardings` does."""
    sharding.require_units(config.model.hidden, mesh)
    return _drawing(Config(model=config.model, seed=config.seed, batch_size=config.batch_size), mesh)()


@lru_cache(4)
def _drawing(config, mesh):
    return jax.jit(partial(new_state, config), out_shardings=_places(mesh))


def shardings(config: Config, mesh: Mesh) -> TrainState:
    """Where each array of a state lives on the mesh. Raises UserError where the units are not to be spread over it."""
    sharding.require_units(config.model.hidden, mesh)
    return _places(mesh)


def _places(mesh):
    spread = sharding.named(mesh, sharding.PARAMS)
    alone, carry = sharding.named(mesh, (P(), P(sharding.BATCH, "model")))
    moments = optax.ScaleByAdamState(count=alone, mu=spread, nu=spread)
    return TrainState(spread, moments, (carry, carry), alone, alone, alone)


def loss(
    weights: Weights,
    batch: UInt8[Array, "batch seq_plus_one"],
    carry: State,
    precision: str | None = None,
    axis: str | None = None,
    unroll: Callable = unroll,
) -> Loss:
    """Mean cross-entropy in nats of every next byte, and the state after the batch.

    `precision` and `axis` as in `unroll.unroll`; `unroll` is that, with its other options.
    """
    nats, carry = _nats(weights, batch, carry, precision, axis, unroll)
    return Loss(nats.mean(), carry)


def _nats(weights, batch, carry, precision, axis, unroll=unroll) -> tuple[Float[Array, "batch seq"], State]:
    """What every next byte costs, and the state after the batch."""
    hidden, carry = unroll(weights, batch[:, :-1], carry, precision, axis)
    logits = parameters.read_out(weights, hidden, precision, axis)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:].T.astype(jnp.int32)).T, carry


def gradient(
    params: Params,
    batch: UInt8[Array, "batch seq_plus_one"],
    carry: State,
    precision: Precision,
    mesh: Mesh | None = None,
    groups: int = 1,
    unroll: Callable = unroll,
) -> Gradient:
    """`loss`, the state after the batch, and the gradient, float32 whatever the products' precision.

    On a mesh every device does its own rows, and the gradients are summed once. `groups` of rows one after the other
    take less memory and give the same gradient.
    """
    weights, pull_back = jax.vjp(parameters.prepare, params)
    if mesh is None or mesh.size == 1:
        found = _own_gradient(weights, batch, carry, precision, groups, unroll)
    else:
        state = P(sharding.BATCH, "model")
        here = jax.shard_map(
            partial(_spread_gradient, precision=precision, groups=groups, unroll=unroll, mesh=mesh),
            mesh=mesh,
            in_specs=(sharding.WEIGHTS, P(sharding.BATCH), (state, state)),
            out_specs=(P(), (state, state), sharding.WEIGHTS),
            check_vma=False,
        )
        nats, carry, slopes = here(sharding.split(weights, mesh), batch, carry)
        found = WeightGradient(nats, carry, sharding.join(slopes, mesh))
    (slopes,) = pull_back(found.slopes)
    return Gradient(found.nats, found.carry, slopes)


def _spread_gradient(own, batch, carry, precision, groups, unroll, mesh):
    """`_own_gradient` on one device of a mesh, with the weights gathered and the gradient reduced, each once."""
    weights = sharding.gather(own, precision, mesh)
    axis = sharding.unit_axis(mesh)
    found = _own_gradient(weights, batch, carry, precision, groups, unroll, axis)
    nats = jax.lax.pmean(found.nats, sharding.BATCH)
    return nats, found.carry, sharding.reduce(found.slopes, mesh)


def _own_gradient(weights, batch, carry, precision, groups, unroll, axis=None):
    """`loss`, the state and the gradient of the weights on one device's rows, in groups."""
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    differentiate = jax.value_and_grad(partial(loss, precision=precision, axis=axis, unroll=unroll), has_aux=True)

    def one(batch, carry):
        (nats, carry), slopes = differentiate(wide, batch, carry)
        return WeightGradient(nats, carry, slopes)

    if groups == 1:
        return one(batch, carry)

    def add(so_far, group):
        found = one(*group)
        return jax.tree.map(jnp.add, so_far, (found.nats, found.slopes)), found.carry

    split = lambda a: a.reshape(groups, -1, *a.shape[1:])
    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, wide))
    (nats, slopes), carry = jax.lax.scan(add, zeros, jax.tree.map(split, (batch, carry)))
    mean = lambda total: total / groups
    carry = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), carry)
    return WeightGradient(mean(nats), carry, jax.tree.map(mean, slopes))


def train_step(
    state: TrainState,
    batch: UInt8[Array, "batch seq_plus_one"],
    fresh: Bool[Array, ""] | bool,
    rate: Float[Array, ""] | float,
    *,
    clip_norm: float,
    precision: Precision,
    mesh: Mesh | None = None,
    groups: int = 1,
    unroll: Callable = unroll,
    optimizer: Optimizer = "adam",
) -> Update:
    """One update at the given learning rate on one batch; `fresh` starts every row from the zero state."""
    carry = jax.tree.map(lambda a: jnp.where(fresh, jnp.zeros_like(a), a), state.carry)
    found = gradient(state.params, batch, carry, precision, mesh, groups, unroll)
    return apply_gradient(state, found, rate, clip_norm=clip_norm, optimizer=optimizer)


def jitted(config: Config, precision: Precision, mesh: Mesh):
    """The update as it is compiled: (state, batch, fresh, rate) -> (state, metrics); the state is used up."""
    sharding.require_units(config.model.hidden, mesh)
    loops, _ = kernels.choose(config, mesh, precision)
    return _jitted(
        precision, mesh, config.clip_norm, config.grad_accumulation, config.remat_every, loops, config.optimizer
    )


@lru_cache(4)  # so that runs of one process share a program
def _jitted(precision, mesh, clip_norm, groups, remat_every, loops, optimizer):
    loop = partial(unroll, remat_every=remat_every, loops=loops)
    options = dict(clip_norm=clip_norm, precision=precision, groups=groups, optimizer=optimizer)
    return jax.jit(
        partial(train_step, **options, mesh=mesh, unroll=loop),
        donate_argnames="state",
        out_shardings=Update(_places(mesh), sharding.named(mesh, P())),
    )


def shapes(config: Config, mesh: Mesh) -> Inputs:
    """What `jitted` takes, as shapes in their places, for compiling it ahead of time."""
    put = lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
    state = jax.tree.map(put, jax.eval_shape(partial(new_state, config)), shardings(config, mesh))
    alone, carry = sharding.named(mesh, (P(), P(sharding.BATCH)))
    batch = jax.ShapeDtypeStruct((config.batch_size, config.seq_length + 1), jnp.uint8, sharding=carry)
    fresh, rate = (jax.ShapeDtypeStruct((), dtype, sharding=alone) for dtype in (jnp.bool_, jnp.float32))
    return Inputs(state, batch, fresh, rate)


def apply_gradient(
    state: TrainState,
    gradient: Gradient,
    rate: Float[Array, ""] | float,
    *,
    clip_norm: float,
    optimizer: Optimizer = "adam",
) -> Update:
    """The update that a batch's gradient makes.

    Where the loss, the gradient, or a number of the new state is not finite, nothing but the counters changes, and the
    rows start afresh.
    """
    nats, carry, slopes = gradient.nats, gradient.carry, gradient.slopes
    norm = optax.tree.norm(slopes)
    if clip_norm:
        slopes = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip_norm / norm), slopes)
    direction, moments = _adam(slopes, state.moments)
    if optimizer == "muon":
        direction, moments = _muon(slopes, state.moments, direction, moments)
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)

    good = jnp.isfinite(nats) & jnp.isfinite(norm)
    good = jax.tree.reduce(lambda so_far, p: so_far & jnp.isfinite(p).all(), (params, moments, carry), good)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    state = TrainState(
        params=keep(params, state.params),
        moments=keep(moments, state.moments),
        carry=keep(carry, jax.tree.map(jnp.zeros_like, carry)),
        update=state.update + 1,
        skipped=state.skipped + (~good).astype(jnp.int32),
        skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )
    return Update(
        state,
        {
            "bits_per_byte": nats / LOG2,
            "gradient_norm": norm,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        },
    )


def _adam(gradient: Params, moments: optax.ScaleByAdamState) -> tuple[Params, optax.ScaleByAdamState]:
    """The direction of an update, and the new moments.

    The bias correction takes powers of 0.9 and 0.999 by the count: of a float32 these are float32, in any mode of jax.
    """
    found = adam.update(gradient, moments._replace(count=jnp.asarray(moments.count, jnp.float32)))
    direction, new = cast(tuple[Params, optax.ScaleByAdamState], found)
    return direction, new._replace(count=moments.count + 1)


def _muon(
    gradient: Params, moments: optax.ScaleByAdamState, direction: Params, new: optax.ScaleByAdamState
) -> tuple[Params, optax.ScaleByAdamState]:
    """Adam's direction and new moments, with Muon's for `MATRICES`: their `mu` is Muon's momentum, their `nu` idle."""
    of = lambda table, name: cast(Params, table)[name]
    gates = lambda a: a.reshape(len(a), -1, len(a)) if a.shape[0] < a.shape[1] else a
    chosen = lambda table: {name: gates(of(table, name)) for name in MATRICES}
    start = cast(Any, muon.init(chosen(gradient)))
    # As in `_adam`: of float32 all is float32, in any mode of jax.
    count, coefficients = jnp.asarray(moments.count, jnp.float32), start.ns_coeffs.astype(jnp.float32)
    state = start._replace(count=count, mu=chosen(moments.mu), ns_coeffs=coefficients)
    found, state = cast(Any, muon.update(chosen(gradient), state))
    put = lambda table, values: (
        cast(Params, table) | {name: value.reshape(gradient[name].shape) for name, value in values.items()}
    )
    scaled = {name: MUON_RMS * len(value) ** 0.5 * value for name, value in found.items()}
    idle = {name: of(moments.nu, name) for name in MATRICES}
    return put(direction, scaled), new._replace(mu=put(new.mu, state.mu), nu=put(new.nu, idle))
