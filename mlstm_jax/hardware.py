"""What accelerators can do: peak rate, memory, bandwidth, as their makers publish them."""

from pathlib import Path
from typing import NamedTuple

import jax

from mlstm_jax.config import ModelConfig, Precision


class Chip(NamedTuple):
    """A device of one kind, as jax names it."""

    kind: str
    flops: float  # bfloat16 matrix products a second, without sparsity
    memory: float  # bytes
    bandwidth: float  # bytes a second from memory
    link: float  # bytes a second to other chips, one way


# TPUs: the pages of Cloud TPU's versions. GPUs: NVIDIA's data sheets (A100 80GB SXM, H100 SXM, H200 SXM, an eighth of a
# DGX B200), dense bfloat16 rates; a link is half of NVLink's rate, which counts both ways.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 150e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 100e9),
    "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 300e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 224e9),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9),
    "b200": Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 900e9),
}


def chip_of(kind: str) -> Chip | None:
    """The chip that jax calls by this `device_kind`; None for one that is not in the table."""
    return next((chip for chip in CHIPS.values() if chip.kind == kind), None)


def parameters(model: ModelConfig) -> int:
    """Numbers in all parameters: the matrices, the gains of weight norm, the biases."""
    hidden, embed = model.hidden, model.embed
    return 5 * hidden**2 + 5 * embed * hidden + 256 * (embed + hidden + 1) + 14 * hidden


def flops_per_byte(model: ModelConfig) -> int:
    """Floating-point operations of training on one byte: 6 for each number in a product, forward and backward.

    wmh, wh and the read-out; the input products are tables of 256 rows, and do not count.
    """
    return 6 * (5 * model.hidden**2 + 256 * model.hidden)


def default_precision() -> Precision:
    """bfloat16 matrix products on GPU and TPU; float32 on CPU, so that results do not depend on its generation."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for bfloat16 products (AMX or AVX512-BF16), which take about half the time."""
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags
