"""Descriptions of devices that are not attached, for the compiler."""

import os

from mlstm_jax.errors import UserError
from mlstm_jax.hardware import CHIPS

# Hardware that is not there


def _devices(topology: str, name: str):
    """The devices of a topology, as the compiler knows them. Call it before anything else of jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        return _gpus(topology, name) if name in GPUS else _tpus(topology)
    except UserError:
        raise
    except Exception as error:  # jax and its plugins raise many kinds
        line = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"`plan` {topology}: it cannot be compiled for here: {line}") from None


def _tpus(topology: str):
    sizes = [int(size) for size in topology.lower().partition(":")[2].split("x") if size.isdecimal()]
    if not sizes:
        raise UserError(f"`plan` {topology}: name the topology too, as {topology.partition(':')[0]}:2x4")
    # Environment variables from which libtpu reads the machine that it is on.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks hardware that is not here
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise UserError(f"`plan` {topology} takes libtpu, on Linux: pip install 'mlstm-jax[tpu]'") from None
    from jax.experimental import topologies

    # A host has 2 x 2 chips; a smaller topology is one host, which older versions of libtpu must be given.
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


def _gpus(topology: str, name: str):
    if topology.lower() != name:
        raise UserError(f"`plan` {topology}: one GPU is planned for, as {name}")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    try:
        import jax_plugins.xla_cuda13  # noqa: F401  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise UserError(f"`plan` {topology} takes jax's CUDA plugin, on Linux: pip install 'mlstm-jax[cuda]'") from None
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
