"""How fast is one update? `python -m benchmarks.train_step` from the repository's root; see benchmarks/README.md.

Five programs do the same update of the same mLSTM on the CPU: forward, backward, clipping, Adam.

    ours        updates.train_step, with the hand-written backward pass of unroll.unroll
    plain JAX   the same update, but with autodiff through a lax.scan of cell.step; in the variant "rows first"
                all table rows are gathered before the scan
    PyTorch     an eager mLSTM with autograd and torch.optim.Adam; "compiled" sends its cell through torch.compile

Each is timed in float32, in bfloat16 (products only; PyTorch by its autocast), or in both. Before anything is timed
they must agree on the loss and on the gradient's norm, update after update.
"""

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8

from benchmarks.common import console, copying, in_turn, machine, matmul, peak_memory, spread, tell
from mlstm_jax.config import ModelConfig, Precision
from mlstm_jax.model import cell, parameters
from mlstm_jax.model.cell import State
from mlstm_jax.model.parameters import Params
from mlstm_jax.training import updates
from mlstm_jax.training.updates import TrainState

try:
    import torch
except ImportError:
    torch = None

RATE, CLIP = 5e-4, 1.0
CHECKED = 3  # updates in which the programs are compared; they warm up the timed ones as well

Batch = UInt8[Array, "batch seq_plus_one"]
Update = Callable[[np.ndarray], tuple[float, float]]  # one update on a batch: the loss in nats, the gradient's norm


# JAX: ours and plain


def ours(state: TrainState, batch: Batch, precision: Precision) -> updates.Update:
    """The update that train.py does."""
    return updates.train_step(state, batch, False, RATE, clip_norm=CLIP, precision=precision)


def plain_loss(
    params: Params, batch: Batch, carry: State, precision: Precision, rows_first: bool
) -> tuple[Float[Array, ""], State]:
    """updates.loss with autodiff through the time loop."""
    weights = parameters.prepare(params, precision)

    def body(state, byte):
        state = cell.step(weights, state, byte)
        return state, state[1]

    def body_of_rows(state, rows):
        state, _ = cell.cell(weights.wmh, weights.wh, *rows, state)
        return state, state[1]

    data = batch[:, :-1].T
    if rows_first:
        carry, hidden = jax.lax.scan(body_of_rows, carry, (weights.x[data], weights.mx[data]))
    else:
        carry, hidden = jax.lax.scan(body, carry, data)
    logits = parameters.read_out(weights, hidden).swapaxes(0, 1)
    targets = batch[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), carry


def plain(state: TrainState, batch: Batch, precision: Precision, rows_first: bool = False) -> updates.Update:
    """updates.train_step with `plain_loss`."""
    differentiate = jax.value_and_grad(plain_loss, has_aux=True)
    (nats, carry), slopes = differentiate(state.params, batch, state.carry, precision, rows_first)
    gradient = updates.Gradient(nats, carry, slopes)
    return updates.apply_gradient(state, gradient, RATE, clip_norm=CLIP)


def jax_update(step: Callable, params: Params, batch_size: int) -> Update:
    """Updates by a jitted step whose state is donated."""
    step = jax.jit(step, donate_argnums=0)
    state = updates.init_state(jax.tree.map(jnp.copy, params), batch_size)

    def update(batch):
        nonlocal state
        found = jax.block_until_ready(step(state, batch))
        state = found.state
        return float(found.metrics["bits_per_byte"]) * updates.LOG2, float(found.metrics["gradient_norm"])

    return update


# PyTorch


def torch_cell(wmh, wh, x, mx, c, h):
    """One step, from gathered input products."""
    i, f, o, u = torch.addmm(x, mx * (h @ wmh), wh).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
    return c, torch.sigmoid(o) * torch.tanh(c)


