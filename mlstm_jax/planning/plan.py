"""Planning: the update compiled ahead of time for hardware that is not there, its memory, and its estimated speed.

Memory and collectives are the compiler's figures. The rate is an estimate; `seconds_by_part` says what it supposes.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jax.sharding import Mesh

from mlstm_jax.config import Config, Precision
from mlstm_jax.errors import UserError
from mlstm_jax.hardware import Chip, chip_of, cpu_has_bfloat16, flops_per_byte, parameters
from mlstm_jax.planning.hlo import Loop, collectives, elements, time_loops
from mlstm_jax.planning.topology import Hardware, compilable, parse

if TYPE_CHECKING:
    from mlstm_jax.training.updates import TrainState

# What the estimate supposes: the parts of a chip's published figures that are reached, the time of a collective besides
# that of its bytes, and the bytes of the paper's data.
OF_PEAK, OF_BANDWIDTH, LATENCY, EPOCH = 0.6, 0.8, 5e-6, 38.8e9
# Numbers, in the products' precision, that an update keeps for a unit and a byte: of the compilers' figures.
PER_BYTE = {"gpu": 9.5, "tpu": 29.5}
# What `plan` all is for: GPUs alone and a box of them, a host's TPUs and a slice of several hosts.
ALL = "h100 h100:8 h200 h200:8 b200 b200:8 v5e-8 v5e-32 v5p-8 v5p-64 v6e-8 v6e-32".split()


class Memory(NamedTuple):
    """Bytes of one update on each chip, as the compiler counts them."""

    peak_bytes: int  # arguments, temporaries and code, and outputs that take no argument's place
    argument_bytes: int  # parameters, Adam's moments, the carried state, the batch
    output_bytes: int
    alias_bytes: int  # of the outputs, those that take an argument's place
    temporary_bytes: int
    code_bytes: int


class Collectives(NamedTuple):
    """Collectives of one update, "all-reduce f32[64,4096]" -> how many."""

    in_time_loop: dict[str, int]  # in the bodies of loops
    once_per_update: dict[str, int]


class Compiled(NamedTuple):
    """What the compiler says of one update; only its memory where the program cannot be read."""

    memory: Memory
    collectives: Collectives | None
    time_loops: list[Loop] | None


class TimeLoop(NamedTuple):
    """The fastest that a step of the time loop can be, in seconds, for each thing that may bound it."""

    compute: float
    memory_bandwidth: float
    latency: float

    @property
    def bound(self) -> str:
        """The name of what bounds it."""
        return max(self._fields, key=lambda name: getattr(self, name))


class Estimate(NamedTuple):
    """The speed of training, estimated."""

    seconds_per_update: float
    seconds_by_part: dict[str, float]
    time_loop_bound: str  # compute, memory_bandwidth or latency
    bytes_per_second: float
    bytes_per_second_per_chip: float
    model_flops_utilization: float
    epoch_bytes: float
    epoch_source: str  # the prepared folder, or "paper"
    seconds_per_epoch: float


class Plan(NamedTuple):
    """All figures of a plan. `to_json` gives them as plain values, under these names."""

    hardware: str
    chip: str
    chips: int
    mesh: dict[str, int]
    hidden: int
    batch_size: int
    seq_length: int
    precision: Precision
    kernels: Literal["xla", "pallas"]
    kernels_reason: str | None  # why it is not pallas, where that was asked for
    parameters: int
    flops_per_byte: int
    flops_per_update: int
    peak_flops_per_second: float  # of a chip, as are the next three
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    compile_seconds: float
    fits: bool
    memory_used: float | None  # the peak, as a part of a chip's memory
    compiler_error: str | None  # the compiler's words where it has not memory enough; the next four are None then
    memory: Memory | None
    collectives: Collectives | None  # None, too, where this libtpu is newer than jax
    time_loops: list[Loop] | None
    writes_weight_every_byte: bool | None  # whether any step of these writes an array of a weight's size
    estimate: Estimate
    largest_hidden: int | None  # where that was asked for


class Row(NamedTuple):
    """A line of the table of hardware: memory from the compiler or from a formula, time from a formula."""

    hardware: str
    chip: str
    devices: int
    mesh: dict[str, int] | None  # None where no mesh fits these devices, as all that follows
    rows: int | None  # on each device
    compiled: bool  # whether the memory is the compiler's
    memory_used: float | None  # bytes on each device; None, too, where the compiler had not memory enough
    memory_bytes: float  # what there is of it
    fits: bool
    seconds_per_epoch: float | None
    note: str | None  # why it is not compiled, or does not fit


def plan(config: Config, progress: Callable[[str], None] = lambda line: None, named: Collection[str] = ()) -> Plan:
    """The memory and the speed of an update of `config` on the hardware `config.plan`, as "v5e:2x4" or "h200:8".

    The mesh is fitted to it, but for the axes that are `named`. `progress` is called with a line before each
    compilation. Raises UserError for hardware that is unknown or cannot be compiled for here, or where no mesh fits.
    """
    if config.plan is None:
        raise UserError("name the hardware with `plan`, as v5e:2x4 or h200:8")
    hardware = parse(config.plan)
    chip, devices, precision = hardware.chip, compilable(hardware), _precision(config)

    from mlstm_jax.model import kernels
    from mlstm_jax.training import sharding

    mesh, change = sharding.fitted(config, named, devices)
    if change:
        progress(change)
    loops, reason = kernels.choose(config, mesh, precision)
    progress(f"compiling an update of {config.model.hidden:,} units for {mesh.size} x {chip.kind}")
    begun = time.monotonic()
    compiled = compile_update(config, mesh, precision)
    compile_seconds = time.monotonic() - begun
    error = compiled if isinstance(compiled, str) else None
    memory, found, steps = (None, None, None) if isinstance(compiled, str) else compiled
    per_byte, size = flops_per_byte(config.model), (config.model.hidden, mesh.shape["model"])
    return Plan(
        hardware=config.plan,
        chip=chip.kind,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        hidden=config.model.hidden,
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        precision=precision,
        kernels="pallas" if loops else "xla",
        kernels_reason=reason,
        parameters=parameters(config.model),
        flops_per_byte=per_byte,
        flops_per_update=per_byte * config.batch_size * config.seq_length,
        peak_flops_per_second=chip.flops,
        memory_bytes=chip.memory,
        memory_bytes_per_second=chip.bandwidth,
        link_bytes_per_second=chip.link,
        compile_seconds=compile_seconds,
        fits=peak_bytes(compiled) <= chip.memory,
        memory_used=memory.peak_bytes / chip.memory if memory else None,
        compiler_error=error,
        memory=memory,
        collectives=found,
        time_loops=steps,
        writes_weight_every_byte=None if steps is None else any(writes_weight(s, *size) for s in steps),
        estimate=estimate(config, chip, dict(mesh.shape), precision),
        largest_hidden=largest(config, chip, mesh, precision, progress) if config.largest else None,
    )


def _precision(config: Config) -> Precision:
    return "bfloat16" if config.precision == "auto" else config.precision


def table(config: Config, named: Collection[str] = ()) -> Iterator[Row]:
    """A row for each of `ALL`, the mesh fitted to it; where it cannot be compiled for here, from formulas alone."""
    for name in ALL:
        yield _row(config, name, parse(name), named)


def _row(config: Config, name: str, hardware: Hardware, named: Collection[str]) -> Row:
    from mlstm_jax.training import sharding

    chip, precision = hardware.chip, _precision(config)
    sizes = sharding.fit_config(config, hardware.devices, named)
    row = Row(name, chip.kind, hardware.devices, None, None, False, None, chip.memory, False, None, None)
    if sizes is None:
        return row
    axes = asdict(sizes)
    row = row._replace(
        mesh=axes,
        rows=config.batch_size // (sizes.data * sizes.fsdp),
        seconds_per_epoch=estimate(config, chip, axes, precision).seconds_per_epoch,
    )
    try:
        mesh = sharding.make(replace(config, mesh=sizes), compilable(hardware))
    except UserError as error:
        used = memory(config, chip, axes, precision)
        return row._replace(memory_used=used, fits=used <= chip.memory, note=str(error))
    found = compile_update(config, mesh, precision)
    if isinstance(found, str):
        return row._replace(compiled=True, note=found)
    used = found.memory.peak_bytes
    return row._replace(compiled=True, memory_used=used, fits=used <= chip.memory)


def memory(config: Config, chip: Chip, axes: dict[str, int], precision: Precision) -> float:
    """Bytes that an update takes on each device, to a third: for hardware that cannot be compiled for here.

    Parameters and moments; for the weights of the time loop a gradient in float32 and, in the products' precision,
    themselves and their transposes; and PER_BYTE for every unit and byte that the backward pass goes through at once.
    """
    hidden, width = config.model.hidden, _width(precision)
    rows = config.batch_size / (axes["data"] * axes["fsdp"]) / config.grad_accumulation
    weights = (4 + 2 * width) * (5 * hidden**2 + 1280 * hidden)
    at_once = (
        PER_BYTE["gpu" if chip.kind.startswith("NVIDIA") else "tpu"] * width * (config.remat_every or config.seq_length)
    )
    kept = (4 + width) * config.seq_length if config.remat_every else 0  # c and h
    parts = axes["model"]
    return 12 * parameters(config.model) / (axes["fsdp"] * parts) + (weights + rows * hidden * (at_once + kept)) / parts


def to_json(figures: Any) -> Any:
    """NamedTuples, and those in them, as plain values for JSON."""
    if hasattr(figures, "_asdict"):
        figures = figures._asdict()
    if isinstance(figures, dict):
        return {name: to_json(value) for name, value in figures.items()}
    return [to_json(value) for value in figures] if isinstance(figures, list) else figures


def explain(config: Config, state: "TrainState", mesh: Mesh, precision: Precision, updates: int) -> Iterator[str]:
    """What a run says of itself before it begins: devices, what lives where, how much is to be done."""
    import jax

    from mlstm_jax.model import kernels

    device, sizes = jax.devices()[0], ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield f"{mesh.size} x {device.platform} ({device.device_kind}){processes}; mesh: {sizes}"
    here = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves((state.params, state.moments)))
    batch_size = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    yield (
        f"{config.model.hidden} units, {parameters(config.model):,} parameters, {precision}; "
        f"with Adam's moments {here / 1e6:,.1f} MB a device; {batch_size} of {config.batch_size} rows a device"
    )
    loops, reason = kernels.choose(config, mesh, precision)
    yield from describe_kernels("pallas" if loops else "xla", reason)
    per_byte = flops_per_byte(config.model)
    total = per_byte * config.batch_size * config.seq_length * updates
    yield f"{per_byte:,} floating-point operations a byte, {total:.2g} in {updates:,} updates"
    if device.platform == "cpu" and config.precision == "auto" and cpu_has_bfloat16():
        yield "this CPU has bfloat16 products: `precision` bfloat16 takes half to two thirds of the time"
    chip = chip_of(device.device_kind)
    if chip is None and device.platform != "cpu":
        yield f"the peak rate of {device.device_kind} is not known here: no utilization is reported"
    read = 5 * config.model.hidden**2 * (2 if precision == "bfloat16" else 4) / mesh.shape["model"]
    if batch_size < 64 and read > 1e6:
        bound = f", at most {batch_size * chip.bandwidth / chip.flops:.0%} of its peak" if chip else ""
        yield (
            f"warning: fewer than 64 rows a device ({batch_size}): the time loop is bound by memory, as it reads "
            f"{read / 1e6:,.0f} MB of matrices for a byte of each{bound}; a larger `batch_size` makes better use of it"
        )


def describe_kernels(kernels: str, reason: str | None) -> Iterator[str]:
    """A line where the time loops are not XLA's, or not those that were asked for."""
    if kernels == "pallas":
        yield "time loops: kernels of our own, in Pallas; any estimate is of the plain ones"
    if reason:
        yield f"time loops: the plain ones instead of pallas: {reason}"


