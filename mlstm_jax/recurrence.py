"""The mLSTM cell and the loops over time.

The cell (Krause et al. 2016, arXiv 1609.07959, equations 19-22; gates in the paper release's order i, f, o, u):

    m = (x wmx) * (h wmh)
    i, f, o = sigmoid(x wx + m wh + b);  u = tanh(x wx + m wh + b)
    c' = f * c + i * u
    h' = o * tanh(c')

What does not depend on the state leaves the loop: a byte model has 256 possible inputs, so `x wx + b` and `x wmx` are
256-row tables (see `model.prepare`) and a step gathers one row of each.

`step` is the one cell everything uses. `scan` runs it over bytes to read, encode and generate; `unroll` runs it over a
training window and carries the hand-written backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

State = tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]  # (c, h)
OwnState = tuple[Float[Array, "batch units"], Float[Array, "batch units"]]  # of a device's part of the units


class Weights(NamedTuple):
    """What the loops need, prepared once: weight norm applied, input tables formed, recurrent matrices cast."""

    x: Float[Array, "vocab gates"]  # embed @ wx + b; gates = 4 * hidden
    mx: Float[Array, "vocab hidden"]  # embed @ wmx
    wmh: Float[Array, "hidden hidden"]
    wh: Float[Array, "hidden gates"]
    out: Float[Array, "hidden vocab"]
    out_b: Float[Array, "vocab"]


def zero_state(weights: Weights, batch: int) -> State:
    """The state before the first byte: (c, h) float32 [batch, hidden], all zero."""
    zeros = jnp.zeros((batch, weights.wmh.shape[0]), jnp.float32)
    return zeros, zeros


def dot(a: Float[Array, "batch k"], w: Float[Array, "k n"]) -> Float[Array, "batch n"]:
    """Matrix product in the weights' precision, accumulated in float32 at least."""
    dtype = w.dtype if w.dtype.itemsize >= 4 else jnp.float32
    return jnp.dot(a.astype(w.dtype), w, precision="highest", preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def total(part: Float[Array, "..."], axis: str | None) -> Float[Array, "..."]:
    """The sum of `part` over the devices along a mesh axis; `part` itself where that is None.

    The sum's gradient is known on every device, so that it is each part's gradient as it stands.
    """
    return part if axis is None else jax.lax.psum(part, axis)


total.defvjp(lambda part, axis: (total(part, axis), None), lambda axis, _, gradient: (gradient,))


def before_gates(
    wmh: Float[Array, "units hidden"],
    wh: Float[Array, "hidden gates"],
    x: Float[Array, "batch gates"],
    mx: Float[Array, "batch hidden"],
    h: Float[Array, "batch units"],
    axis: str | None = None,
) -> tuple[Float[Array, "batch gates"], Float[Array, "batch hidden"]]:
    """(x wx + m wh + b, h wmh) from gathered inputs. `axis` as in `cell`."""
    mh = total(dot(h, wmh), axis)
    # The barrier lets the look-up of x join the arithmetic behind the product, not run by itself ahead of it.
    return x + jax.lax.optimization_barrier(dot(mx * mh, wh)), mh


def gates(z: Float[Array, "batch gates"]) -> tuple[Float[Array, "batch units"], ...]:
    """i, f, o, u."""
    i, f, o, u = jnp.split(z, 4, axis=1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(u)


def cell(
    wmh: Float[Array, "units hidden"],
    wh: Float[Array, "hidden gates"],
    x: Float[Array, "batch gates"],
    mx: Float[Array, "batch hidden"],
    state: OwnState,
    axis: str | None = None,
) -> tuple[OwnState, tuple[Float[Array, "batch _"], ...]]:
    """One step from gathered inputs; also returns what `before_gates` does, which the backward pass needs.

    Where `axis` names an axis of a mesh, each device along it has its part of the units: its rows of wmh, its columns
    of wh and x (of all four gates) and its part of the state. h wmh is then a sum over the devices.
    """
    c, h = state
    z, mh = before_gates(wmh, wh, x, mx, h, axis)
    i, f, o, u = gates(z)
    c = f * c + i * u
    h = o * jnp.tanh(c)
    return (c, h), (z, mh)


def step(
    weights: Weights,
    state: State,
    byte: Int[Array, "batch"] | UInt8[Array, "batch"],
    clamp: Float[Array, "hidden"] | None = None,
    of: Literal["cell", "hidden"] = "cell",
) -> State:
    """Read one byte per row. Where `clamp` is not NaN it overwrites the new cell state, as the paper's sampler does.

    `of` "hidden" overwrites the new hidden state instead.
    """
    (c, h), _ = cell(weights.wmh, weights.wh, weights.x[byte], weights.mx[byte], state)
    if clamp is not None:
        hold = lambda s: jnp.where(jnp.isnan(clamp)[None], s, clamp[None])
        c, h = (hold(c), h) if of == "cell" else (c, hold(h))
    return c, h


def scan(
    weights: Weights,
    data: UInt8[Array, "batch time"],
    state: State,
    lengths: Int[Array, "batch"] | None = None,
    clamp: Float[Array, "hidden"] | None = None,
    emit: Callable[[State], Any] | None = None,
    of: Literal["cell", "hidden"] = "cell",
) -> tuple[State, Any]:
    """Run `step` over time. Returns the final state and `emit(state)` after every byte, stacked [batch, time, ...].

    Bytes at or beyond a row's length leave that row's state as it is, so padding changes nothing.
    """

    def body(state, inputs):
        t, byte = inputs
        new = step(weights, state, byte, clamp, of)
        if lengths is not None:
            new = jax.tree.map(partial(jnp.where, (t < lengths)[:, None]), new, state)
        return new, None if emit is None else emit(new)

    state, emitted = jax.lax.scan(body, state, (jnp.arange(data.shape[1]), data.T))
    return state, jax.tree.map(lambda a: a.swapaxes(0, 1), emitted)


def unroll(
    weights: Weights,
    data: UInt8[Array, "batch time"],
    state: State,
    precision: str | None = None,
    axis: str | None = None,
    segment: int = 0,
) -> tuple[Float[Array, "time batch units"], State]:
    """The hidden state after every byte of a training window, time first, and the final state. Differentiable.

    `precision` is that of the products in the loop, by default the weights' own; wider weights have wider gradients.
    Hidden states have it too, as products alone read them. `axis` as in `cell`. With a `segment`, which divides the
    window, the backward pass goes through so many bytes at a time, and what it needs of them is computed again.
    """
    dtype = jnp.dtype(precision or weights.wh.dtype)
    return _unroll(weights.wmh, weights.wh, weights.x, weights.mx, data.T, state, dtype, axis, segment)


# The backward pass by hand. Autodiff of lax.scan adds a full [hidden, 4 * hidden] weight gradient to an accumulator at
# every time step. Here the loop only stores gradients of what the products give, and every weight's gradient is one
# large matrix product after the loop.
#
# Kept for it are c in float32 and, as products read or give them, z, h wmh and h in the products' precision; the
# gradient of z is written over z. With a segment c and h alone are kept, and two large products, of all steps of a
# segment at once, give the rest again.


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _unroll(wmh, wh, x, mx, data, state, dtype, axis, segment):
    return _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, segment)[0]


def _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, segment):
    narrow_wmh, narrow_wh = wmh.astype(dtype), wh.astype(dtype)

    def body(state, byte):
        (c, h), saved = cell(narrow_wmh, narrow_wh, x[byte], mx[byte], state, axis)
        h = h.astype(dtype)
        return (c, h), (h, state[0], () if segment else tuple(s.astype(dtype) for s in saved))

    c, h = state[0], state[1].astype(dtype)
    (c_last, h_last), (hs, cs_before, saved) = jax.lax.scan(body, (c, h), data)
    return (hs, (c_last, h_last.astype(c.dtype))), (wmh, wh, x, mx, data, h, hs, cs_before, saved)


