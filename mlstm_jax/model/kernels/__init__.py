"""The time loops of an update as kernels of our own, in Pallas, for hardware that has them.

`recurrence.forward_loop` and `backward_loop` are the plain version: what these must agree with, and what is used where
they cannot be.
"""

from jax.sharding import Mesh

from mlstm_jax.config import Config
from mlstm_jax.model.unroll import Loops


def choose(config: Config, mesh: Mesh, precision: str) -> tuple[Loops | None, str | None]:
    """The loops that --recurrence asks for, None for the plain ones; and why these, where it asks for others."""
    if config.recurrence == "plain":
        return None, None
    device, lanes = mesh.devices.flat[0], config.lanes // config.lane_groups
    lanes //= mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["model"] > 1:
        return None, "its kernels do not spread units over devices (--mesh.model)"
    if config.segment:
        return None, "its kernels keep what --segment computes again"
    if device.platform == "tpu":
        from mlstm_jax.model.kernels import tpu as kernels

        reason = kernels.reason_against(config.model.hidden, lanes, 2 if precision == "bfloat16" else 4)
    elif device.platform in ("gpu", "cuda") and "NVIDIA" in device.device_kind:
        from mlstm_jax.model.kernels import gpu as kernels

        reason = kernels.reason_against(config.model.hidden, lanes)
    else:
        return None, f"there are no kernels for {device.device_kind}"
    return (None, reason) if reason else (kernels.loops(), None)