def compile_update(config: Config, mesh: Mesh, precision: Precision) -> Compiled | str:
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
    if use is None:
        raise UserError("the compiler for this hardware does not say how much memory an update takes")
    outputs = use.output_size_in_bytes - use.alias_size_in_bytes
    memory = Memory(
        peak_bytes=use.argument_size_in_bytes + use.temp_size_in_bytes + outputs + use.generated_code_size_in_bytes,
        argument_bytes=use.argument_size_in_bytes,
        output_bytes=use.output_size_in_bytes,
        alias_bytes=use.alias_size_in_bytes,
        temporary_bytes=use.temp_size_in_bytes,
        code_bytes=use.generated_code_size_in_bytes,
    )
    try:
        hlo = step.as_text()
    except jax.errors.JaxRuntimeError:  # a libtpu that is newer than jax
        hlo = None
    if hlo is None:
        return Compiled(memory, None, None)
    return Compiled(memory, Collectives(*map(dict, collectives(hlo))), time_loops(hlo))


def writes_weight(loop: Loop, hidden: int, parts: int) -> bool:
    """Whether a step writes an array of the size of a weight matrix, of which each chip has one of so many parts."""
    return any(elements(array) >= hidden**2 / parts for array in loop.written)


def peak_bytes(compiled: Compiled | str) -> float:
    """The most memory that an update has on a chip, in bytes; infinite where the compiler refused it."""
    return math.inf if isinstance(compiled, str) else compiled.memory.peak_bytes


