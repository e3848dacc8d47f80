"""The time loops on a TPU as one kernel a sequence each way, with both recurrent matrices in the chip's VMEM
throughout.

They are read from memory once a sequence and not once a byte, so that no loop is bound by memory, however few rows.
Rows of the tables, and what is kept, pass through block by block, a byte at a time, while others are computed.

Pallas lowers the kernels by way of Mosaic.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from mlstm_jax.model.cell import dot, next_state, next_state_backward
from mlstm_jax.model.unroll import Loops

LANES = 128  # that are computed together, where they can be parted so
VMEM = 120 * 2**20  # of the 128 MiB that a v5e or v6e has


def reason_against(hidden: int, batch_size: int, itemsize: int = 2) -> str | None:
    """Why these kernels cannot do so many units of so many rows; None where they can."""
    if hidden % 128 or batch_size % 16:
        return f"its TPU kernels take units in steps of 128 and rows in steps of 16, not {hidden} and {batch_size}"
    together = _together(batch_size)
    passing = together * hidden * (5 * 4 + 5 * itemsize + 2 * 4 + itemsize) * 2  # in two buffers
    working = together * hidden * 16 * 4
    need = 5 * hidden**2 * itemsize + passing + working
    if need > VMEM:
        return f"{hidden} units take {need / 2**20:,.0f} MiB of a TPU's VMEM, of {VMEM / 2**20:.0f}"
    return None


def loops(interpret: bool = False) -> Loops:
    """For `unroll.unroll`. Interpreted, they run on any device, slowly."""
    return Loops(partial(_forward, interpret=interpret), partial(_backward, interpret=interpret))


def _together(batch_size):
    return LANES if batch_size % LANES == 0 else batch_size


def _specs(batch, time, reverse=False):
    """Blocks: of a byte of some rows, [time, batch, width]; of some rows, [batch, width]; a whole matrix."""
    batch_size = _together(batch)
    when = (lambda t: time - 1 - t) if reverse else (lambda t: t)
    step = lambda width: pl.BlockSpec((None, batch_size, width), lambda b, t: (when(t), b, 0))
    rows = lambda width: pl.BlockSpec((batch_size, width), lambda b, t: (b, 0))
    # One buffer: the block never changes, and two would not fit.
    whole = lambda w: pl.BlockSpec(w.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))
    return (batch // batch_size, time), step, rows, whole


def _call(kernel, grid, in_specs, out, batch_size, hidden, aliases, interpret, arrays):
    shapes, out_specs = zip(*out, strict=True)
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes],
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=[tpu.VMEM((batch_size, hidden), jnp.float32)] * 2,
        input_output_aliases=aliases,
        compiler_params=tpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM),
        interpret=interpret,
    )(*arrays)


def _forward(wmh, wh, x, mx, data, state, interpret):
    """`unroll.forward_loop`."""
    (time, batch), hidden, dtype = data.shape, len(wmh), wh.dtype
    grid, step, rows, whole = _specs(batch, time)
    of_step = lambda width, dtype: (((time, batch, width), dtype), step(width))
    of_state = ((batch, hidden), jnp.float32), rows(hidden)
    *kept, c, h = _call(
        _advance,
        grid,
        [whole(wmh), whole(wh), step(4 * hidden), step(hidden), rows(hidden), rows(hidden)],
        [
            of_step(hidden, dtype),
            of_step(hidden, jnp.float32),
            of_step(4 * hidden, dtype),
            of_step(hidden, dtype),
            of_state,
            of_state,
        ],
        batch // grid[0],
        hidden,
        {},
        interpret,
        (wmh, wh, x[data], mx[data], *state),
    )
    hs, cs, zs, mhs = kept
    return (c, h), hs, cs, (zs, mhs)


def _advance(wmh, wh, x, mx, c_first, h_first, hs, cs, zs, mhs, c_last, h_last, c, h):
    """One byte: c' and h' from c and h, which stay where they are; h', c, z and h wmh are kept."""
    width = c.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _():
        c[...], h[...] = c_first[...], h_first[...]

    mh = dot(h[...], wmh[...])
    m = (mx[...] * mh).astype(wh.dtype)
    cs[...], mhs[...] = c[...], mh.astype(mhs.dtype)
    z = []
    for gate in range(4):  # one by one, they take less room
        columns = pl.ds(gate * width, width)
        z.append(x[:, columns] + dot(m, wh[:, columns]))
        zs[:, columns] = z[gate].astype(zs.dtype)
    c[...], h[...] = next_state(tuple(z), c[...])
    hs[...] = h[...].astype(hs.dtype)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        c_last[...], h_last[...] = c[...], h[...].astype(hs.dtype).astype(jnp.float32)


def _backward(wmh_t, wh_t, mx, data, zs, cs_before, dhs, last, interpret):
    """`unroll.backward_loop`."""
    (time, batch), hidden, dtype = data.shape, len(wmh_t), wh_t.dtype
    grid, step, rows, whole = _specs(batch, time, reverse=True)
    of_step = lambda width: (((time, batch, width), dtype), step(width))
    of_state = ((batch, hidden), jnp.float32), rows(hidden)
    dzs, dms, dc, dh = _call(
        _retreat,
        grid,
        [whole(wmh_t), whole(wh_t), *map(step, (hidden, 4 * hidden, hidden, hidden)), rows(hidden), rows(hidden)],
        [of_step(4 * hidden), of_step(hidden), of_state, of_state],
        batch // grid[0],
        hidden,
        {3: 0},  # the gradient of z is written over z
        interpret,
        (wmh_t, wh_t, mx[data], zs, cs_before, dhs, *last),
    )
    return (dc, dh), dzs, dms


def _retreat(wmh_t, wh_t, mx, zs, cs, dhs, dc_last, dh_last, dzs, dms, dc_first, dh_first, dc, dh):
    """One byte backward: the gradients of c and h, which stay where they are, and those of z and m, which are kept."""
    width = dc.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _():
        dc[...], dh[...] = dc_last[...], dh_last[...]

    columns = [pl.ds(gate * width, width) for gate in range(4)]
    z = tuple(zs[:, here].astype(jnp.float32) for here in columns)
    dc[...], slopes = next_state_backward(z, cs[...], dc[...], dh[...] + dhs[...].astype(jnp.float32))
    dm = jnp.zeros(dc.shape, jnp.float32)
    for here, slope in zip(columns, slopes, strict=True):
        dzs[:, here] = slope.astype(dzs.dtype)
        dm += dot(dzs[:, here], wh_t[here, :])
    dms[...] = dm.astype(dms.dtype)
    dh[...] = dot(dm * mx[...], wmh_t[...])

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        dc_first[...], dh_first[...] = dc[...], dh[...]
