"""Convert weights from one format to another."""

from pathlib import Path

from mlstm_jax.text import say
from mlstm_jax.weights.formats import Format


def main(source: Path, target: Path, /, format: Format = "safetensors") -> None:
    """Convert weights: any format that is known here into a new folder of another.

    Args:
        source: A run folder, or another program's weights.
        target: The folder to write.
        format: "safetensors" comes with config.json and a model card; "openai" is the paper release's 0.npy ... 14.npy,
            "seed" the TensorFlow reproduction's model.npy.
    """
    from mlstm_jax.inference import language_model  # as a program this stands above what it imports

    language_model.load(source).save(target, format)
    say(f"wrote {target}")
