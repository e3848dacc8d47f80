"""Planning: the real update, compiled ahead of time for hardware that is not there, and what it needs and takes.

Memory and collectives are the compiler's word. The rate is an estimate; `estimate` says what it supposes.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mlstm_jax.config import Config
from mlstm_jax.errors import UserError
from mlstm_jax.hardware import CHIPS, Chip, chip_of, flops_per_byte, parameters
from mlstm_jax.planning.hlo import Loop, collectives, elements, time_loops
from mlstm_jax.planning.topology import _devices

# What `estimate` supposes: the parts of a chip's published figures that are reached, the time of a collective besides
# that of its bytes, and the bytes of the paper's data.
OF_PEAK, OF_BANDWIDTH, LATENCY, EPOCH = 0.6, 0.8, 5e-6, 38.8e9


class Compiled(NamedTuple):
    """What the compiler says of one update, for each chip."""

    kept: int  # bytes of parameters, moments, carried state and the batch
    temporary: int  # bytes besides, for results of the update and the program
    in_loop: Counter  # collectives in the bodies of loops, "all-reduce f32[64,4096]" -> how many
    outside: Counter
    loops: list[Loop]


def plan(config: Config) -> int:
    """Print what `config` needs and takes on `config.plan`, as "v5e:2x4" or "h200"; 1 where it does not fit, else 0.

    Raises UserError for hardware that is unknown or cannot be compiled for here, or a mesh that does not fit it.
    """
    name = config.plan.partition(":")[0].lower()
    if name not in CHIPS:
        raise UserError(f"--plan {config.plan}: no hardware {name!r}; there are {', '.join(CHIPS)}")
    chip, devices = CHIPS[name], _devices(config.plan, name)
    precision = "bfloat16" if config.precision == "auto" else config.precision

    from mlstm_jax.training import sharding

    mesh = sharding.make(config, devices)
    sharding.require_units(config.model.hidden, mesh)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"{len(devices)} x {chip.kind} ({axes}): {config.model.hidden} units, {precision}, {config.batch_size} rows")
    for line in _loops(config, mesh, precision):
        print(line)
    begun = time.monotonic()
    compiled = compile_update(config, mesh, precision)
    print(f"one update compiled in {time.monotonic() - begun:.0f} seconds")
    fits = isinstance(compiled, Compiled) and compiled.kept + compiled.temporary <= chip.memory
    for line in _report(config, chip, dict(mesh.shape), precision, compiled, fits):
        print(line)
    if config.largest:
        print(f"the most units that fit: {largest(config, chip, mesh, precision):,}")
    return 0 if fits else 1


def explain(config: Config, state, mesh, precision: str, updates: int) -> Iterator[str]:
    """What a run says of itself before it begins: devices, what lives where, how much is to be done."""
    import jax

    device, sizes = jax.devices()[0], ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield f"{mesh.size} x {device.platform} ({device.device_kind}){processes}; mesh: {sizes}"
    here = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves((state.params, state.moments)))
    batch_size = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    yield (
        f"{config.model.hidden} units, {parameters(config.model):,} parameters, {precision}; "
        f"with Adam's moments {here / 1e6:,.1f} MB a device; {batch_size} of {config.batch_size} rows a device"
    )
    yield from _loops(config, mesh, precision)
    per_byte = flops_per_byte(config.model)
    total = per_byte * config.batch_size * config.seq_length * updates
    yield f"{per_byte:,} floating-point operations a byte, {total:.2g} in {updates:,} updates"
    chip = chip_of(device.device_kind)
    if chip is None and device.platform != "cpu":
        yield f"the peak rate of {device.device_kind} is not known here: no utilization is reported"
    read = 5 * config.model.hidden**2 * (2 if precision == "bfloat16" else 4) / mesh.shape["model"]
    if batch_size < 64 and read > 1e6:
        bound = f", at most {batch_size * chip.bandwidth / chip.flops:.0%} of its peak" if chip else ""
        yield (
            f"warning: fewer than 64 rows a device ({batch_size}): the time loop is bound by memory, as it reads "
            f"{read / 1e6:,.0f} MB of matrices for a byte of each{bound}; more --batch-size make better use of a device"
        )


def _loops(config, mesh, precision):
    from mlstm_jax.model import kernels

    loops, reason = kernels.choose(config, mesh, precision)
    if loops:
        yield "time loops: kernels of our own, in Pallas; any estimate is of the plain ones"
    if reason:
        yield f"time loops: the plain ones instead of pallas: {reason}"


def compile_update(config: Config, mesh, precision: str) -> Compiled | str:
    """The update of `config` compiled for a mesh; the compiler's words where it has not memory enough."""
    import jax

    from mlstm_jax.training import updates

    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # from which kernels of our own know the hardware
            step = updates.jitted(config, precision, mesh).lower(*updates.shapes(config, mesh))
        step = step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).partition("\n")[0]
        return line[max(0, line.find("Ran out")) :]
    use = step.memory_analysis()
    temporary = use.temp_size_in_bytes + use.output_size_in_bytes - use.alias_size_in_bytes
    try:
        hlo = step.as_text()
        in_loop, outside, loops = *collectives(hlo), time_loops(hlo)
    except jax.errors.JaxRuntimeError:  # a libtpu that is newer than jax
        in_loop = outside = loops = None
    return Compiled(use.argument_size_in_bytes, temporary + use.generated_code_size_in_bytes, in_loop, outside, loops)


