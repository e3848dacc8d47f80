"""How fast is one update? `python -m benchmarks.train_step` from the repository's root; see benchmarks/README.md.

Four programs do the same update of the same mLSTM on the CPU, in float32: forward, backward, clipping, Adam.

    ours        training.train_step, with the hand-written backward pass of recurrence.unroll
    plain JAX   the same update, but with autodiff through a lax.scan of recurrence.step; in the variant "rows first"
                all table rows are gathered before the scan
    PyTorch     an eager mLSTM with autograd and torch.optim.Adam

Before anything is timed they must agree on the loss and on the gradient's norm, update after update.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8
from rich.console import Console
from rich.table import Table

from mlstm_jax import model, recurrence, training
from mlstm_jax.config import ModelConfig
from mlstm_jax.model import Params
from mlstm_jax.recurrence import State
from mlstm_jax.training import Metrics, TrainState

try:
    import torch
except ImportError:
    torch = None

RATE, CLIP = 5e-4, 1.0
CHECKED = 3  # updates in which the programs are compared; they warm up the timed ones as well
REST = 0.25  # seconds before every measurement, in which the threads of the program before it stop spinning
PRODUCTS = 4  # matrix products in one measurement of the matmul rate

Window = UInt8[Array, "lanes window_and_one"]
Update = Callable[[np.ndarray], tuple[float, float]]  # one update on a window: the loss in nats, the gradient's norm


# JAX: ours and plain


def ours(state: TrainState, window: Window) -> tuple[TrainState, Metrics]:
    """The update that train.py does."""
    return training.train_step(state, window, False, RATE, clip=CLIP, precision="float32")


def plain_loss(params: Params, window: Window, lanes: State, rows_first: bool) -> tuple[Float[Array, ""], State]:
    """training.loss with autodiff through the time loop."""
    weights = model.prepare(params)

    def body(state, byte):
        state = recurrence.step(weights, state, byte)
        return state, state[1]

    def body_of_rows(state, rows):
        state, _ = recurrence.cell(weights.wmh, weights.wh, *rows, state)
        return state, state[1]

    data = window[:, :-1].T
    if rows_first:
        lanes, hidden = jax.lax.scan(body_of_rows, lanes, (weights.x[data], weights.mx[data]))
    else:
        lanes, hidden = jax.lax.scan(body, lanes, data)
    logits = model.read_out(weights, hidden).swapaxes(0, 1)
    targets = window[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), lanes


def plain(state: TrainState, window: Window, rows_first: bool = False) -> tuple[TrainState, Metrics]:
    """training.train_step with `plain_loss`."""
    differentiate = jax.value_and_grad(plain_loss, has_aux=True)
    (nats, lanes), gradient = differentiate(state.params, window, state.lanes, rows_first)
    return training.apply_gradient(state, gradient, nats, lanes, RATE, clip=CLIP)


def jax_update(step: Callable, params: Params, lanes: int) -> Update:
    """Updates by a jitted step whose state is donated."""
    step = jax.jit(step, donate_argnums=0)
    state = training.init_state(jax.tree.map(jnp.copy, params), lanes)

    def update(window):
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, window))
        return float(metrics["bits_per_byte"]) * training.LOG2, float(metrics["gradient_norm"])

    return update


# PyTorch


def torch_update(params: Params, lanes: int) -> Update:
    """Updates by an eager PyTorch mLSTM: input products outside the loop, one product for the four gates inside."""
    p = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in params.items()}
    adam = torch.optim.Adam(p.values(), lr=RATE, fused=True)
    c = h = torch.zeros(lanes, len(p["wmh"]))
    look_up, normalise = torch.nn.functional.embedding, lambda v, g: v * (g / torch.linalg.vector_norm(v, dim=0))

    def update(window):
        nonlocal c, h
        data = torch.from_numpy(window.T.astype(np.int64))  # time first
        wx, wh = normalise(p["wx"], p["gx"]), normalise(p["wh"], p["gh"])
        wmx, wmh = normalise(p["wmx"], p["gmx"]), normalise(p["wmh"], p["gmh"])
        xs = look_up(data[:-1], torch.addmm(p["b"], p["embed"], wx))  # as 256-row tables, like ours
        mxs = look_up(data[:-1], p["embed"] @ wmx)

        hidden = []
        for x, mx in zip(xs.unbind(), mxs.unbind(), strict=True):
            i, f, o, u = torch.addmm(x, mx * (h @ wmh), wh).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
            h = torch.sigmoid(o) * torch.tanh(c)
            hidden.append(h)
        c, h = c.detach(), h.detach()

        logits = torch.addmm(p["out_b"], torch.cat(hidden), p["out"])
        loss = torch.nn.functional.cross_entropy(logits, data[1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
        adam.step()
        return loss.item(), norm.item()

    return update


# Check, time, tell


def check(programs: dict[str, Update], windows: list[np.ndarray], console: Console) -> None:
    """Assert that from the same weights every program finds the same losses and gradients."""
    for number, window in enumerate(windows, 1):
        found = {name: update(window) for name, update in programs.items()}
        for name, (loss, norm) in found.items():
            console.print(f"update {number}  {name:21} loss {loss:.6f} nats  gradient norm {norm:.6f}")
        expected = found["ours"]
        for name, (loss, norm) in found.items():
            assert abs(loss - expected[0]) < 1e-4, f"{name} and ours differ in the loss of update {number}"
            assert abs(norm - expected[1]) < 1e-3 * expected[1], f"{name} and ours differ in the gradient"


def seconds(run: Callable) -> float:
    """Wall time of one call, after a rest."""
    time.sleep(REST)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine() -> str:
    """Processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, torch {torch.__version__ if torch else '-'}"
    return f"{cpu}, {os.cpu_count()} cores; {versions}"


