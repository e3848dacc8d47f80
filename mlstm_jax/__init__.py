"""The sentiment neuron in JAX: a byte-level mLSTM, its unit that carries sentiment, reviews with that unit held."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlstm_jax.inference.language_model import LanguageModel, load

__all__ = ["LanguageModel", "__version__", "load"]
__version__: str

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the programs, or a user, decide what is shown


def __getattr__(name: str) -> Any:  # late, because jax takes a second to import
    if name == "__version__":
        from importlib.metadata import version

        return version("mlstm-jax")
    if name in __all__:
        from mlstm_jax.inference import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
