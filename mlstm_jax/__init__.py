"""The sentiment neuron in JAX: train a byte-level mLSTM on reviews, find the unit that carries sentiment, write with it held."""

__all__ = ["LanguageModel", "load"]


def __getattr__(name):
    if name in __all__:
        from mlstm_jax import lm

        return getattr(lm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
