"""Numbers made by the original programs, on small random weights and real text; ours must agree."""

import json

import jax
import numpy as np
import pytest

import mlstm_jax
from mlstm_jax.training import updates
from mlstm_jax.weights import formats


def test_features_agree_with_the_papers_release(golden):
    model = mlstm_jax.load(golden / "openai" / "model")
    texts = json.loads((golden / "openai" / "texts.json").read_text())
    assert np.abs(model.encode(texts) - np.load(golden / "openai" / "features.npy")).max() < 1e-5


def test_cell_states_after_every_byte_agree_with_the_papers_release(golden):
    model = mlstm_jax.load(golden / "openai" / "model")
    texts = json.loads((golden / "openai" / "cells_texts.json").read_text())
    for text, expected in zip(texts, np.load(golden / "openai" / "cells.npy"), strict=True):
        trace = model.trace(text)[-len(expected) :]  # the reference is right-aligned in a window of 64
        assert np.abs(trace - expected[len(expected) - len(trace) :]).max() < 1e-5


@pytest.mark.parametrize("unit, value", [(None, None), (7, 1.0), (7, -1.5), (21, 3.0)])
def test_next_byte_distributions_agree_with_the_reproduction(golden, unit, value):
    model = mlstm_jax.load(golden / "seed" / "model.npy")
    data = (golden / "seed" / "bytes.bin").read_bytes()
    prime, fed = data[:7], data[7:]
    logits, state = model.read(prime)
    clamped, _ = model.read(fed, state, clamp=None if unit is None else {unit: value})
    ours = jax.nn.softmax(np.concatenate([logits[-1:], clamped]))
    expected = np.load(golden / "seed" / f"next_byte_probs_{str(unit).lower()}_{str(value).lower()}.npy")
    assert np.abs(ours - expected).max() < 1e-5


def test_training_losses_agree_with_the_reproduction(golden):
    batch_size, seq_length, rate = 8, 32, 5e-4
    shard = np.frombuffer((golden / "train" / "input.txt").read_bytes(), np.uint8)
    shard = shard[: len(shard) // (batch_size * seq_length) * batch_size * seq_length]
    targets = np.roll(shard, -1)  # that program takes the shard's first byte as the last target
    inputs, targets = shard.reshape(batch_size, -1), targets.reshape(batch_size, -1)
    steps = int(38.8e9 / (seq_length * batch_size))

    state = updates.init_state(formats.read(golden / "seed" / "model.npy"), batch_size)
    step = jax.jit(
        lambda state, batch, rate: updates.train_step(state, batch, False, rate, clip_norm=0.0, precision="float32")
    )
    losses = []
    for k in range(40):
        columns = slice(k * seq_length, (k + 1) * seq_length)
        batch = np.concatenate([inputs[:, columns], targets[:, columns][:, -1:]], axis=1)
        assert (batch[:, 1:] == targets[:, columns]).all()
        state, metrics = step(state, batch, np.float32(updates.learning_rate(rate, k, 0, steps)))
        losses.append(float(metrics["bits_per_byte"]) * updates.LOG2)
    assert np.abs(np.array(losses) - np.load(golden / "train" / "losses.npy")).max() < 5e-4
