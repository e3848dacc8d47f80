"""Planning: the real update, compiled ahead of time for hardware that is not there, and what it needs and takes.

Memory and collectives are the compiler's word. The rate is an estimate; `estimate` says what it supposes.
"""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mlstm_jax.config import Config, UserError, require
from mlstm_jax.hardware import CHIPS, Chip, chip_of, flops_per_byte, parameters

# What `estimate` supposes: the parts of a chip's published figures that are reached, the time of a collective besides
# that of its bytes, and the bytes of the paper's data.
OF_PEAK, OF_BANDWIDTH, LATENCY, EPOCH = 0.6, 0.8, 5e-6, 38.8e9
COLLECTIVES = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPE = re.compile(r"\b([a-z]+[0-9]+)\[([0-9,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{\n((?:.*\n)*?)\}", re.M)
INSTRUCTION = re.compile(r"^ *(ROOT )?%(\S+) = (.+?) ([a-z][a-z-]*)\((.*?)\)(?:, (.*))?$", re.M)
NO_KERNEL = re.compile("parameter|constant|tuple|get-tuple-element|bitcast|opt-barrier|after-all|.*-done")


class Loop(NamedTuple):
    """One step of a loop over time, as a GPU runs it."""

    backward: bool
    products: int
    others: int  # kernels besides
    written: Counter  # what they all write, "bf16[128,4096]" -> how many


class Compiled(NamedTuple):
    """What the compiler says of one update, for each chip."""

    kept: int  # bytes of parameters, moments, carried state and the window
    temporary: int  # bytes besides, for results of the update and the program
    in_loop: Counter  # collectives in the bodies of loops, "all-reduce f32[64,4096]" -> how many
    outside: Counter
    loops: list[Loop]


def plan(config: Config) -> int:
    """Print what `config` needs and takes on `config.plan`, as "v5e:2x4" or "h200"; 1 where it does not fit, else 0.

    Raises UserError for hardware that is unknown or cannot be compiled for here, or a mesh that does not fit it.
    """
    name = config.plan.partition(":")[0].lower()
    require(name in CHIPS, f"--plan {config.plan}: no hardware {name!r}; there are {', '.join(CHIPS)}")
    chip, devices = CHIPS[name], _devices(config.plan, name)
    precision = "bfloat16" if config.precision == "auto" else config.precision

    from mlstm_jax import sharding

    mesh = sharding.make(config, devices)
    sharding.require_units(config.model.hidden, mesh)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"{len(devices)} x {chip.kind} ({axes}): {config.model.hidden} units, {precision}, {config.lanes} lanes")
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
    lanes = config.lanes // (mesh.shape["data"] * mesh.shape["fsdp"])
    yield (
        f"{config.model.hidden} units, {parameters(config.model):,} parameters, {precision}; "
        f"with Adam's moments {here / 1e6:,.1f} MB a device; {lanes} of {config.lanes} lanes a device"
    )
    yield from _loops(config, mesh, precision)
    per_byte = flops_per_byte(config.model)
    total = per_byte * config.lanes * config.window * updates
    yield f"{per_byte:,} floating-point operations a byte, {total:.2g} in {updates:,} updates"
    chip = chip_of(device.device_kind)
    if chip is None and device.platform != "cpu":
        yield f"the peak rate of {device.device_kind} is not known here: no utilization is reported"
    read = 5 * config.model.hidden**2 * (2 if precision == "bfloat16" else 4) / mesh.shape["model"]
    if lanes < 64 and read > 1e6:
        bound = f", at most {lanes * chip.bandwidth / chip.flops:.0%} of its peak" if chip else ""
        yield (
            f"warning: fewer than 64 lanes a device ({lanes}): the time loop is bound by memory, as it reads "
            f"{read / 1e6:,.0f} MB of matrices for a byte of each{bound}; more --lanes make better use of a device"
        )


def _loops(config, mesh, precision):
    from mlstm_jax import kernels

    loops, reason = kernels.choose(config, mesh, precision)
    if loops:
        yield "time loops: kernels of our own, in Pallas; any estimate is of the plain ones"
    if reason:
        yield f"time loops: the plain ones instead of pallas: {reason}"


def compile_update(config: Config, mesh, precision: str) -> Compiled | str:
    """The update of `config` compiled for a mesh; the compiler's words where it has not memory enough."""
    import jax

    from mlstm_jax import training

    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # from which kernels of our own know the hardware
            step = training.jitted(config, precision, mesh).lower(*training.shapes(config, mesh))
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


