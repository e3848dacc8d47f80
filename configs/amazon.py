"""The paper's recipe (Radford et al. 2017, section 3): 4096 units, one pass over 82 million Amazon reviews.

    mlstm corpus aggressive_dedup.json.gz --out data/amazon --shards 1000
    mlstm train --config amazon

Expect 1.12 bits per byte on the test bytes and 91.8 % on SST. One pass over 38.8e9 bytes is 1,184,000 updates and
2.0e19 floating-point operations: the paper took a month on four GPUs of 2016; at 40 % of its bfloat16 rate one H100
would take about 14 hours.

What is ours: the norm of the gradient is clipped at 1 (`--clip-norm 0` is the paper).
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=4096, embed=64),
    data="data/amazon",  # its own 1000 shards, validation and test count
    batch_size=128,
    seq_length=256,
    epochs=1.0,
    learning_rate=5e-4,
    clip_norm=1.0,
    log_every=100,
    eval_every=5000,
    eval_bytes=4_000_000,
    eval_batch_size=128,
    sample_every=10_000,
    save_every=2000,
)
