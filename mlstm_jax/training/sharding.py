"""The mesh of devices, and the sharding of each array over it.

Three axes. Rows, with the state that they carry, are spread over `data` and `fsdp`; parameters and Adam's moments, by
the hidden width, over `fsdp` and `model`. Once an update the weights are gathered over `fsdp`, in the precision of the
products; along `model` every device keeps its units, and a step of the time loop sums one array [rows, hidden].
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, replace
from typing import NamedTuple, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Shaped

from mlstm_jax.config import Config, MeshConfig
from mlstm_jax.errors import UserError
from mlstm_jax.model.cell import Weights

BATCH = ("data", "fsdp")
WIDTH = ("model", "fsdp")  # in this order, so that what is gathered over fsdp is a block of the units of `model`
PARAMS = {
    "embed": P(),
    **dict.fromkeys(("wx", "wmx"), P(None, WIDTH)),
    **dict.fromkeys(("wh", "wmh", "out"), P(WIDTH, None)),
    **dict.fromkeys(("gx", "gh", "gmx", "gmh", "b"), P(WIDTH)),
    "out_b": P(),
}
# The prepared weights; x as `split` cuts it, so that a part of the units has its columns of all four gates.
_SPECS = dict(x=P(None, None, "model"), mx=P(None, "fsdp"), wmh=P(WIDTH), wh=P(WIDTH), out=P(WIDTH), out_b=P())
WEIGHTS = Weights(**_SPECS)  # pyright: ignore[reportArgumentType]  # a tree of the same form
PREPARED = WEIGHTS._replace(x=P())  # as they lie between calls


AXES = ("data", "fsdp", "model")


def fit(mesh: MeshConfig, devices: int, hidden: int, rows: int, named: Collection[str] = ()) -> MeshConfig | None:
    """The mesh nearest to `mesh` with just so many devices, and equal parts of the units and of a group's rows.

    `model` stays as it is where it can, then `fsdp`, then `data`; where one cannot, it takes the nearest size. An axis
    of -1 takes any. Axes in `named` are not changed. None where there is no such mesh.
    """

    def far(found: MeshConfig) -> list[float]:
        pairs = [(getattr(mesh, axis), getattr(found, axis)) for axis in reversed(AXES)]
        return [max(asked / size, size / asked) for asked, size in pairs if asked != -1]

    def keeps_named(found: MeshConfig) -> bool:
        return all(getattr(mesh, axis) in (-1, getattr(found, axis)) for axis in named)

    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    possible = (
        MeshConfig(data, fsdp, devices // (data * fsdp))
        for data in divisors
        for fsdp in divisors
        if devices % (data * fsdp) == 0 and rows % (data * fsdp) == 0 and hidden % (devices // data) == 0
    )
    return min(filter(keeps_named, possible), key=far, default=None)


def fit_config(config: Config, devices: int, named: Collection[str] = ()) -> MeshConfig | None:
    """`fit` for a run of this config."""
    if config.batch_size % config.grad_accumulation != 0:
        return None
    rows = config.batch_size // config.grad_accumulation
    return fit(config.mesh, devices, config.model.hidden, rows, named)


class Fitted(NamedTuple):
    """A mesh of the devices at hand."""

    mesh: Mesh
    change: str | None  # in a line, what is not as it was asked for


def fitted(config: Config, named: Collection[str] = (), devices: Sequence[jax.Device] | None = None) -> Fitted:  # pyright: ignore[reportInvalidTypeForm]
    """The mesh of `fit` on all devices, or where there is none, on as many as there is one for.

    Where axes are `named`, on all devices or none. Raises UserError where no mesh will do.
    """
    devices = jax.devices() if devices is None else devices
    for some in _shares(devices):
        if found := fit_config(config, len(some), named):
            change = _change(config, found, len(devices))
            return Fitted(make(replace(config, mesh=found), some), change)
        if named:
            break
    mesh = make(config, devices)  # says what is wrong; where that are the units:
    require_units(config.model.hidden, mesh)
    return Fitted(mesh, None)


def _shares(devices) -> Iterator[list]:
    """All devices, then ever fewer, as many of every process: one that has none could not take part."""
    own = defaultdict(list)
    for device in devices:
        own[device.process_index].append(device)
    for most in range(max(map(len, own.values())), 0, -1):
        yield [device for device in devices if device in own[device.process_index][:most]]


def _change(config: Config, found: MeshConfig, devices: int) -> str | None:
    """What is not as it was asked for, in a line."""
    used = math.prod(astuple(found))
    if used == devices and all(
        asked in (-1, size) for asked, size in zip(astuple(config.mesh), astuple(found), strict=True)
    ):
        return None
    sizes = lambda mesh: " x ".join(map(str, astuple(mesh)))
    count = f"{devices} device{'s' * (devices > 1)}" if used == devices else f"{used} of {devices} devices"
    why = f"; {config.batch_size} rows and {config.model.hidden} units have no equal parts on all" * (used < devices)
    return f"the mesh {sizes(config.mesh)} (data, fsdp, model) is fitted to {count}: {sizes(found)}{why}"


def shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each axis; -1 is what is left. Raises UserError where they do not use all devices."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size > 0)
    axes = " x ".join(map(str, sizes.values()))
    if devices % known != 0 or (-1 not in sizes.values() and known != devices):
        raise UserError(
            f"a mesh of {axes} (data, fsdp, model) does not fit {devices} device{'s' * (devices > 1)}; change "
            "`mesh.data`, "
            "`mesh.fsdp` or `mesh.model`, one of which may be -1, what is left"
        )
    return {axis: devices // known if size == -1 else size for axis, size in sizes.items()}


def make(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The mesh of all devices, or of the ones given.

    Raises UserError where the rows cannot be spread over it in equal parts.
    """
    devices = jax.devices() if devices is None else devices
    sizes = shape(config.mesh, len(devices))
    spread = sizes["data"] * sizes["fsdp"]
    groups = f" in {config.grad_accumulation} groups" if config.grad_accumulation > 1 else ""
    if config.batch_size % (spread * config.grad_accumulation) != 0:
        raise UserError(
            f"{config.batch_size} rows{groups} cannot be spread over {spread} devices in equal parts; change "
            "`batch_size`, `grad_accumulation`, `mesh` or the number of devices"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(AxisType.Auto,) * len(sizes))


