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


def cell(
    wmh: Float[Array, "units hidden"],
    wh: Float[Array, "hidden gates"],
    x: Float[Array, "batch gates"],
    mx: Float[Array, "batch hidden"],
    state: OwnState,
    axis: str | None = None,
) -> tuple[OwnState, tuple[Float[Array, "batch _"], ...]]:
    """One step from gathered inputs; also returns (i, f, o, u, h wmh), which the backward pass needs.

    Where `axis` names an axis of a mesh, each device along it has its part of the units: its rows of wmh, its columns
    of wh and x (of all four gates) and its part of the state. h wmh is then a sum over the devices.
    """
    c, h = state
    mh = total(dot(h, wmh), axis)
    i, f, o, u = jnp.split(x + dot(mx * mh, wh), 4, axis=1)
    i, f, o, u = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(u)
    c = f * c + i * u
    h = o * jnp.tanh(c)
    return (c, h), (i, f, o, u, mh)


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
) -> tuple[Float[Array, "time batch units"], State]:
    """The hidden state after every byte of a training window, time first, and the final state. Differentiable.

    `precision` is that of the products in the loop, by default the weights' own; wider weights have wider gradients.
    `axis` as in `cell`.
    """
    dtype = jnp.dtype(precision or weights.wh.dtype)
    return _unroll(weights.wmh, weights.wh, weights.x, weights.mx, data.T, state, dtype, axis)


# The backward pass by hand. Autodiff of lax.scan adds a full [hidden, 4 * hidden] weight gradient to an accumulator at
# every time step. Here the loop only stores the gradient of each pre-activation, and every weight gradient is one large
# matrix product after the loop. The gates are stored apart: joining them costs a copy at every step.


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _unroll(wmh, wh, x, mx, data, state, dtype, axis):
    return _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis)[0]


def _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis):
    narrow_wmh, narrow_wh = wmh.astype(dtype), wh.astype(dtype)

    def body(state, byte):
        (c, h), saved = cell(narrow_wmh, narrow_wh, x[byte], mx[byte], state, axis)
        return (c, h), (h, state[0], tuple(s.astype(dtype) for s in saved))

    final, (hs, cs_before, saved) = jax.lax.scan(body, state, data)
    return (hs, final), (wmh, wh, mx, data, state[1], final[0], hs, cs_before, saved)


def _unroll_backward(dtype, axis, residuals, cotangents):
    wmh, wh, mx, data, h0, c_last, hs, cs_before, saved = residuals
    dhs, (dc_last, dh_last) = cotangents
    # Real transposed copies: a product with a transposed view inside the loop is slower.
    wmh_t, wh_t = jax.lax.optimization_barrier((wmh.astype(dtype).T, wh.astype(dtype).T))

    def body(carry, inputs):
        dc, dh, c = carry
        dh_out, c_before, saved, byte = inputs
        i, f, o, u, mh = (s.astype(c.dtype) for s in saved)
        dh, tanh_c = dh + dh_out, jnp.tanh(c)
        dc = dc + dh * o * (1 - tanh_c**2)
        di, df = dc * u * i * (1 - i), dc * c_before * f * (1 - f)
        do, du = dh * tanh_c * o * (1 - o), dc * i * (1 - u**2)
        # The barrier keeps the gates' arithmetic out of the copy that joins them, where it would be slower on a CPU.
        dz = jnp.concatenate(jax.lax.optimization_barrier((di, df, do, du)), axis=1)
        dm = total(dot(dz, wh_t), axis)
        dmh = dm * mx[byte]
        return (dc * f, dot(dmh, wmh_t), c_before), (dz, dm * mh, dmh)

    inputs = (dhs, cs_before, saved, data)
    (dc, dh, _), (dz, dmx, dmh) = jax.lax.scan(body, (dc_last, dh_last, c_last), inputs, reverse=True)

    rows = lambda a: a.reshape(-1, a.shape[-1])  # time and batch as one axis

    def product(a, d):  # a weight's gradient: the outer products of all steps, summed by one matrix product
        return dot(rows(a).T, rows(d).astype(dtype)).astype(wh.dtype)

    def scatter(d):  # a table's gradient: every step's gradient added to the row it read
        return jnp.zeros((mx.shape[0], d.shape[-1]), d.dtype).at[data.reshape(-1)].add(rows(d))

    m = mx[data] * saved[-1].astype(mx.dtype)
    dwmh = product(h0[None], dmh[:1]) + product(hs[:-1], dmh[1:])  # in two, so that no state is copied
    return dwmh, product(m, dz), scatter(dz), scatter(dmx), None, (dc, dh)


_unroll.defvjp(_unroll_forward, _unroll_backward)