def torch_update(params: Params, batch_size: int, precision: Precision, cell: Callable) -> Update:
    """Updates by a PyTorch mLSTM: input products outside the loop, one product for the four gates inside."""
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    p = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in params.items()}
    adam = torch.optim.Adam(p.values(), lr=RATE, fused=True)
    c = h = torch.zeros(batch_size, len(p["wmh"]))
    look_up, normalise = torch.nn.functional.embedding, lambda v, g: v * (g / torch.linalg.vector_norm(v, dim=0))

    def update(batch):
        nonlocal c, h
        data = torch.from_numpy(batch.T.astype(np.int64))  # time first
        wx, wh = normalise(p["wx"], p["gx"]), normalise(p["wh"], p["gh"])
        wmx, wmh = normalise(p["wmx"], p["gmx"]), normalise(p["wmh"], p["gmh"])
        xs = look_up(data[:-1], torch.addmm(p["b"], p["embed"], wx))  # as 256-row tables, like ours
        mxs = look_up(data[:-1], p["embed"] @ wmx)

        hidden = []
        with narrow:
            for x, mx in zip(xs.unbind(), mxs.unbind(), strict=True):
                c, h = cell(wmh, wh, x, mx, c, h)
                hidden.append(h)
            logits = torch.addmm(p["out_b"], torch.cat(hidden), p["out"])
        c, h = c.detach(), h.detach()

        loss = torch.nn.functional.cross_entropy(logits.float(), data[1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
        adam.step()
        return loss.item(), norm.item()

    return update


# Check, time, tell


def check(programs: dict[str, Update], batches: list[np.ndarray]) -> None:
    """Assert that from the same weights every program finds the same losses and gradients, as nearly as it rounds."""
    for number, batch in enumerate(batches, 1):
        found = {name: update(batch) for name, update in programs.items()}
        first, expected = next(iter(found.items()))
        for name, (loss, norm) in found.items():
            loss_within, norm_within = (1e-2, 3e-2) if "bfloat16" in (name + first) else (1e-4, 1e-3)
            assert abs(loss - expected[0]) < loss_within, f"{name} and {first} differ in the loss of update {number}"
            assert abs(norm - expected[1]) < norm_within * expected[1], f"{name} and {first} differ in the gradient"
    console.print(f"all agree on {len(batches)} updates; the last: {expected[0]:.6f} nats, gradient {expected[1]:.6f}")


def programs_of(params: Params, batch_size: int, precision: Precision, peers: bool, compile: bool) -> dict[str, Update]:
    """The programs of a precision by name, those that can be had here."""
    with_jax = lambda step: jax_update(partial(step, precision=precision), params, batch_size)
    programs = {"ours": with_jax(ours)}
    if peers:
        programs["plain JAX"] = with_jax(plain)
        programs["plain JAX, rows first"] = with_jax(partial(plain, rows_first=True))
    if peers and torch:
        programs["PyTorch"] = torch_update(params, batch_size, precision, torch_cell)
        if compile:
            compiled = torch.compile(torch_cell, dynamic=False)
            programs["PyTorch, compiled"] = torch_update(params, batch_size, precision, compiled)
    suffix = "" if precision == "float32" else f", {precision}"
    return {name + suffix: update for name, update in programs.items()}


def main(
    hidden: tuple[int, ...] = (512,),
    batch_size: int = 128,
    seq_length: int = 128,
    precision: tuple[Precision, ...] = ("float32",),
    rounds: int = 7,
    peers: bool = True,
    compile: bool = True,
    json: Path | None = None,
) -> None:
    """Time one update: ours, plain JAX and PyTorch in turn, on the CPU.

    Args:
        hidden: Units of the state, one or more widths.
        batch_size: Sequences trained side by side.
        seq_length: Bytes of every sequence in one update.
        precision: That of the products, one or both; times are compared with ours in the first.
        rounds: How often every program is timed.
        peers: Time the others, too.
        compile: PyTorch's compiled form, too; it takes a C++ compiler.
        json: File of JSON lines to which the figures are added.
    """
    jax.config.update("jax_platforms", "cpu")  # all on the same device
    console.print(machine())
    if peers and not torch:
        console.print("PyTorch is not installed: its rows are left out")
    elif peers and compile and not (compile := any(map(shutil.which, ("g++", "c++", "clang++")))):
        console.print("there is no C++ compiler: PyTorch's compiled form is left out")
    for width in hidden:
        one_width(width, batch_size, seq_length, precision, rounds, peers, compile, json)


def one_width(
    hidden: int,
    batch_size: int,
    seq_length: int,
    precision: tuple[Precision, ...],
    rounds: int,
    peers: bool,
    compile: bool,
    json: Path | None,
) -> dict[str, np.ndarray]:
    """Check and time all programs at one width; seconds of each by its name."""
    if peers and compile and torch:
        torch.compiler.reset()  # it keeps a few forms of a function only
    params = parameters.init(ModelConfig(hidden=hidden), seed=0)
    programs: dict[str, Update] = {}
    for name in precision:
        programs |= programs_of(params, batch_size, name, peers, compile)
    random = np.random.default_rng(0)
    draw = lambda: random.integers(256, size=(batch_size, seq_length + 1), dtype=np.uint8)
    check(programs, [draw() for _ in range(CHECKED)])
    memory = peak_memory()
    runs = {name: partial(update, draw()) for name, update in programs.items()}
    first = next(iter(programs))
    times, rates = in_turn(runs, {"matmul": matmul(), "copy": copying()}, rounds)

    size = batch_size * seq_length
    work = 6 * size * (5 * hidden**2 + 320 * hidden + 256 * hidden)
    rows = [
        {
            "program": name,
            "ms": 1000 * took,
            "bytes/s": round(size / statistics.median(took)),
            "GFLOP/s": round(work / statistics.median(took) / 1e9),
            "of matmul": work / took / rates["matmul"],
            "time / ours": "" if name == first else took / times[first],
            "ps / (5H²+576H)": 1e12 * took / size / (5 * hidden**2 + 576 * hidden),
        }
        for name, took in times.items()
    ]
    matmul_rate, copy_rate = (spread(rates[name] / 1e9) for name in ("matmul", "copy"))
    console.print(
        f"{hidden} units, {batch_size} sequences x {seq_length} bytes, {rounds} rounds; matmul {matmul_rate} GFLOP/s, "
        f"copy {copy_rate} GB/s; peak memory {memory:.2f} GB, all programs so far in one process"
    )
    tell(
        json,
        "train_step",
        rows,
        hidden=hidden,
        batch_size=batch_size,
        seq_length=seq_length,
        memory=memory,
        matmul=rates["matmul"],
    )
    return times


if __name__ == "__main__":
    tyro.cli(main)