def collectives(hlo: str) -> tuple[Counter, Counter]:
    """The collectives of an optimised HLO module, as "all-reduce f32[64,4096]": in bodies of loops, and elsewhere.

    A TPU does some in a chain of fusions, beside other work; such a one is where its chain starts.
    """
    found, calls, bodies, name, chain = {}, {}, [], None, None
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[1]
            found[name], calls[name], chain = Counter(), [], None
        if name is None:
            continue
        if match := COLLECTIVES.search(line):
            shapes = SHAPE.findall(match[1])
            size = lambda shape: math.prod(int(n) for n in shape[1].split(",") if n)
            kind, dims = max(shapes, key=size)
            chain = f"{match[2]} {kind}[{dims}]"
            found[name][chain] += "chain_id=" not in line
        found[name][chain] += '"AsyncCollectiveStart"' in line
        bodies += re.findall(r"\bbody=%?([\w.\-]+)", line)
        calls[name] += re.findall(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[name] += re.findall(r"[\w.\-]+", branches)
    inside, ahead = set(), bodies
    while ahead:
        if (name := ahead.pop()) not in inside:
            inside.add(name)
            ahead += calls.get(name, [])
    total = lambda names: sum((found[name] for name in names), Counter())  # without those that count 0
    return total(inside & found.keys()), total(found.keys() - inside)


def time_loops(hlo: str) -> list[Loop]:
    """What the bodies of an optimised HLO module's innermost loops do, forward before backward.

    Of an array that is updated in place only the part that is written counts, or where a kernel of ours does that, none
    of it; an array that is copied counts whole.
    """
    parts = {name: [m.groups("") for m in INSTRUCTION.finditer(text)] for name, text in COMPUTATION.findall(hlo)}
    called = lambda more: [name for name in re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", more) if name in parts]

    def multiplies(operation, more):
        inner = any(multiplies(op, m) for name in called(more) for _, _, _, op, _, m in parts[name])
        # As a target, triton is a kernel of ours: every one of them is a product and what follows it.
        return (
            inner or operation in ("dot", "convolution") or bool(re.search('target="[^"]*(gemm|matmul|triton)', more))
        )

    def writes(instructions, root):
        _, _, shape, operation, operands, more = root
        named = {i[1]: i for i in instructions}
        operands = [named[name] for name in re.findall(r"%([\w.\-]+)", operands) if name in named]
        if operation == "tuple":
            return [written for one in operands for written in writes(instructions, one)]
        if operation == "bitcast" and operands:
            return writes(instructions, operands[0])
        if operation == "dynamic-update-slice":
            shape = operands[1][2]
        elif operation.startswith(("fusion", "async-start", "call")):
            inside = parts[called(more)[0]]
            return writes(inside, next(i for i in inside if i[0]))
        in_place = set(map(int, re.findall(r"\{(\d+)\}: \(", more.partition("output_to_operand_aliasing={")[2])))
        shapes = re.findall(r"([a-z]+[0-9]*)\[(?:1,)*([0-9,]*)\]", shape)
        return [f"{kind}[{dims}]" for i, (kind, dims) in enumerate(shapes) if i not in in_place]

    found = []
    for body in re.findall(r"\bbody=%?([\w.\-]+)", hlo):
        kernels = [i for i in parts.get(body, []) if not NO_KERNEL.fullmatch(i[3])]
        if not any(i[3] == "while" for i in kernels):
            products = sum(multiplies(operation, more) for _, _, _, operation, _, more in kernels)
            backward = any("transpose(" in more for *_, more in kernels)
            written = Counter(shape for i in kernels for shape in writes(parts[body], i))
            found.append(Loop(backward, products, len(kernels) - products, written))
    return sorted(found, key=lambda loop: loop.backward)


def elements(shape: str) -> int:
    """How many numbers an array like "bf16[128,4096]" holds."""
    return math.prod(map(int, re.findall(r"\d+(?=[,\]])", shape)))


def estimate(config: Config, chip: Chip, axes: dict[str, int], precision: str) -> dict[str, float]:
    """Seconds of one update, part by part.

    Products run at OF_PEAK of the chip's rate, but a step of the time loop, forward or backward, not faster than its
    matrices are read, at OF_BANDWIDTH, nor than LATENCY. A collective takes LATENCY and the time of its bytes on the
    chip's links, and nothing is hidden behind anything else.
    """
    hidden, width = config.model.hidden, 2 if precision == "bfloat16" else 4
    rate = OF_PEAK * chip.flops * (1 if width == 2 else 0.5)
    spread, parts = axes["data"] * axes["fsdp"], axes["model"]
    lanes, matrices = config.lanes / spread, 5 * hidden**2 / parts
    together = lanes / config.lane_groups
    ring = lambda n, size: (n - 1) / n * size / chip.link + LATENCY if n > 1 else 0.0
    step = max(2 * matrices * together / rate, matrices * width / (OF_BANDWIDTH * chip.bandwidth), LATENCY)
    steps = 2 * config.window * config.lane_groups
    weights = (5 * hidden**2 + 1280 * hidden) / parts  # with the two tables and the read-out
    large = (4 if config.segment else 2) * matrices + 1536 * hidden / parts
    return {
        "time loop": steps * step,
        "sums over model": steps * 2 * ring(parts, 4 * together * hidden),
        "weight gradients and read-out": config.window * lanes * large / rate,
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
        "it fits" if fits else "it does not fit; --segment, more --lane-groups or chips along --mesh.fsdp take less"
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
            told = "; ".join(f"{found[what]} x {what}" if found[what] > 1 else what for what in ranked[:6])
            more = f" and {len(ranked) - 6} smaller ones" if len(ranked) > 6 else ""
            yield f"collectives {where}: {told or 'none'}{more}"
    for loop in compiled.loops or []:
        way, ranked = "backward" if loop.backward else "forward", sorted(loop.written, key=lambda what: -elements(what))
        told = ", ".join(f"{loop.written[what]} x {what}" for what in ranked)
        large = elements(ranked[0]) >= config.model.hidden**2 / axes["model"]
        yield f"a byte {way}: {loop.products} products, {loop.others} other kernels, which write {told}"
        yield "warning: that is a weight's size at every byte" if large else "none is of a weight's size"
    parts = estimate(config, chip, axes, precision)
    seconds, chips = sum(parts.values()), math.prod(axes.values())
    rate = config.lanes * config.window / seconds
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


# Hardware that is not there


def _devices(topology, name):
    """The devices of a topology, as the compiler knows them. Call it before anything else of jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        return _gpus(topology, name) if name in GPUS else _tpus(topology)
    except UserError:
        raise
    except Exception as error:  # jax and its plugins raise many kinds
        line = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"--plan {topology}: it cannot be compiled for here: {line}") from None


def _tpus(topology):
    sizes = [int(size) for size in topology.lower().partition(":")[2].split("x") if size.isdecimal()]
    require(sizes, f"--plan {topology}: name the topology too, as {topology.partition(':')[0]}:2x4")
    # What libtpu wants to know of the machine it believes to be on.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks hardware that is not here
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(f"--plan {topology} takes libtpu, on Linux: pip install 'mlstm-jax[tpu]'") from None
    from jax.experimental import topologies

    # A host has 2 x 2 chips, and a topology of fewer is one host of all its chips, which older libtpus must be told.
    host = [min(size, most) for size, most in zip([*sizes, 1, 1], (2, 2, 1), strict=False)]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology.lower(), chips_per_host_bounds=host
    ).devices


GPUS = {
    # compute capability, multiprocessors, units of arithmetic in each, shared memory of a block and of each, L2, clock
    "a100": ((8, 0), 108, 64, 166912, 167936, 41943040, 1.41),
    "h100": ((9, 0), 132, 128, 232448, 233472, 52428800, 1.98),
    "h200": ((9, 0), 132, 128, 232448, 233472, 62914560, 1.98),
}


def _gpus(topology, name):
    require(topology.lower() == name, f"--plan {topology}: one GPU is planned for, as {name}")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    try:
        import jax_plugins.xla_cuda13  # noqa: F401
    except ImportError:
        raise UserError(f"--plan {topology} takes jax's CUDA plugin, on Linux: pip install 'mlstm-jax[cuda]'") from None
    import jax
    from jax.experimental import topologies

    jax.devices()  # finds the plugin

    chip, ((major, minor), cores, units, block, shared, l2, clock) = CHIPS[name], GPUS[name]
    target = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {block}
          core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock} l2_cache_size: {l2}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory:.0f}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{chip.kind}"
    """
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=target, topology="1 x 1 x 1"
    ).devices
