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
from jaxtyping import Array, Bool, Float, Int, UInt8

State = tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]  # (c, h)
OwnState = tuple[Float[Array, "batch units"], Float[Array, "batch units"]]  # of a device's part of the units


class Turned(NamedTuple):
    """A matrix kept by its columns, [n, k] for a product with [k, n]. See `turn`."""

    columns: Array


class Weights(NamedTuple):
    """What the loops need, prepared once: weight norm applied, input tables formed, recurrent matrices cast."""

    x: Float[Array, "vocab gates"]  # embed @ wx + b; gates = 4 * hidden
    mx: Float[Array, "vocab hidden"]  # embed @ wmx
    wmh: Float[Array, "hidden hidden"] | Turned
    wh: Float[Array, "hidden gates"] | Turned
    out: Float[Array, "hidden vocab"] | Turned
    out_b: Float[Array, "vocab"]

    @property
    def hidden(self) -> int:
        """Units of the state."""
        return self.mx.shape[1]


class Held(NamedTuple):
    """The units that are held, and the values that they are held at; where `units` is False, the value says nothing."""

    units: Bool[Array, "hidden"]
    values: Float[Array, "hidden"]


def turn(weights: Weights) -> Weights:
    """The same, for reading and writing on a CPU: its products of a few rows with a large matrix are several times
    faster from the left, columns times rows."""
    wmh, wh, out = (Turned(w.T) for w in (weights.wmh, weights.wh, weights.out))
    return weights._replace(wmh=wmh, wh=wh, out=out)


def zero_state(weights: Weights, batch: int) -> State:
    """The state before the first byte: (c, h) float32 [batch, hidden], all zero."""
    zeros = jnp.zeros((batch, weights.hidden), jnp.float32)
    return zeros, zeros


