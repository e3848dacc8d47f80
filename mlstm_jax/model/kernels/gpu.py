"""The time loops on a GPU with two kernels a byte each way: a matrix product, and all that follows it, in one.

Forward: m = (x wmx) * (h wmh); then z = x wx + b + m wh with the gates, c' and h'. Backward: the gradient of h' from
that of m, with the gradients of the gates and of c; then that of the next m. Rows of the tables are looked up by the
kernels, and what is kept is written where it is kept.

Pallas lowers the kernels by way of Triton.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mlstm_jax.model.cell import dot, next_state, next_state_backward
from mlstm_jax.model.unroll import Loops

ROWS, COLUMNS, DEPTH = 128, 32, 64  # of the part of a product that a block of threads does at a time, at most


def reason_against(hidden: int, batch_size: int) -> str | None:
    """Why these kernels cannot do so many units of so many rows; None where they can."""
    if hidden % DEPTH or batch_size % 16:
        return f"its GPU kernels take units in steps of {DEPTH} and rows in steps of 16, not {hidden} and {batch_size}"
    return None


def loops(interpret: bool = False) -> Loops:
    """For `unroll.unroll`. Interpreted, they run on any device, slowly."""
    return Loops(partial(_forward, interpret=interpret), partial(_backward, interpret=interpret))


def _call(kernel, grid, *arrays, out, into=(), interpret):
    """Run a kernel on whole arrays. It returns arrays of the shapes `out`, and those of `into`, which it writes to."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in out]
    stages = 2 if out[0][1] == jnp.float32 else 3  # parts of a product on their way at once: shared memory is small
    shapes += [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in into]
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        input_output_aliases={len(arrays) + i: len(out) + i for i in range(len(into))},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=stages),
        interpret=interpret,
    )(*arrays, *into)


def _tile(batch):
    """This block's rows of the result, a power of two, and the numbers of its columns."""
    rows = min(ROWS, batch & -batch)
    return pl.ds(pl.program_id(0) * rows, rows), pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS, dtype=jnp.int32)


def _grid(batch, columns):
    return batch // min(ROWS, batch & -batch), columns // COLUMNS