def spread(values: list[float], digits: int) -> str:
    """Median, and from the least to the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main(hidden: int = 512, lanes: int = 64, window: int = 128, rounds: int = 7) -> None:
    """Time one update: ours, plain JAX and eager PyTorch in turn, on the CPU.

    Args:
        hidden: Units of the state.
        lanes: Sequences trained side by side.
        window: Bytes of every lane in one update.
        rounds: How often every program is timed.
    """
    jax.config.update("jax_platforms", "cpu")  # all on the same device
    console = Console(width=120, highlight=False)
    console.print(machine())
    console.print(f"{hidden} units, {lanes} lanes x {window} bytes, {rounds} rounds")

    params = model.init(ModelConfig(hidden=hidden), seed=0)
    programs = {
        "ours": jax_update(ours, params, lanes),
        "plain JAX": jax_update(plain, params, lanes),
        "plain JAX, rows first": jax_update(partial(plain, rows_first=True), params, lanes),
    }
    if torch:
        programs["PyTorch"] = torch_update(params, lanes)
    else:
        console.print("PyTorch is not installed: its row is left out")

    random = np.random.default_rng(0)
    windows = [random.integers(256, size=(lanes, window + 1), dtype=np.uint8) for _ in range(CHECKED + rounds)]
    check(programs, windows[:CHECKED], console)

    a, b = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((lanes * window, hidden), (hidden, 4 * hidden)))
    product = jax.jit(recurrence.dot)
    multiply = lambda: [product(a, b).block_until_ready() for _ in range(PRODUCTS)]
    multiply()

    times = {name: [] for name in ("matmul", *programs)}
    for data in windows[CHECKED:]:
        times["matmul"].append(seconds(multiply))
        for name, update in programs.items():
            times[name].append(seconds(lambda update=update, data=data: update(data)))

    bytes_read = lanes * window
    matmul = PRODUCTS * 2 * bytes_read * hidden * 4 * hidden / statistics.median(times.pop("matmul")) / 1e9
    work = 6 * bytes_read * (5 * hidden**2 + 320 * hidden + 256 * hidden) / 1e9

    table = Table()
    for column in ("program", "ms", "bytes/s", "GFLOP/s", "of matmul", "time / ours"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, values in times.items():
        median = statistics.median(values)
        ratios = [value / own for value, own in zip(values, times["ours"], strict=True)]
        table.add_row(
            name,
            spread([1000 * value for value in values], 0),
            f"{bytes_read / median:,.0f}",
            f"{work / median:.0f}",
            f"{work / median / matmul:.0%}",
            "" if name == "ours" else spread(ratios, 2),
        )
    console.print(table)
    console.print(f"matmul: [{lanes * window}, {hidden}] x [{hidden}, {4 * hidden}], float32, {matmul:.0f} GFLOP/s")


if __name__ == "__main__":
    tyro.cli(main)
