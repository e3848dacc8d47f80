"""Bits per byte of held-out text."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, UInt8

from mlstm_jax.config import Precision
from mlstm_jax.corpus.batches import ScoringBatch
from mlstm_jax.model.cell import State, Weights
from mlstm_jax.training import sharding
from mlstm_jax.training.updates import LOG2, _nats


class Score(NamedTuple):
    """What a batch costs, and the state after it."""

    carry: State
    bits: Float[Array, ""]  # of the targets inside the mask, summed over all rows


def score_step(
    weights: Weights,
    carry: State,
    batch: UInt8[Array, "batch seq_plus_one"],
    inside: Bool[Array, "batch seq"],
    precision: Precision,
    mesh: Mesh | None = None,
) -> Score:
    """The state after the batch, and the bits that the targets inside the mask cost."""
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
    return Score(*here(sharding.split(weights, mesh), carry, batch, inside))


def _own_score(weights, carry, batch, inside, precision, axis=None):
    nats, carry = _nats(weights, batch, carry, precision, axis)
    return Score(carry, jnp.where(inside, nats, 0).sum() / LOG2)


def _spread_score(own, carry, batch, inside, precision, mesh):
    weights = sharding.gather(own, precision, mesh)
    score = _own_score(weights, carry, batch, inside, precision, sharding.unit_axis(mesh))
    return score.carry, jax.lax.psum(score.bits, sharding.BATCH)


_score_step = jax.jit(score_step, static_argnames=("precision", "mesh"))


def bits_per_byte(weights: Weights, batches: Iterable[ScoringBatch], precision: Precision, mesh: Mesh) -> float:
    """Mean bits per byte over all targets of `scoring_batches`, every row from the zero state.

    The weights are float32, in the places of `sharding.PREPARED`.
    """
    carry, bits, targets = None, 0.0, 0
    for batch in batches:
        targets += int(batch.inside.sum())
        rows, inside = (sharding.spread_rows(a, mesh) for a in (batch.rows, batch.inside))
        if carry is None:
            zeros = np.zeros((len(rows), len(weights.wmh)), np.float32)
            place = sharding.named(mesh, P(sharding.BATCH, "model"))
            carry = sharding.spread_tree((zeros, zeros), (place, place))
        score = _score_step(weights, carry, rows, inside, precision, mesh)
        carry = score.carry
        bits += float(score.bits)
    return bits / targets
