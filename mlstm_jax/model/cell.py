"""The mLSTM cell and the loops over time.

The cell (Krause et al. 2016, arXiv 1609.07959, equations 19-22; gates in the paper release's order i, f, o, u):

    m = (x wmx) * (h wmh)
    i, f, o = sigmoid(x wx + m wh + b);  u = tanh(x wx + m wh + b)
    c' = f * c + i * u
    h' = o * tanh(c')

What does not depend on the state leaves the loop: a byte model has 256 possible inputs, so `x wx + b` and `x wmx` are
256-row tables (see `parameters.prepare`) and a step gathers one row of each.

`step` is the one cell everything uses. `scan` runs it over bytes to read, encode and generate; `unroll` runs it over a
training sequence and carries the hand-written backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, UInt8

FEW = 8  # rows: of fewer, a product in bfloat16 is many times slower on CPUs than of so many

State = tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]  # (c, h)
OwnState = tuple[Float[Array, "batch units"], Float[Array, "batch units"]]  # of a device's part of the units


class Turned(NamedTuple):
    """A matrix kept by its columns, [n, k] for a product with [k, n]. See `turn`."""

    columns: Array

    @property
    def dtype(self) -> jnp.dtype:
        """Of its numbers."""
        return self.columns.dtype

    def astype(self, dtype: jnp.dtype | str) -> "Turned":
        """The same in another precision."""
        return Turned(self.columns.astype(dtype))


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

    units: Bool[Array | np.ndarray, "hidden"]
    values: Float[Array | np.ndarray, "hidden"]


def turn(weights: Weights) -> Weights:
    """The same, for reading and writing on a CPU: its products of a few rows with a large matrix are several times
    faster from the left, columns times rows."""
    turned = lambda w: w if isinstance(w, Turned) else Turned(w.T)
    return weights._replace(wmh=turned(weights.wmh), wh=turned(weights.wh), out=turned(weights.out))


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
        if stored.dtype.itemsize < 4 and len(a) < FEW:
            return dot(jnp.pad(a, ((0, FEW - len(a)), (0, 0))), w)[: len(a)]
        # The barrier keeps XLA from turning the product back.
        return jax.lax.optimization_barrier(product(w.columns, a, (((1,), (1,)), ((), ())))).T
    return product(a, w, (((1,), (0,)), ((), ())))


@jax.custom_vjp
def narrow_dot(a: Float[Array, "batch k"], w: Float[Array, "k n"]) -> Float[Array, "batch n"]:
    """`dot`, whose gradients are products in the weights' precision, too."""
    return dot(a, w)


def outer(a: Float[Array, "batch k"], d: Float[Array, "batch n"]) -> Float[Array, "k n"]:
    """The outer products of all rows, summed: the gradient of w in a @ w where d is that of the product."""
    if a.dtype.itemsize >= 4:
        return dot(a.T, d)
    # On CPUs only a product of rows with columns takes the fast path, so that a is really transposed.
    rows_first = lambda a: with_layout_constraint(a.T, Layout((0, 1)))
    return dot(jax.lax.platform_dependent(a, cpu=rows_first, default=lambda a: a.T), d)


narrow_dot.defvjp(
    lambda a, w: (dot(a, w), (a, w)),
    lambda saved, d: (
        dot(d.astype(saved[1].dtype), saved[1].T).astype(saved[0].dtype),
        outer(saved[0], d.astype(saved[1].dtype)).astype(saved[1].dtype),
    ),
)


def total(part: Float[Array, "..."], axis: str | None) -> Float[Array, "..."]:
    """The sum of `part` over the devices along a mesh axis; `part` itself where that is None.

    The sum's gradient is known on every device, so that it is each part's gradient as it stands.
    """
    return part if axis is None else _sum(part, axis)


_sum = jax.custom_vjp(jax.lax.psum, nondiff_argnums=(1,))
_sum.defvjp(lambda part, axis: (jax.lax.psum(part, axis), None), lambda axis, _, gradient: (gradient,))


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
