"""The kernels do what the plain loops do: interpreted, on this device. What they are compiled to: test_compiled.py."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.programs import TINY
from mlstm_jax.cli import train
from mlstm_jax.config import Config, ModelConfig
from mlstm_jax.model import kernels, parameters
from mlstm_jax.model.kernels import gpu, tpu
from mlstm_jax.model.unroll import unroll
from mlstm_jax.run import Run
from mlstm_jax.training import sharding, updates

KERNELS = pytest.mark.parametrize("loops", [gpu.loops(interpret=True), tpu.loops(interpret=True)], ids=["gpu", "tpu"])
HIDDEN = 128


@pytest.fixture(scope="module")
def weights():
    return parameters.prepare(parameters.init(ModelConfig(hidden=HIDDEN, embed=8), seed=0))


def gradient(weights, batch_size, time, precision, loops):
    """A number that depends on all that a batch gives, and its gradients by the weights and the state before it."""
    draw = np.random.default_rng(time)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    data = jnp.asarray(draw.integers(256, size=(batch_size, time)), jnp.uint8)
    of_hs, of_c, of_h = normal(time, batch_size, HIDDEN), normal(batch_size, HIDDEN), normal(batch_size, HIDDEN)

    def number(weights, state):
        hs, (c, h) = unroll(weights, data, state, precision, loops=loops)
        return (hs * of_hs).sum() + (c * of_c).sum() + (h * of_h).sum()

    state = normal(batch_size, HIDDEN) / 3, normal(batch_size, HIDDEN) / 3
    return jax.jit(jax.value_and_grad(number, argnums=(0, 1)))(weights, state)


def furthest(found, expected):
    """The largest difference in any array, as a part of that array's largest number."""
    apart = lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-30))
    return max(jax.tree.leaves(jax.tree.map(apart, found, expected)))


@KERNELS
@pytest.mark.parametrize("batch_size, time", [(16, 1), (48, 5), (256, 2)])
def test_results_and_gradients_are_those_of_the_plain_loops(weights, loops, batch_size, time):
    found, expected = (gradient(weights, batch_size, time, "float32", which) for which in (loops, None))
    assert furthest(found, expected) < 1e-5


@KERNELS
def test_in_bfloat16_they_round_where_the_plain_loops_round(weights, loops):
    found, expected = (gradient(weights, 16, 4, "bfloat16", which) for which in (loops, None))
    assert furthest(found, expected) < 1e-2
    assert furthest(found, gradient(weights, 16, 4, "float32", None)) > 1e-4, "it is another precision"


@KERNELS
def test_an_update_is_that_of_the_plain_loops(monkeypatch, loops):
    config = Config(
        model=ModelConfig(hidden=HIDDEN, embed=8), batch_size=32, seq_length=3, grad_accumulation=2, kernels="pallas"
    )
    batch = np.random.default_rng(0).integers(256, size=(32, 4), dtype=np.uint8)
    mesh = sharding.one_device()
    update = lambda config: updates.jitted(config, "float32", mesh)(updates.new_state(config), batch, True, 1e-3)
    expected = update(replace(config, kernels="xla"))
    monkeypatch.setattr(kernels, "choose", lambda config, *_: (loops, None))
    found = update(config)
    assert furthest(found[0].carry, expected[0].carry) < 1e-5
    assert furthest(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize(
    "reason, says",
    [
        (gpu.reason_against(4096, 128), None),
        (gpu.reason_against(100, 128), "units in steps of 64 and rows in steps of 16, not 100 and 128"),
        (gpu.reason_against(4096, 8), "not 4096 and 8"),
        (tpu.reason_against(2048, 128), None),
        (tpu.reason_against(2048, 1024), None),
        (tpu.reason_against(1024, 128, itemsize=4), None),
        (tpu.reason_against(64, 128), "units in steps of 128"),
        (tpu.reason_against(4096, 128), "4096 units take [0-9]+ MiB of a TPU's VMEM, of 120"),
    ],
)
def test_sizes_that_the_kernels_cannot_do_have_a_reason(reason, says):
    assert reason is None if says is None else re.search(says, reason)


def test_the_plain_loops_are_taken_where_there_are_no_kernels_and_that_is_said(reviews, tmp_path, capsys):
    mesh = sharding.one_device()
    assert kernels.choose(Config(), mesh, "float32") == (None, None)
    assert kernels.choose(Config(kernels="pallas", remat_every=64), mesh, "float32")[1].endswith("computes again")
    settings = ["--config", TINY, "--data", str(reviews), "--updates", "2", "--sample-every", "0"]
    bits = []
    for name in ("xla", "pallas"):
        run = tmp_path / name
        assert train.run([*settings, "--run-dir", str(run), "--kernels", name]) == 0
        bits.append([row.get("bits_per_byte") for row in Run(run).read_metrics()])
        assert ("the plain ones instead of pallas: there are no kernels for cpu" in capsys.readouterr().out) == (
            name == "pallas"
        )
    assert bits[0] == bits[1]
