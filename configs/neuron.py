"""A sentiment neuron in two and a half hours on one CPU core with AMX: 512 units, 139 MB of openings read.

    mlstm corpus openings.jsonl --out data/openings --shards 6 --distinct
    mlstm train --config neuron

An opening is a review's title and first sentences, at most 240 bytes: what a reviewer says first is what he thinks.
docs/results.md says which reviews these were, what became of it, and that `--optimizer muon` and
`--decay-fraction 0.2` reach the same bits per byte in less time.
"""

from mlstm_jax.config import Config, ModelConfig

config = Config(
    model=ModelConfig(hidden=512),
    data="data/openings",
    batch_size=64,
    seq_length=128,
    updates=17_000,
    learning_rate=3e-3,
    precision="bfloat16",
    log_every=20,
    eval_every=1000,
    eval_bytes=500_000,
    eval_batch_size=64,
    sample_every=4000,
    save_every=200,
    keep=100,
)