def _products(a, w, rows, firsts):
    """Tiles of a @ w, [rows, COLUMNS] from each of the columns `firsts` on, float32."""
    deep = a.shape[1]

    def add(k, sums):
        k = pl.ds(k * DEPTH, DEPTH)
        part = a[rows, k]
        return tuple(s + dot(part, w[k, pl.ds(first, COLUMNS)]) for s, first in zip(sums, firsts, strict=True))

    start = tuple(jnp.zeros((rows.size, COLUMNS), jnp.float32) for _ in firsts)
    return jax.lax.fori_loop(np.int32(0), np.int32(deep // DEPTH), add, start)


def _forward(wmh, wh, x, mx, data, state, interpret):
    """`unroll.forward_loop`."""
    (time, batch), hidden, dtype = data.shape, len(wmh), wh.dtype
    grid, data = _grid(batch, hidden), data.astype(jnp.int32)
    room = lambda width, dtype: jnp.zeros((time, batch, width), dtype)
    kept = room(hidden, dtype), room(hidden, jnp.float32), room(4 * hidden, dtype), room(hidden, dtype)

    def body(t, carry):
        c, h, hs, cs, zs, mhs = carry
        m, mhs = _call(_multiply, grid, t, data, mx, h, wmh, out=[(h.shape, dtype)], into=[mhs], interpret=interpret)
        out, into = [(h.shape, dtype)], [c, hs, cs, zs]
        h, c, hs, cs, zs = _call(_advance, grid, t, data, x, m, wh, out=out, into=into, interpret=interpret)
        return c, h, hs, cs, zs, mhs

    c, h = state
    c_last, h_last, hs, cs, zs, mhs = jax.lax.fori_loop(np.int32(0), np.int32(time), body, (c, h.astype(dtype), *kept))
    return (c_last, h_last.astype(c.dtype)), hs, cs, (zs, mhs)


def _multiply(t, data, mx, h, wmh, _, m, mhs):
    """m = (x wmx) * (h wmh); h wmh is kept."""
    t = t[...]
    part, columns = _tile(h.shape[0])
    (mh,) = _products(h, wmh, part, [pl.program_id(1) * COLUMNS])
    byte = data[t, part]
    here = part, pl.ds(pl.program_id(1) * COLUMNS, COLUMNS)
    m[here] = (mx[byte[:, None], columns[None]] * mh).astype(m.dtype)
    mhs[t, *here] = mh.astype(mhs.dtype)


def _advance(t, data, x, m, wh, c_before, _hs, _cs, _zs, h, c, hs, cs, zs):
    """c' and h' from m and c; h', c and z are kept."""
    t = t[...]
    part, columns = _tile(m.shape[0])
    first, hidden = pl.program_id(1) * COLUMNS, m.shape[1]
    byte = data[t, part]
    sums = _products(m, wh, part, [gate * hidden + first for gate in range(4)])
    z = tuple(s + x[byte[:, None], gate * hidden + columns[None]] for gate, s in enumerate(sums))
    here = part, pl.ds(first, COLUMNS)
    before = c_before[here]
    new_c, new_h = next_state(z, before)
    c[here], h[here] = new_c, new_h.astype(h.dtype)
    cs[t, *here], hs[t, *here] = before, new_h.astype(hs.dtype)
    for gate in range(4):
        zs[t, part, pl.ds(gate * hidden + first, COLUMNS)] = z[gate].astype(zs.dtype)


def _backward(wmh_t, wh_t, mx, data, zs, cs_before, dhs, last, interpret):
    """`unroll.backward_loop`."""
    (time, batch), hidden, dtype = data.shape, len(wmh_t), wh_t.dtype
    grid, data = _grid(batch, hidden), data.astype(jnp.int32)
    dc, dh_last = last
    dhs = dhs.at[-1].add(dh_last.astype(dhs.dtype))

    def body(ago, carry):
        dc, d, zs, dms = carry  # d: the gradient of the h wmh that was made from this step's h
        out, into = [((batch, 4 * hidden), dtype)], [dc, zs]
        dz, dc, zs = _call(_retreat, grid, ago, d, wmh_t, cs_before, dhs, out=out, into=into, interpret=interpret)
        out, into = [(d.shape, dtype)], [dms]
        d, dms = _call(_divide, grid, ago, data, mx, dz, wh_t, out=out, into=into, interpret=interpret)
        return dc, d, zs, dms

    start = dc, jnp.zeros((batch, hidden), dtype), zs, jnp.zeros((time, batch, hidden), dtype)
    dc, d, dzs, dms = jax.lax.fori_loop(np.int32(0), np.int32(time), body, start)
    return (dc, dot(d, wmh_t)), dzs, dms


def _retreat(ago, d, wmh_t, cs_before, dhs, dc_after, zs_before, dz, dc, zs):
    """The gradient of h, from it those of z and of the c before; that of z is written over z, too."""
    t = dhs.shape[0] - 1 - ago[...]
    part, columns = _tile(d.shape[0])
    first, hidden = pl.program_id(1) * COLUMNS, d.shape[1]
    here = part, pl.ds(first, COLUMNS)
    (dh,) = _products(d, wmh_t, part, [first])
    dh += dhs[t, *here].astype(dh.dtype)
    of_gates = [pl.ds(gate * hidden + first, COLUMNS) for gate in range(4)]
    z = tuple(zs_before[t, part, columns].astype(dh.dtype) for columns in of_gates)
    dc[here], slopes = next_state_backward(z, cs_before[t, *here], dc_after[here], dh)
    for columns, slope in zip(of_gates, slopes, strict=True):
        dz[part, columns] = zs[t, part, columns] = slope.astype(dz.dtype)


def _divide(ago, data, mx, dz, wh_t, _, d, dms):
    """The gradient of m, which is kept, and of h wmh."""
    t = data.shape[0] - 1 - ago[...]
    part, columns = _tile(dz.shape[0])
    (dm,) = _products(dz, wh_t, part, [pl.program_id(1) * COLUMNS])
    byte = data[t, part]
    here = part, pl.ds(pl.program_id(1) * COLUMNS, COLUMNS)
    d[here] = (dm * mx[byte[:, None], columns[None]]).astype(d.dtype)
    dms[t, *here] = dm.astype(dms.dtype)
