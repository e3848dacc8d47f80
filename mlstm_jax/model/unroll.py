"""The loop over a training sequence, with its hand-written backward pass."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mlstm_jax.model.cell import (
    OwnState,
    State,
    Weights,
    before_gates,
    cell,
    dot,
    next_state_backward,
    outer,
    split,
    total,
)


def unroll(
    weights: Weights,
    data: UInt8[Array, "batch time"],
    state: State,
    precision: str | None = None,
    axis: str | None = None,
    remat_every: int = 0,
    loops: "Loops | None" = None,
) -> tuple[Float[Array, "time batch units"], State]:
    """The hidden state after every byte of a training sequence, time first, and the final state. Differentiable.

    `precision` is that of the products in the loop, by default the weights' own; wider weights have wider gradients.
    Hidden states have it too, as products alone read them. `axis` as in `cell`. With `remat_every`, which divides the
    sequence, the backward pass goes through so many bytes at a time, and what it needs of them is computed again.
    `loops` of `kernels` take neither.
    """
    dtype = jnp.dtype(precision or weights.wh.dtype)
    loops = loops or Loops(partial(forward_loop, axis=axis, keep=not remat_every), partial(backward_loop, axis=axis))
    return _unroll(weights.wmh, weights.wh, weights.x, weights.mx, data.T, state, dtype, axis, remat_every, loops)


# The backward pass by hand. Autodiff of lax.scan adds a full [hidden, 4 * hidden] weight gradient to an accumulator at
# every time step. Here the loop only stores gradients of what the products give, and every weight's gradient is one
# large matrix product after the loop.
#
# Kept for it are c in float32 and, as products read or give them, z, h wmh and h in the products' precision; the
# gradient of z is written over z. With remat_every, c and h alone are kept, and two large products, of all steps of a
# segment at once, give the rest again.


class Loops(NamedTuple):
    """What goes through a sequence byte by byte: `forward_loop` and `backward_loop`, or others that do the same."""

    forward: Callable
    backward: Callable


def forward_loop(
    wmh: Float[Array, "units hidden"],
    wh: Float[Array, "hidden gates"],
    x: Float[Array, "vocab gates"],
    mx: Float[Array, "vocab hidden"],
    data: UInt8[Array, "time batch"],
    state: OwnState,
    axis: str | None = None,
    keep: bool = True,
) -> tuple[OwnState, Float[Array, "time batch units"], Float[Array, "time batch units"], tuple]:
    """The last state; of every step its h, the c before it and, where they are to be kept, z and h wmh.

    h, z and h wmh come in the precision of wmh and wh.
    """
    dtype = wh.dtype

    def body(state, byte):
        (c, h), saved = cell(wmh, wh, x[byte], mx[byte], state, axis)
        h = h.astype(dtype)
        return (c, h), (_bits(h), state[0], tuple(_bits(s.astype(dtype)) for s in saved) if keep else ())

    c, h = state
    (c_last, h_last), (hs, cs_before, saved) = jax.lax.scan(body, (c, h.astype(dtype)), data)
    saved = tuple(_floats(s, dtype) for s in saved)
    return (c_last, h_last.astype(c.dtype)), _floats(hs, dtype), cs_before, saved


def _bits(a):
    """Bits of bfloat16, which XLA can write into a larger array in place.

    On CPUs it would convert the whole of an array of bfloat16 to float32 and back at each step.
    """
    return jax.lax.bitcast_convert_type(a, jnp.uint16) if a.dtype == jnp.bfloat16 else a


def _floats(a, dtype):
    """Inverse of `_bits`."""
    return jax.lax.bitcast_convert_type(a, dtype) if a.dtype == jnp.uint16 else a


def backward_loop(
    wmh_t: Float[Array, "hidden units"],
    wh_t: Float[Array, "gates hidden"],
    mx: Float[Array, "vocab hidden"],
    data: UInt8[Array, "time batch"],
    zs: Float[Array, "time batch gates"],
    cs_before: Float[Array, "time batch units"],
    dhs: Float[Array, "time batch units"],
    last: OwnState,
    axis: str | None = None,
) -> tuple[OwnState, Float[Array, "time batch gates"], Float[Array, "time batch hidden"]]:
    """From the gradients of every h and of the last state, those of the first state, and of every z and m."""
    dtype = wh_t.dtype

    def body(carry, inputs):
        dc, dh, zs = carry
        t, byte, c_before, dh_out = inputs
        z = _floats(jax.lax.dynamic_index_in_dim(zs, t, keepdims=False), dtype).astype(dc.dtype)
        dc, dz = next_state_backward(split(z), c_before, dc, dh + _floats(dh_out, dtype).astype(dh.dtype))
        # The barrier keeps the gates' arithmetic out of the copy that joins them, where it would be slower on a CPU.
        dz = jnp.concatenate(jax.lax.optimization_barrier(tuple(d.astype(dtype) for d in dz)), axis=1)
        dm = total(dot(dz, wh_t), axis)
        zs = jax.lax.dynamic_update_index_in_dim(zs, _bits(dz), t, axis=0)
        return (dc, dot(dm * mx[byte], wmh_t), zs), _bits(dm.astype(dtype))

    steps = (jnp.arange(len(data), dtype=jnp.int32), data, cs_before, _bits(dhs))
    (dc, dh, dzs), dms = jax.lax.scan(body, (*last, _bits(zs)), steps, reverse=True)
    return (dc, dh), _floats(dzs, dtype), _floats(dms, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _unroll(wmh, wh, x, mx, data, state, dtype, axis, remat_every, loops):
    return _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, remat_every, loops)[0]


def _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, remat_every, loops):
    last, hs, cs_before, saved = loops.forward(wmh.astype(dtype), wh.astype(dtype), x, mx, data, state)
    return (hs, last), (wmh, wh, x, mx, data, state[1].astype(dtype), hs, cs_before, saved)


def _unroll_backward(dtype, axis, remat_every, loops, residuals, cotangents):
    wmh, wh, x, mx, data, h0, hs, cs_before, saved = residuals
    dhs, last = cotangents  # of all hidden states, and of the last (c, h)
    narrow_wmh, narrow_wh = wmh.astype(dtype), wh.astype(dtype)
    # Real transposed copies: a product with a transposed view inside the loop is slower.
    wmh_t, wh_t = jax.lax.optimization_barrier((narrow_wmh.T, narrow_wh.T))
    rows = lambda a: a.reshape(-1, a.shape[-1])  # time and batch as one axis

    def through(last, inputs):
        """The gradients of the state before some steps, and of the weights in them, from that of their last state."""
        data, hs_before, cs_before, dhs, saved = inputs
        if not saved:
            byte = data.reshape(-1)
            saved = before_gates(narrow_wmh, narrow_wh, x[byte], mx[byte], rows(hs_before), axis)
        zs, mh = (s.astype(dtype).reshape(*data.shape, -1) for s in saved)
        first, dz, dm = loops.backward(wmh_t, wh_t, mx, data, zs, cs_before, dhs, last)

        def product(a, d):  # a weight's gradient: the outer products of all steps, summed by one matrix product
            return outer(rows(a).astype(dtype), rows(d).astype(dtype)).astype(wh.dtype)

        def table(d):  # a table's gradient: every step's gradient added to the row it read
            if dtype.itemsize < 4:  # as a product, in the same order each time; on a CPU, in float32, it is slower
                return product(jax.nn.one_hot(data, len(mx), dtype=dtype), d)
            return jnp.zeros((len(mx), d.shape[-1]), d.dtype).at[data.reshape(-1)].add(rows(d))

        mx_here, mh, dm = mx[data], mh.astype(mx.dtype), dm.astype(mx.dtype)
        return first, (product(hs_before, dm * mx_here), product(mx_here * mh, dz), table(dz), table(dm * mh))

    def add(so_far, inputs):
        first, slopes = through(so_far[0], inputs)
        return (first, jax.tree.map(jnp.add, so_far[1], slopes)), None

    inputs = (data, jnp.concatenate((h0[None], hs[:-1])), cs_before, dhs, saved)
    if remat_every:
        inputs = jax.tree.map(lambda a: a.reshape(-1, remat_every, *a.shape[1:]), inputs)
        zeros = jax.tree.map(jnp.zeros_like, (wmh, wh, x, mx))
        (first, slopes), _ = jax.lax.scan(add, (last, zeros), inputs, reverse=True)
    else:
        first, slopes = through(last, inputs)
    return *slopes, None, first


_unroll.defvjp(_unroll_forward, _unroll_backward)