def estimate(config: Config, chip: Chip, axes: dict[str, int], precision: Precision) -> Estimate:
    """The speed of training on a mesh of these axes."""
    parts, chips = seconds_by_part(config, chip, axes, precision), math.prod(axes.values())
    seconds = sum(parts.values())
    rate = config.batch_size * config.seq_length / seconds
    size, source = epoch(config)
    return Estimate(
        seconds_per_update=seconds,
        seconds_by_part=parts,
        time_loop_bound=time_loop(config, chip, axes, precision).bound,
        bytes_per_second=rate,
        bytes_per_second_per_chip=rate / chips,
        model_flops_utilization=rate * flops_per_byte(config.model) / chips / chip.flops,
        epoch_bytes=size,
        epoch_source=source,
        seconds_per_epoch=size / rate,
    )


def time_loop(config: Config, chip: Chip, axes: dict[str, int], precision: Precision) -> TimeLoop:
    """What bounds a step of the time loop, for one group of the batch: its products, its matrices, or its start."""
    matrices, width = 5 * config.model.hidden**2 / axes["model"], _width(precision)
    together = config.batch_size / (axes["data"] * axes["fsdp"]) / config.grad_accumulation
    return TimeLoop(
        compute=2 * matrices * together / _rate(chip, precision),
        memory_bandwidth=matrices * width / (OF_BANDWIDTH * chip.bandwidth),
        latency=LATENCY,
    )


