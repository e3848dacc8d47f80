"""An hour or more on two CPU cores: 512 units on the packaged IMDB reviews.

mlstm train --config reviews
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=512),
    data="movie-reviews",
    batch_size=64,
    seq_length=128,
    updates=5000,
    learning_rate=3e-3,
    log_every=50,
    eval_every=500,
    eval_bytes=500_000,
    sample_every=1000,
    save_every=500,
)
