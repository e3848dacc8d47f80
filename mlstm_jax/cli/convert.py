"""Convert weights from one format to another: `mlstm convert WEIGHTS OUT [--format openai|seed|safetensors]`."""

from pathlib import Path
from typing import Literal

import tyro

from mlstm_jax.cli.program import log


def main(
    source: Path,
    target: Path,
    /,
    format: Literal["safetensors", "openai", "seed"] = "safetensors",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Convert weights: any format that is known here into a new folder of another.

    Args:
        source: A run folder, or another program's weights.
        target: The folder to write.
        format: "safetensors" comes with config.json and a model card; "openai" is the paper release's 0.npy ... 14.npy,
            "seed" the TensorFlow reproduction's model.npy.
        dtype: bfloat16 halves a safetensors file. The rounded weights are other weights: find their unit anew.
    """
    from mlstm_jax.inference import language_model  # late, because it imports jax: --help stays quick

    language_model.load(source).save(target, format, dtype)
    log(f"wrote {target}")


def run(args: list[str]) -> None:
    """`mlstm convert` with these arguments."""
    tyro.cli(main, prog="mlstm convert", args=args)