def estimate(config: Config, chip: Chip, axes: dict[str, int], precision: str) -> dict[str, float]:
    """Seconds of one update, part by part.

    Products run at OF_PEAK of the chip's rate, but a step of the time loop, forward or backward, not faster than its
    matrices are read, at OF_BANDWIDTH, nor than LATENCY. A collective takes LATENCY and the time of its bytes on the
    chip's links, and nothing is hidden behind anything else.
    """
    hidden, width = config.model.hidden, 2 if precision == "bfloat16" else 4
    rate = OF_PEAK * chip.flops * (1 if width == 2 else 0.5)
    spread, parts = axes["data"] * axes["fsdp"], axes["model"]
    batch_size, matrices = config.batch_size / spread, 5 * hidden**2 / parts
    together = batch_size / config.grad_accumulation
    ring = lambda n, size: (n - 1) / n * size / chip.link + LATENCY if n > 1 else 0.0
    step = max(2 * matrices * together / rate, matrices * width / (OF_BANDWIDTH * chip.bandwidth), LATENCY)
    steps = 2 * config.seq_length * config.grad_accumulation
    weights = (5 * hidden**2 + 1280 * hidden) / parts  # with the two tables and the read-out
    large = (4 if config.remat_every else 2) * matrices + 1536 * hidden / parts
    return {
        "time loop": steps * step,
        "sums over model": steps * 2 * ring(parts, 4 * together * hidden),
        "weight gradients and read-out": config.seq_length * batch_size * large / rate,
        "gathering weights": ring(axes["fsdp"], width * weights),
        "summing gradients": 2 * ring(spread, 4 * weights),
        "Adam": 7 * 4 * parameters(config.model) / (axes["fsdp"] * parts) / (OF_BANDWIDTH * chip.bandwidth),
    }


def largest(config: Config, chip: Chip, mesh, precision: str) -> int:
    """The most units, in steps of 128, with which an update fits; found by compiling it."""
    step = math.lcm(128, mesh.shape["fsdp"] * mesh.shape["model"])

    def need(units):
        trial = replace(config, model=replace(config.model, hidden=units * step))
        compiled = compile_update(trial, mesh, precision)
        size = math.inf if isinstance(compiled, str) else compiled.kept + compiled.temporary
        print(
            f"  {units * step:,} units: {'too much' if size > chip.memory else f'{size / 2**30:.1f} GiB'}", flush=True
        )
        return size

    fits, size, fails = 0, 0.0, None
    units = max(1, config.model.hidden // step)
    while fails is None or fails - fits > 1:
        found = need(units)
        if found <= chip.memory:
            fits, size = units, found
        else:
            fails = units
        guess = int(fits * math.sqrt(chip.memory / size)) if fits else units // 2
        units = min(max(guess, fits + 1), fails - 1 if fails else 2 * max(fits, 1))
    return fits * step


def _report(config, chip, axes, precision, compiled, fits):
    gib = lambda size: f"{size / 2**30:.2f} GiB"
    per_byte = flops_per_byte(config.model)
    yield f"{parameters(config.model):,} parameters, {per_byte:,} floating-point operations a byte"
    advice = (
        "it fits"
        if fits
        else "it does not fit; --remat-every, more --grad-accumulation or chips along --mesh.fsdp take less"
    )
    if isinstance(compiled, str):
        yield f"{advice}: {compiled}"
        return
    need = compiled.kept + compiled.temporary
    yield f"memory a chip: {gib(compiled.kept)} kept, {gib(compiled.temporary)} for an update, of {gib(chip.memory)}"
    yield f"{advice}: {need / chip.memory:.0%} of a chip's memory"
    if compiled.in_loop is None:
        yield "collectives: this libtpu is newer than jax, so that the program cannot be read; pip install 'jax[tpu]'"
    else:
        for where, found in (("in the time loop", compiled.in_loop), ("once an update", compiled.outside)):
            ranked = sorted(found, key=lambda what: -elements(what))
            listed = "; ".join(f"{found[what]} x {what}" if found[what] > 1 else what for what in ranked[:6])
            more = f" and {len(ranked) - 6} smaller ones" if len(ranked) > 6 else ""
            yield f"collectives {where}: {listed or 'none'}{more}"
    for loop in compiled.loops or []:
        way, ranked = "backward" if loop.backward else "forward", sorted(loop.written, key=lambda what: -elements(what))
        listed = ", ".join(f"{loop.written[what]} x {what}" for what in ranked)
        large = elements(ranked[0]) >= config.model.hidden**2 / axes["model"]
        yield f"a byte {way}: {loop.products} products, {loop.others} other kernels, which write {listed}"
        yield "warning: that is a weight's size at every byte" if large else "none is of a weight's size"
    parts = estimate(config, chip, axes, precision)
    seconds, chips = sum(parts.values()), math.prod(axes.values())
    rate = config.batch_size * config.seq_length / seconds
    size, whose = _epoch(config)
    used = rate * per_byte / chips / chip.flops
    yield "estimate of one update: " + ", ".join(f"{what} {s * 1e3:.1f} ms" for what, s in parts.items() if s)
    yield f"{rate:,.0f} bytes/s, {rate / chips:,.0f} a chip, {used:.0%} of its peak"
    yield f"{size / rate / 3600:,.1f} hours for {whose} {size:,.0f} bytes"
    yield (
        f"supposed: {OF_PEAK:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s in products, {OF_BANDWIDTH:.0%} of "
        f"{chip.bandwidth / 1e9:,.0f} GB/s where matrices are read at every byte, {LATENCY * 1e6:.0f} microseconds and "
        f"{chip.link / 1e9:,.0f} GB/s for a collective, the former for any step, nothing hidden behind anything else"
    )


def _epoch(config):
    """The bytes of one epoch, and whose they are: the prepared folder's, or where there is none, the paper's."""
    if (Path(config.data) / "manifest.json").is_file():
        from mlstm_jax.corpus import shards

        return sum(part.bytes for part in shards.load(Path(config.data))[:-2]) * config.epochs, f"{config.data}'s"
    return EPOCH, "the paper's"
