"""`train.py --plan v5e:2x4`: the memory and the speed of training on other hardware, in words or as JSON.

`--plan all` is a table of hardware, in Markdown.
"""

import json
import logging
from collections.abc import Collection, Iterator

from mlstm_jax.cli import program
from mlstm_jax.config import Config
from mlstm_jax.planning import plan as planning
from mlstm_jax.planning.hlo import elements
from mlstm_jax.planning.plan import LATENCY, OF_BANDWIDTH, OF_PEAK, Estimate, Plan, Row

logger = logging.getLogger(__name__)


def run(config: Config, as_json: bool, named: Collection[str]) -> int:
    """Print the plan of `config`, as JSON where asked; 1 where an update does not fit its one hardware, else 0.

    The mesh is fitted to the hardware, but for the axes that are `named`.
    """
    if config.plan == "all":
        rows = planning.table(config, named)
        if as_json:
            print(json.dumps([planning.to_json(row) for row in rows], indent=2))
        else:
            for line in table(config, rows):
                print(line, flush=True)
        return 0
    plan = planning.plan(config, lambda line: logger.info(program.flags(line)), named)
    if as_json:
        print(json.dumps(planning.to_json(plan), indent=2))
    else:
        print("\n".join(lines(plan)))
    return 0 if plan.fits else 1


def table(config: Config, rows: Iterator[Row]) -> Iterator[str]:
    """The table of hardware, each row when it is known, and what is to be said of it."""
    size, source = planning.epoch(config)
    whose = "the paper's" if source == "paper" else f"{source}'s"
    groups = f" in {config.grad_accumulation} groups" if config.grad_accumulation > 1 else ""
    yield (
        f"{config.model.hidden:,} units, batch size {config.batch_size}{groups}, sequences of {config.seq_length} "
        f"bytes; an epoch is {whose} {size:,.0f} bytes"
    )
    yield ""
    yield "| hardware | devices | data x fsdp x model | rows each | GiB each | of | memory from | hours an epoch |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    notes = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.hardware)
        mesh = " x ".join(map(str, row.mesh.values())) if row.mesh else "none fits"
        used = f"{row.memory_used / 2**30:.1f}" if row.memory_used else "more" if row.compiled else ""
        misfit = ": does not fit" * bool(row.mesh and not row.fits)
        hours = f"{row.seconds_per_epoch / 3600:,.1f}" if row.seconds_per_epoch and row.fits else ""
        source = ("the compiler" if row.compiled else "a formula") if row.mesh else ""
        cells = [row.hardware, row.devices, mesh, row.rows or "", used + misfit, f"{row.memory_bytes / 2**30:.1f}"]
        yield f"| {' | '.join(map(str, [*cells, source, hours]))} |"
    yield ""
    yield (
        f"The hours are estimates by formula in every row: {OF_PEAK:.0%} of the peak rate, {OF_BANDWIDTH:.0%} of the "
        f"bandwidth, {LATENCY * 1e6:.0f} microseconds for a collective and for any step, no overlap."
    )
    for note, names in notes.items():
        yield program.flags(f"{', '.join(names)}: {note}")


def lines(plan: Plan) -> Iterator[str]:
    """The plan in words."""
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield f"{plan.chips} x {plan.chip} ({axes}): {plan.hidden} units, {plan.precision}, batch size {plan.batch_size}"
    yield from map(program.flags, planning.describe_kernels(plan.kernels, plan.kernels_reason))
    yield f"one update compiled in {plan.compile_seconds:.0f} seconds"
    yield f"{plan.parameters:,} parameters, {plan.flops_per_byte:,} floating-point operations a byte"
    yield from _memory(plan)
    if plan.memory:
        yield from _program(plan)
        yield from _speed(plan, plan.estimate)
    if plan.largest_hidden is not None:
        yield f"the most units that fit: {plan.largest_hidden:,}"


def _memory(plan: Plan) -> Iterator[str]:
    gib = lambda size: f"{size / 2**30:.2f} GiB"
    advice = (
        "it fits"
        if plan.fits
        else "it does not fit; --remat-every, more --grad-accumulation or chips along --mesh.fsdp take less"
    )
    if plan.memory is None:
        yield f"{advice}: {plan.compiler_error}"
        return
    kept = plan.memory.argument_bytes
    yield (
        f"memory a chip: {gib(kept)} kept, {gib(plan.memory.peak_bytes - kept)} for an update, "
        f"of {gib(plan.memory_bytes)}"
    )
    yield f"{advice}: {plan.memory_used:.0%} of a chip's memory"


def _program(plan: Plan) -> Iterator[str]:
    """The collectives, and what a step of the time loops does."""
    if plan.collectives is None:
        yield "collectives: this libtpu is newer than jax, so that the program cannot be read; pip install 'jax[tpu]'"
        return
    by_size = lambda arrays: sorted(arrays, key=lambda what: -elements(what))
    counted = lambda what, count: f"{count} x {what}" if count > 1 else what
    for where, found in (
        ("in the time loop", plan.collectives.in_time_loop),
        ("once an update", plan.collectives.once_per_update),
    ):
        ranked = by_size(found)
        listed = "; ".join(counted(what, found[what]) for what in ranked[:6])
        more = f" and {len(ranked) - 6} smaller ones" if len(ranked) > 6 else ""
        yield f"collectives {where}: {listed or 'none'}{more}"
    for loop in plan.time_loops or ():
        way, ranked = "backward" if loop.backward else "forward", by_size(loop.written)
        listed = ", ".join(f"{loop.written[what]} x {what}" for what in ranked)
        yield f"a byte {way}: {loop.products} products, {loop.others} other kernels, which write {listed}"
        large = planning.writes_weight(loop, plan.hidden, plan.mesh["model"])
        yield "warning: that is a weight's size at every byte" if large else "none is of a weight's size"


def _speed(plan: Plan, estimate: Estimate) -> Iterator[str]:
    parts = ((name.replace("_", " "), seconds) for name, seconds in estimate.seconds_by_part.items() if seconds)
    yield "estimate of one update: " + ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in parts)
    yield f"the time loop is bound by {estimate.time_loop_bound.replace('_', ' ')}"
    yield (
        f"{estimate.bytes_per_second:,.0f} bytes/s, {estimate.bytes_per_second_per_chip:,.0f} a chip, "
        f"{estimate.model_flops_utilization:.0%} of its peak"
    )
    whose = "the paper's" if estimate.epoch_source == "paper" else f"{estimate.epoch_source}'s"
    yield f"{estimate.seconds_per_epoch / 3600:,.1f} hours for {whose} {estimate.epoch_bytes:,.0f} bytes"
    yield (
        f"assumed: {OF_PEAK:.0%} of {plan.peak_flops_per_second / 1e12:,.0f} TFLOP/s in products, "
        f"{OF_BANDWIDTH:.0%} of {plan.memory_bytes_per_second / 1e9:,.0f} GB/s where matrices are read at every byte, "
        f"{LATENCY * 1e6:.0f} microseconds and {plan.link_bytes_per_second / 1e9:,.0f} GB/s for a collective, "
        "the former for any step, nothing hidden behind anything else"
    )
