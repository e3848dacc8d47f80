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
    carry: State,
    batch: UInt8[Array, "batch seq_plus_one"],
    inside: Bool[Array, "batch seq"],
    precision: Precision,
    mesh: Mesh | None = None,
) -> tuple[State, Float[Array, ""]]:
    """The state after the batch, and the bits that the targets inside the mask cost, summed over all rows."""
    if mesh is None or mesh.size == 1:
        return _own_score(weights, carry, batch, inside, precision)
    state = P(sharding.BATCH, "model")
    here = jax.shard_map(
        partial(_spread_score, precision=precision, mesh=mesh),
        mesh=mesh,
        in_specs=(sharding.WEIGHTS, (state, state), P(sharding.BATCH), P(sharding.BATCH)),
        out_specs=((state, state), P()),
        check_vma=False,
    )
    return here(sharding.split(weights, mesh), carry, batch, inside)


def _own_score(weights, carry, batch, inside, precision, axis=None):
    nats, carry = _nats(weights, batch, carry, precision, axis)
    return carry, jnp.where(inside, nats, 0).sum() / LOG2


def _spread_score(own, carry, batch, inside, precision, mesh):
    weights = sharding.gather(own, precision, mesh)
    carry, bits = _own_score(weights, carry, batch, inside, precision, sharding.unit_axis(mesh))
    return carry, jax.lax.psum(bits, sharding.BATCH)


_score_step = jax.jit(score_step, static_argnames=("precision", "mesh"))


def bits_per_byte(weights: Weights, batches, precision: Precision, mesh: Mesh) -> float:
    """Mean bits per byte over all targets of `scoring_batches`, every row from the zero state.

    The weights are float32, in the places of `sharding.PREPARED`.
    """
    state, bits, targets = None, 0.0, 0
    for batch, inside in batches:
        targets += int(inside.sum())
        batch, inside = (sharding.spread_rows(rows, mesh) for rows in (batch, inside))
        if state is None:
            zeros = np.zeros((len(batch), len(weights.wmh)), np.float32)
            place = sharding.named(mesh, P(sharding.BATCH, "model"))
            state = sharding.spread_tree((zeros, zeros), (place, place))
        state, cost = _score_step(weights, state, batch, inside, precision, mesh)
        bits += float(cost)
    return bits / targets
