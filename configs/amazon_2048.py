"""The paper's model on eight devices and more: a batch of 2048, after Puri et al. 2018 (arXiv 1808.01371).

    mlstm corpus aggressive_dedup.json.gz --out data/amazon --shards 1000
    mlstm train --config amazon_2048
    mlstm train --config amazon_2048 --plan v5e:4x4

Their rule: the learning rate grows with the batch size, 5e-4 for 128, but not beyond 3e-3, and falls to zero over
100,000 updates for a batch of 2048 or more: 52e9 bytes, 1.35 passes. They published 1.125 bits per byte for this size
after one pass. With fewer than 32 devices each has 64 rows or more, as the recurrence wants it.
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=4096, embed=64),
    data="data/amazon",
    batch_size=2048,
    seq_length=256,
    updates=100_000,
    learning_rate=3e-3,
    clip_norm=1.0,
    log_every=20,
    eval_every=1000,
    eval_bytes=4_000_000,
    eval_batch_size=128,
    sample_every=2000,
    save_every=500,
)