def _width(precision: Precision) -> int:
    return 2 if precision == "bfloat16" else 4


def _rate(chip: Chip, precision: Precision) -> float:
    return OF_PEAK * chip.flops * (1 if precision == "bfloat16" else 0.5)


def seconds_by_part(config: Config, chip: Chip, axes: dict[str, int], precision: Precision) -> dict[str, float]:
    """Seconds of one update, part by part.

    Products run at OF_PEAK of the chip's rate, but a step of the time loop, forward or backward, not faster than its
    matrices are read, at OF_BANDWIDTH, nor than LATENCY. A collective takes LATENCY and the time of its bytes on the
    chip's links, and nothing is hidden behind anything else.
    """
    hidden, width, rate = config.model.hidden, _width(precision), _rate(chip, precision)
    spread, parts = axes["data"] * axes["fsdp"], axes["model"]
    batch_size, matrices = config.batch_size / spread, 5 * hidden**2 / parts
    together = batch_size / config.grad_accumulation
    ring = lambda n, size: (n - 1) / n * size / chip.link + LATENCY if n > 1 else 0.0
    step = max(time_loop(config, chip, axes, precision))
    steps = 2 * config.seq_length * config.grad_accumulation
    weights = (5 * hidden**2 + 1280 * hidden) / parts  # with the two tables and the read-out
    large = (4 if config.remat_every else 2) * matrices + 1536 * hidden / parts
    # Five gates in five steps of three products, whole on every device.
    muon = {"muon": 5 * 5 * 3 * 2 * hidden**3 / _rate(chip, "float32")} if config.optimizer == "muon" else {}
    return muon | {
        "time_loop": steps * step,
        "sums_over_model": steps * 2 * ring(parts, 4 * together * hidden),
        "weight_gradients_and_readout": config.seq_length * batch_size * large / rate,
        "gathering_weights": ring(axes["fsdp"], width * weights),
        "summing_gradients": 2 * ring(spread, 4 * weights),
        "adam": 7 * 4 * parameters(config.model) / (axes["fsdp"] * parts) / (OF_BANDWIDTH * chip.bandwidth),
    }


def largest(
    config: Config, chip: Chip, mesh: Mesh, precision: Precision, progress: Callable[[str], None] = lambda line: None
) -> int:
    """The most units, in steps of 128, with which an update fits; found by compiling it."""
    step = math.lcm(128, mesh.shape["fsdp"] * mesh.shape["model"])

    def need(units: int) -> float:
        trial = replace(config, model=replace(config.model, hidden=units * step))
        size = peak_bytes(compile_update(trial, mesh, precision))
        progress(f"  {units * step:,} units: {'too much' if size > chip.memory else f'{size / 2**30:.1f} GiB'}")
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


def epoch(config: Config) -> tuple[float, str]:
    """The bytes of one epoch, and whose they are: the prepared folder's, or where there is none, the paper's."""
    if (Path(config.data) / "manifest.json").is_file():
        from mlstm_jax.corpus import shards

        return sum(part.bytes for part in shards.load(Path(config.data))[:-2]) * config.epochs, config.data
    return int(EPOCH), "paper"