def dot(a: Float[Array, "batch k"], w: Float[Array, "k n"] | Turned) -> Float[Array, "batch n"]:
    """Matrix product in the weights' precision, accumulated in float32 at least."""
    stored = w.columns if isinstance(w, Turned) else w
    a = a.astype(stored.dtype)
    # A narrow product is exact as it is; asked for more, a kernel for TPUs does not compile.
    dtype, precision = (stored.dtype, "highest") if stored.dtype.itemsize >= 4 else (jnp.float32, "default")
    product = partial(jax.lax.dot_general, precision=precision, preferred_element_type=dtype)
    if isinstance(w, Turned):
        # The barrier keeps XLA from turning the product back.
        return jax.lax.optimization_barrier(product(w.columns, a, (((1,), (1,)), ((), ())))).T
    return product(a, w, (((1,), (0,)), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def total(part: Float[Array, "..."], axis: str | None) -> Float[Array, "..."]:
    """The sum of `part` over the devices along a mesh axis; `part` itself where that is None.

    The sum's gradient is known on every device, so that it is each part's gradient as it stands.
    """
    return part if axis is None else jax.lax.psum(part, axis)


total.defvjp(lambda part, axis: (total(part, axis), None), lambda axis, _, gradient: (gradient,))


def before_gates(
    wmh: Float[Array, "units hidden"] | Turned,
    wh: Float[Array, "hidden gates"] | Turned,
    x: Float[Array, "batch gates"],
    mx: Float[Array, "batch hidden"],
    h: Float[Array, "batch units"],
    axis: str | None = None,
) -> tuple[Float[Array, "batch gates"], Float[Array, "batch hidden"]]:
    """(x wx + m wh + b, h wmh) from gathered inputs. `axis` as in `cell`."""
    mh = total(dot(h, wmh), axis)
    # The barrier lets the look-up of x join the arithmetic behind the product, not run by itself ahead of it.
    return x + jax.lax.optimization_barrier(dot(mx * mh, wh)), mh


Gates = tuple[Float[Array, "batch units"], ...]  # i, f, o, u, or what they are formed from, or the gradients of it


def split(z: Float[Array, "batch gates"]) -> Gates:
    """The four parts of what `before_gates` gives."""
    return tuple(jnp.split(z, 4, axis=1))


def gates(z: Gates) -> Gates:
    """i, f, o, u."""
    i, f, o, u = z
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(u)


def next_state(z: Gates, c: Float[Array, "batch units"]) -> OwnState:
    """The state after a step."""
    i, f, o, u = gates(z)
    c = f * c + i * u
    return c, o * jnp.tanh(c)


def next_state_backward(
    z: Gates, c: Float[Array, "batch units"], dc: Float[Array, "batch units"], dh: Float[Array, "batch units"]
) -> tuple[Float[Array, "batch units"], Gates]:
    """From the gradients of `next_state`'s results, those of its c and of its z."""
    i, f, o, u = gates(z)
    tanh_c = jnp.tanh(f * c + i * u)
    dc = dc + dh * o * (1 - tanh_c**2)
    return dc * f, (dc * u * i * (1 - i), dc * c * f * (1 - f), dh * tanh_c * o * (1 - o), dc * i * (1 - u**2))


def cell(
    wmh: Float[Array, "units hidden"] | Turned,
    wh: Float[Array, "hidden gates"] | Turned,
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
    return next_state(split(z), c), (z, mh)


def step(
    weights: Weights,
    state: State,
    byte: Int[Array, "batch"] | UInt8[Array, "batch"],
    clamp: Held | None = None,
    of: Literal["cell", "hidden"] = "cell",
) -> State:
    """Read one byte per row. Units that `clamp` holds have their new cell state overwritten, as in the paper's sampler.

    `of` "hidden" overwrites the new hidden state instead.
    """
    (c, h), _ = cell(weights.wmh, weights.wh, weights.x[byte], weights.mx[byte], state)
    if clamp is not None:
        hold = lambda s: jnp.where(clamp.units[None], clamp.values[None], s)
        c, h = (hold(c), h) if of == "cell" else (c, hold(h))
    return c, h


def scan(
    weights: Weights,
    data: UInt8[Array, "batch time"],
    state: State,
    lengths: Int[Array, "batch"] | None = None,
    clamp: Held | None = None,
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

    state, emitted = jax.lax.scan(body, state, (jnp.arange(data.shape[1], dtype=jnp.int32), data.T))
    return state, jax.tree.map(lambda a: a.swapaxes(0, 1), emitted)


def unroll(
    weights: Weights,
    data: UInt8[Array, "batch time"],
    state: State,
    precision: str | None = None,
    axis: str | None = None,
    segment: int = 0,
    loops: "Loops | None" = None,
) -> tuple[Float[Array, "time batch units"], State]:
    """The hidden state after every byte of a training window, time first, and the final state. Differentiable.

    `precision` is that of the products in the loop, by default the weights' own; wider weights have wider gradients.
    Hidden states have it too, as products alone read them. `axis` as in `cell`. With a `segment`, which divides the
    window, the backward pass goes through so many bytes at a time, and what it needs of them is computed again.
    `loops` of `kernels` take neither.
    """
    dtype = jnp.dtype(precision or weights.wh.dtype)
    loops = loops or Loops(partial(forward_loop, axis=axis, keep=not segment), partial(backward_loop, axis=axis))
    return _unroll(weights.wmh, weights.wh, weights.x, weights.mx, data.T, state, dtype, axis, segment, loops)


# The backward pass by hand. Autodiff of lax.scan adds a full [hidden, 4 * hidden] weight gradient to an accumulator at
# every time step. Here the loop only stores gradients of what the products give, and every weight's gradient is one
# large matrix product after the loop.
#
# Kept for it are c in float32 and, as products read or give them, z, h wmh and h in the products' precision; the
# gradient of z is written over z. With a segment c and h alone are kept, and two large products, of all steps of a
# segment at once, give the rest again.


class Loops(NamedTuple):
    """What goes through a window byte by byte: `forward_loop` and `backward_loop`, or others that do the same."""

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
        return (c, h), (h, state[0], tuple(s.astype(dtype) for s in saved) if keep else ())

    c, h = state
    (c_last, h_last), (hs, cs_before, saved) = jax.lax.scan(body, (c, h.astype(dtype)), data)
    return (c_last, h_last.astype(c.dtype)), hs, cs_before, saved


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
        z = split(jax.lax.dynamic_index_in_dim(zs, t, keepdims=False).astype(dc.dtype))
        dc, dz = next_state_backward(z, c_before, dc, dh + dh_out.astype(dh.dtype))
        # The barrier keeps the gates' arithmetic out of the copy that joins them, where it would be slower on a CPU.
        dz = jnp.concatenate(jax.lax.optimization_barrier(tuple(d.astype(dtype) for d in dz)), axis=1)
        dm = total(dot(dz, wh_t), axis)
        zs = jax.lax.dynamic_update_index_in_dim(zs, dz, t, axis=0)
        return (dc, dot(dm * mx[byte], wmh_t), zs), dm.astype(dtype)

    steps = (jnp.arange(len(data), dtype=jnp.int32), data, cs_before, dhs)
    (dc, dh, dzs), dms = jax.lax.scan(body, (*last, zs), steps, reverse=True)
    return (dc, dh), dzs, dms


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _unroll(wmh, wh, x, mx, data, state, dtype, axis, segment, loops):
    return _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, segment, loops)[0]


def _unroll_forward(wmh, wh, x, mx, data, state, dtype, axis, segment, loops):
    last, hs, cs_before, saved = loops.forward(wmh.astype(dtype), wh.astype(dtype), x, mx, data, state)
    return (hs, last), (wmh, wh, x, mx, data, state[1].astype(dtype), hs, cs_before, saved)


def _unroll_backward(dtype, axis, segment, loops, residuals, cotangents):
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
            return dot(rows(a).T, rows(d).astype(dtype)).astype(wh.dtype)

        def table(d):  # a table's gradient: every step's gradient added to the row it read
            if dtype.itemsize < 4:  # as a product too, in the same order each time; on a CPU, in float32, it is slower
                return product(jax.nn.one_hot(data, len(mx), dtype=dtype), d)
            return jnp.zeros((len(mx), d.shape[-1]), d.dtype).at[data.reshape(-1)].add(rows(d))

        mx_here, mh, dm = mx[data], mh.astype(mx.dtype), dm.astype(mx.dtype)
        return first, (product(hs_before, dm * mx_here), product(mx_here * mh, dz), table(dz), table(dm * mh))

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
