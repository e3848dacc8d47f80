"""Hardware that is not attached: what its name says, and its devices as the compiler knows them."""

import math
import os
import re
from typing import NamedTuple

from mlstm_jax.errors import UserError
from mlstm_jax.hardware import CHIPS, Chip


class Hardware(NamedTuple):
    """What a plan is for."""

    name: str  # of the chip, as in CHIPS
    bounds: tuple[int, ...]  # of a TPU slice; of GPUs how many

    @property
    def chip(self) -> Chip:
        """The figures of one of its devices."""
        return CHIPS[self.name]

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.bounds)


def parse(hardware: str) -> Hardware:
    """What is meant by h200, h200:8, v5e:4x8 (a slice by its topology) or v5litepod-32 (by its accelerator type).

    Raises UserError for what is not known.
    """
    name, sign, size = re.fullmatch("([^-:]*)([-:]?)(.*)", hardware.lower(), re.S).groups()  # pyright: ignore[reportOptionalMemberAccess] (it matches anything)
    name = "v5e" if name == "v5litepod" else name
    if name not in CHIPS:
        raise UserError(f"`plan` {hardware}: no hardware {name!r}; there are {', '.join(CHIPS)}, and all, for a table")
    if name in GPUS:
        if not re.fullmatch("|:[1-8]", sign + size):
            raise UserError(f"`plan` {hardware}: a box has 1 to 8 GPUs; name them as {name}:8")
        return Hardware(name, (int(size or 1),))
    if sign == ":" and re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", size):
        return Hardware(name, tuple(map(int, size.split("x"))))
    cores = 2 if name in ("v4", "v5p") else 1  # what the number of an accelerator type counts
    chips = int(size) // cores if sign == "-" and size.isdecimal() else 0
    if chips.bit_count() != 1:
        raise UserError(
            f"`plan` {hardware}: name the topology too, as {name}:2x4, or the accelerator type, as {name}-8"
        )
    return Hardware(name, _bounds(chips, axes=cores + 1))


def _bounds(chips: int, axes: int) -> tuple[int, ...]:
    """The topology of a slice of so many chips, a power of two: as near to a square or a cube as can be."""
    each, more = divmod(chips.bit_length() - 1, axes)
    sizes = [2 ** (each + (axis >= axes - more)) for axis in range(axes)]
    return tuple(sorted(sizes, key=lambda size: (size == 1, size)))


def compilable(hardware: Hardware):
    """Its devices, as the compiler knows them. Call it before anything else of jax.

    Raises UserError where it cannot be compiled for here.
    """
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        # From these libtpu reads the machine that it is on. It looks for it even where GPUs are planned for.
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks hardware that is not here
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    try:
        return _gpus(hardware) if hardware.name in GPUS else _tpus(hardware)
    except ImportError:
        if hardware.name in GPUS:
            raise UserError(
                "`plan` for a GPU takes jax's CUDA plugin, on Linux: pip install 'mlstm-jax[cuda]'"
            ) from None
        raise UserError("`plan` for a TPU takes libtpu, on Linux: pip install 'mlstm-jax[tpu]'") from None
    except Exception as error:  # jax and its plugins raise many kinds
        line = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"`plan` {hardware.name}: it cannot be compiled for here: {line}") from None


def _tpus(hardware: Hardware):
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports] (an extra)
    from jax.experimental import topologies

    # A host has 2 x 2 chips; a smaller topology is one host, which older versions of libtpu must be given.
    host = [min(size, most) for size, most in zip([*hardware.bounds, 1, 1], (2, 2, 1), strict=False)]
    name = f"{hardware.name}:{'x'.join(map(str, hardware.bounds))}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, chips_per_host_bounds=host).devices


GPUS = {
    # compute capability, multiprocessors, units of arithmetic in each, shared memory of a block and of each, L2, clock
    "a100": ((8, 0), 108, 64, 166912, 167936, 41943040, 1.41),
    "h100": ((9, 0), 132, 128, 232448, 233472, 52428800, 1.98),
    "h200": ((9, 0), 132, 128, 232448, 233472, 62914560, 1.98),
    "b200": ((10, 0), 148, 128, 232448, 233472, 132644864, 1.965),
}


def _gpus(hardware: Hardware):
    import jax
    import jax_plugins.xla_cuda13  # noqa: F401  # pyright: ignore[reportMissingImports] (an extra)
    from jax.experimental import topologies

    jax.devices()  # finds the plugin

    chip, ((major, minor), cores, units, block, shared, l2, clock) = hardware.chip, GPUS[hardware.name]
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
    return topologies.get_topology_desc(  # partitions, hosts of each, devices of each
        platform="cuda", topology_name=hardware.name, target_config=target, topology=f"1 x 1 x {hardware.devices}"
    ).devices
