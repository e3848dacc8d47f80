"""The time loops of an update as Pallas kernels, for the hardware that runs them.

`unroll.forward_loop` and `backward_loop` are the plain version: what these must agree with, and what is used where
they cannot be.
"""

from jax.sharding import Mesh

from mlstm_jax.config import Config
from mlstm_jax.model.unroll import Loops


def choose(config: Config, mesh: Mesh, precision: str) -> tuple[Loops | None, str | None]:
    """The loops that `kernels` asks for, None for the plain ones; and why these, where it asks for others."""
    if config.kernels == "xla":
        return None, None
    device, batch_size = mesh.devices.flat[0], config.batch_size // config.grad_accumulation
    batch_size //= mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["model"] > 1:
        return None, "its kernels do not spread units over devices (`mesh.model`)"
    if config.remat_every:
        return None, "its kernels keep what `remat_every` computes again"
    if device.platform == "tpu":
        from mlstm_jax.model.kernels import tpu as kernels

        reason = kernels.reason_against(config.model.hidden, batch_size, 2 if precision == "bfloat16" else 4)
    elif device.platform in ("gpu", "cuda") and "NVIDIA" in device.device_kind:
        from mlstm_jax.model.kernels import gpu as kernels

        reason = kernels.reason_against(config.model.hidden, batch_size)
    else:
        return None, f"there are no kernels for {device.device_kind}"
    return (None, reason) if reason else (kernels.loops(), None)