def _unroll_backward(dtype, axis, segment, residuals, cotangents):
    wmh, wh, x, mx, data, h0, hs, cs_before, saved = residuals
    dhs, last = cotangents  # of all hidden states, and of the last (c, h)
    narrow_wmh, narrow_wh = wmh.astype(dtype), wh.astype(dtype)
    # Real transposed copies: a product with a transposed view inside the loop is slower.
    wmh_t, wh_t = jax.lax.optimization_barrier((narrow_wmh.T, narrow_wh.T))
    rows = lambda a: a.reshape(-1, a.shape[-1])  # time and batch as one axis

    def body(carry, inputs):
        dc, dh, zs = carry
        t, byte, c_before, dh_out = inputs
        i, f, o, u = gates(jax.lax.dynamic_index_in_dim(zs, t, keepdims=False).astype(dc.dtype))
        dh, tanh_c = dh + dh_out.astype(dh.dtype), jnp.tanh(f * c_before + i * u)
        dc = dc + dh * o * (1 - tanh_c**2)
        di, df = dc * u * i * (1 - i), dc * c_before * f * (1 - f)
        do, du = dh * tanh_c * o * (1 - o), dc * i * (1 - u**2)
        # The barrier keeps the gates' arithmetic out of the copy that joins them, where it would be slower on a CPU.
        dz = jax.lax.optimization_barrier(tuple(d.astype(dtype) for d in (di, df, do, du)))
        dz = jnp.concatenate(dz, axis=1)
        dm = total(dot(dz, wh_t), axis)
        zs = jax.lax.dynamic_update_index_in_dim(zs, dz, t, axis=0)
        return (dc * f, dot(dm * mx[byte], wmh_t), zs), dm.astype(dtype)

    def through(last, inputs):
        """The gradients of the state before some steps, and of the weights in them, from that of their last state."""
        data, hs_before, cs_before, dhs, saved = inputs
        if not saved:
            byte = data.reshape(-1)
            saved = before_gates(narrow_wmh, narrow_wh, x[byte], mx[byte], rows(hs_before), axis)
        zs, mh = (s.astype(dtype).reshape(*data.shape, -1) for s in saved)
        steps = (jnp.arange(len(data)), data, cs_before, dhs)
        (dc, dh, dz), dm = jax.lax.scan(body, (*last, zs), steps, reverse=True)

        def product(a, d):  # a weight's gradient: the outer products of all steps, summed by one matrix product
            return dot(rows(a).T, rows(d).astype(dtype)).astype(wh.dtype)

        def table(d):  # a table's gradient: every step's gradient added to the row it read
            if dtype.itemsize < 4:  # as a product too, in the same order each time; on a CPU, in float32, it is slower
                return product(jax.nn.one_hot(data, len(mx), dtype=dtype), d)
            return jnp.zeros((len(mx), d.shape[-1]), d.dtype).at[data.reshape(-1)].add(rows(d))

        mx_here, mh, dm = mx[data], mh.astype(mx.dtype), dm.astype(mx.dtype)
        return (dc, dh), (product(hs_before, dm * mx_here), product(mx_here * mh, dz), table(dz), table(dm * mh))

    def add(so_far, inputs):
        first, slopes = through(so_far[0], inputs)
        return (first, jax.tree.map(jnp.add, so_far[1], slopes)), None

    inputs = (data, jnp.concatenate((h0[None], hs[:-1])), cs_before, dhs, saved)
    if segment:
        inputs = jax.tree.map(lambda a: a.reshape(-1, segment, *a.shape[1:]), inputs)
        zeros = jax.tree.map(jnp.zeros_like, (wmh, wh, x, mx))
        (first, slopes), _ = jax.lax.scan(add, (last, zeros), inputs, reverse=True)
    else:
        first, slopes = through(last, inputs)
    return *slopes, None, first


_unroll.defvjp(_unroll_forward, _unroll_backward)
