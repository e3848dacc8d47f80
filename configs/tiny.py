"""Seconds on one core, for tests and for trying things out: 16 units.

mlstm train --config tiny --data my_reviews.txt
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=16, embed=8),
    batch_size=4,
    seq_length=16,
    updates=20,
    learning_rate=5e-3,
    validation_fraction=0.1,
    log_every=5,
    eval_every=10,
    eval_bytes=2000,
    eval_batch_size=4,
    sample_every=10,
    save_every=10,
)