def one_device() -> Mesh:
    """The mesh of a program that uses one device."""
    return make(Config(), jax.local_devices()[:1])


def require_units(hidden: int, mesh: Mesh) -> None:
    """Raise UserError where the units cannot be spread over the mesh in equal parts."""
    width = mesh.shape["model"] * mesh.shape["fsdp"]
    if hidden % width != 0:
        raise UserError(
            f"{hidden} units cannot be spread over {width} devices in equal parts (mesh axes fsdp and model); "
            "change `model.hidden` or `mesh`"
        )


def named(mesh: Mesh, specs):
    """A tree of PartitionSpecs as shardings on the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda s: isinstance(s, P))


def split(weights: Weights, mesh: Mesh) -> Weights:
    """Cut the units of x, [vocab, 4 * hidden], into the parts of `model`: [vocab, 4, parts, hidden / parts]."""
    x = jax.lax.with_sharding_constraint(weights.x, NamedSharding(mesh, P()))
    return weights._replace(x=x.reshape(len(x), 4, mesh.shape["model"], -1))


def join(slopes: Weights, mesh: Mesh) -> Weights:
    """Inverse of `split`."""
    x = jax.lax.with_sharding_constraint(slopes.x, NamedSharding(mesh, P()))
    return slopes._replace(x=x.reshape(len(x), -1))


# What one device does inside jax.shard_map, where it sees its own part of every array. All collectives but those of
# the time loop are here.


def unit_axis(mesh: Mesh) -> str | None:
    """The axis over which the units are spread, for `cell.cell`; None where every device has them all."""
    return "model" if mesh.shape["model"] > 1 else None


def gather(own: Weights, precision: str, mesh: Mesh) -> Weights:
    """A device's part of `WEIGHTS` -> what its time loop needs: all of fsdp's rows, and the columns of its own units.

    The matrices travel in `precision`.
    """
    parts = mesh.shape["model"]

    def along_fsdp(w, axis=0) -> Array:
        return jax.lax.all_gather(w, "fsdp", axis=axis, tiled=True) if mesh.shape["fsdp"] > 1 else w

    wmh, wh, out = (along_fsdp(w.astype(precision)) for w in (own.wmh, own.wh, own.out))
    if parts > 1:  # from this part's rows of all columns to all rows of its columns
        wh = wh.reshape(len(wh), 4, parts, -1)
        wh = jax.lax.all_to_all(wh, "model", split_axis=2, concat_axis=0, tiled=True)
        wh = wh.reshape(len(wh), -1)
    return Weights(own.x.reshape(len(own.x), -1), along_fsdp(own.mx, 1), wmh, wh, out, own.out_b)


def reduce(slopes: Weights, mesh: Mesh) -> Weights:
    """The mean over all rows of what `gather`ed weights had as gradients, in the places of `WEIGHTS`; float32."""
    fsdp, parts, wh = mesh.shape["fsdp"], mesh.shape["model"], cast(Array, slopes.wh)
    x, out_b = slopes.x.reshape(len(slopes.x), 4, 1, -1), slopes.out_b
    if parts > 1:
        wh = wh.reshape(len(wh), 4, 1, -1)
        wh = jax.lax.all_to_all(wh, "model", split_axis=0, concat_axis=2, tiled=True)
        wh = wh.reshape(len(wh), -1)

    def over_fsdp(w, axis=0):
        return jax.lax.psum_scatter(w, "fsdp", scatter_dimension=axis, tiled=True) if fsdp > 1 else w

    x, out_b = jax.lax.psum((x, out_b), "fsdp") if fsdp > 1 else (x, out_b)
    mx, wmh, wh, out = over_fsdp(slopes.mx, 1), over_fsdp(slopes.wmh), over_fsdp(wh), over_fsdp(slopes.out)
    own = Weights(x, mx, wmh, wh, out, out_b)
    own = jax.lax.psum(own, "data") if mesh.shape["data"] > 1 else own
    return jax.tree.map(lambda w: w / (mesh.shape["data"] * fsdp), own)


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "own"]:
    """The numbers of the rows that this process's devices train on."""
    sharding = NamedSharding(mesh, P(BATCH))
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place(
    rows: Shaped[np.ndarray, "own ..."], own: Int[np.ndarray, "own"], mesh: Mesh, batch_size: int
) -> Shaped[Array, "batch ..."]:
    """An array over all processes' rows from this process's rows of it."""

    def part(index):
        first = index[0].start or 0
        stop = batch_size if index[0].stop is None else index[0].stop
        begin = int(np.searchsorted(own, first))
        return rows[begin : begin + stop - first]

    return jax.make_array_from_callback((batch_size, *rows.shape[1:]), NamedSharding(mesh, P(BATCH)), part)


def spread_tree(tree, shardings):
    """Arrays that every process has, each in its place."""
    put = lambda a, sharding: jax.make_array_from_callback(a.shape, sharding, lambda index: np.asarray(a[index]))
    return jax.tree.map(put, tree, shardings)


def spread_rows(rows: Shaped[np.ndarray, "rows ..."], mesh: Mesh) -> Shaped[Array, "filled ..."]:
    """Rows that every process has, filled up with zeros to equal parts, each on its devices."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    filled = np.concatenate([rows, np.zeros((-len(rows) % parts, *rows.shape[1:]), rows.dtype)])
    return spread_tree(filled, NamedSharding(mesh, P(BATCH)))
