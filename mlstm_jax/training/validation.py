"""Bits per byte of held-out text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, UInt8

from mlstm_jax.config import Precision
from mlstm_jax.model.cell import State, Weights
from mlstm_jax.training import sharding
from mlstm_jax.training.updates import LOG2, _nats


def score_step(
    weights: Weights,
    lanes: State,
    window: UInt8[Array, "lanes window_and_one"],
    inside: Bool[Array, "lanes window"],
    precision: Precision,
    mesh: Mesh | None = None,
) -> tuple[State, Float[Array, ""]]:
    """The state after the window, and the bits that the targets inside the mask cost, summed over all lanes."""
    if mesh is None or mesh.size == 1:
        return _own_score(weights, lanes, window, inside, precision)
    state = P(sharding.LANES, "model")
    here = jax.shard_map(
        partial(_spread_score, precision=precision, mesh=mesh),
        mesh=mesh,
        in_specs=(sharding.WEIGHTS, (state, state), P(sharding.LANES), P(sharding.LANES)),
        out_specs=((state, state), P()),
        check_vma=False,
    )
    return here(sharding.split(weights, mesh), lanes, window, inside)


def _own_score(weights, lanes, window, inside, precision, axis=None):
    nats, lanes = _nats(weights, window, lanes, precision, axis)
    return lanes, jnp.where(inside, nats, 0).sum() / LOG2


def _spread_score(own, lanes, window, inside, precision, mesh):
    weights = sharding.gather(own, precision, mesh)
    lanes, bits = _own_score(weights, lanes, window, inside, precision, sharding.unit_axis(mesh))
    return lanes, jax.lax.psum(bits, sharding.LANES)


_score_step = jax.jit(score_step, static_argnames=("precision", "mesh"))


def bits_per_byte(weights: Weights, windows, precision: Precision, mesh: Mesh) -> float:
    """Mean bits per byte over all targets of `scoring_windows`, every lane from the zero state.

    The weights are float32, in the places of `sharding.PREPARED`.
    """
    state, bits, targets = None, 0.0, 0
    for window, inside in windows:
        targets += int(inside.sum())
        window, inside = (sharding.spread_rows(rows, mesh) for rows in (window, inside))
        if state is None:
            zeros = np.zeros((len(window), len(weights.wmh)), np.float32)
            place = sharding.named(mesh, P(sharding.LANES, "model"))
            state = sharding.spread_tree((zeros, zeros), (place, place))
        state, cost = _score_step(weights, state, window, inside, precision, mesh)
        bits += float(cost)
    return bits / targets
