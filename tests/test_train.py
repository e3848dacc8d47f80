"""train.py through its real entry point, shrunk: a run, its checkpoints, everything that can go wrong with them."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlstm_jax
from helpers.programs import ROOT, TINY, interrupting
from mlstm_jax import config as configs
from mlstm_jax.cli import evaluate, sample, train, train_loop
from mlstm_jax.cli.arguments import stored_config
from mlstm_jax.cli.program import explain
from mlstm_jax.config import Config, ModelConfig, to_dict
from mlstm_jax.corpus import batches
from mlstm_jax.corpus.build import build
from mlstm_jax.disk import locked
from mlstm_jax.errors import UserError
from mlstm_jax.model import parameters
from mlstm_jax.run import Run
from mlstm_jax.training import checkpoint, sharding, updates, validation

SST = Path(__file__).parent / "data" / "sst"


def arguments(reviews, run_dir, *more):
    return ["--config", TINY, "--data", str(reviews), "--run-dir", str(run_dir), *more]


@pytest.fixture(scope="module")
def finished(reviews, tmp_path_factory):
    """A run of 20 updates, never interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train.run(arguments(reviews, run_dir)) == 0
    return run_dir


def interrupt_at(monkeypatch, position, number):
    """Send this process a signal when training takes batch `position`."""
    monkeypatch.setattr(batches, "stream", interrupting(batches.stream, position, number))


def state_of(run_dir):
    state, meta = checkpoint.restore(Run(run_dir), log=print)
    return state, meta._replace(config=None)


def assert_same_run(a, b):
    (state_a, meta_a), (state_b, meta_b) = state_of(a), state_of(b)
    assert meta_a == meta_b
    for x, y in zip(jax.tree.leaves(state_a), jax.tree.leaves(state_b), strict=True):
        np.testing.assert_array_equal(x, y)


def flip_a_byte(step_dir, part="params"):
    """Change one bit in the middle of the largest file of a checkpoint's part."""
    largest = max((p for p in (step_dir / part).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_run_leaves_its_records_and_says_what_to_try_next(finished, capsys):
    metrics = Run(finished).read_metrics()
    trained = [m for m in metrics if "bits_per_byte" in m]
    assert [m["update"] for m in trained] == [5, 10, 15, 20]
    assert {"gradient_norm", "learning_rate", "bytes_per_second", "elapsed", "skipped"} <= set(trained[0])
    assert trained[-1]["bits_per_byte"] < trained[0]["bits_per_byte"] < 8.5
    assert [m["update"] for m in metrics if "validation_bits_per_byte" in m] == [10, 20]
    assert "test_bits_per_byte" in metrics[-1]
    assert list((finished / "tensorboard").iterdir()) and (finished / "loss_curve.png").stat().st_size > 10_000
    assert train.run(["--run-dir", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "is finished (20 updates); --more-updates N" in said
    assert f"python eval_sst.py {finished}" in said and f"python sample.py {finished}" in said


def test_what_to_try_next_needs_no_network(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tried = f"python eval_sst.py {finished}"
    assert train.run(["--run-dir", str(finished)]) == 0
    assert f"{tried} --task rotten_tomatoes\n" in capsys.readouterr().out
    (tmp_path / "sst_binary" / "1.0.0").mkdir(parents=True)
    assert train.run(["--run-dir", str(finished)]) == 0
    assert f"{tried}\n" in capsys.readouterr().out


def test_held_out_figure_equals_the_models_own(finished, reviews):
    """The figure in the records is the mean over all targets, computed here in one row after another."""
    lm = mlstm_jax.load(finished)
    config = stored_config(Run(finished))
    part = build(config).validation[: config.eval_bytes]
    row = -(-(len(part) - 1) // config.eval_batch_size)
    pieces = [part[i * row : min((i + 1) * row + 1, len(part))].tobytes() for i in range(config.eval_batch_size)]
    bits = sum(lm.bits_per_byte(piece) * (len(piece) - 1) for piece in pieces if len(piece) > 1)
    assert lm.validation_bits_per_byte == pytest.approx(bits / (len(part) - 1), rel=1e-5)


def test_evaluation_and_sampling_work_on_a_run_however_small(finished, capsys):
    evaluate.main(finished, data=SST, json=True)
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["unit"] < 16 and 0 <= found["accuracy_all"] <= 1 and found["update"] == 20
    assert (finished / "units" / "sst.json").is_file() and (finished / "eval" / "sst" / "histogram.png").is_file()
    sample.main(
        finished, prime="I ", num=2, length=30, sentiment=1000.0, clamp=("3=1.5",) if found["unit"] != 3 else ()
    )
    texts = capsys.readouterr().out
    assert texts.count("I ") >= 2
    sample.main(finished, prime="I ", num=2, length=30, sentiment=-1000.0)
    assert capsys.readouterr().out != texts


@pytest.mark.parametrize(
    "number, status",
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),  # a terminal or an ssh connection that closes
        (signal.SIGUSR1, 138),  # a scheduler's warning before the time limit
        (signal.SIGUSR2, 140),
    ],
)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    number, status, finished, reviews, tmp_path, monkeypatch, capsys
):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, number)
        assert train.run(arguments(reviews, run_dir)) == status
    assert "stopped and saved after update 7 of 20" in capsys.readouterr().out
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert_same_run(run_dir, finished)
    scored = lambda run: [
        m for m in Run(run).read_metrics() if "validation_bits_per_byte" in m or "test_bits_per_byte" in m
    ]
    assert scored(run_dir) == scored(finished)
    updates = [m["update"] for m in Run(run_dir).read_metrics()]
    assert updates == sorted(updates)


def test_under_nohup_a_run_goes_on_when_its_terminal_closes(reviews, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            interrupt_at(patch, 6, signal.SIGHUP)
            assert train.run(arguments(reviews, tmp_path / "run")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert max(Run(tmp_path / "run").steps()) == 20


def test_a_run_whose_terminal_closes_is_saved_though_nothing_can_be_printed_any_more(reviews, tmp_path):
    own_terminal = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    own_terminal += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, ROOT / "train.py", *arguments(reviews, tmp_path / "run", "--updates", "100000")]
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", own_terminal, *map(str, command)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    while b"the first update took" not in shown:
        shown += os.read(keyboard, 1 << 16)
    os.close(keyboard)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert Run(tmp_path / "run").steps()


@pytest.mark.parametrize("part", ["params", "train", "meta"])
def test_a_flipped_byte_is_named_and_the_step_before_is_resumed(part, finished, reviews, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 14, signal.SIGTERM)
        train.run(arguments(reviews, run_dir))
    assert Run(run_dir).steps() and set(Run(run_dir).steps()) == {10, 15}
    flip_a_byte(run_dir / "checkpoints" / "15", part)
    capsys.readouterr()
    assert train.run(["--run-dir", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "checkpoint 15 is damaged" in said and "resuming" in said and "after update 10" in said
    assert (run_dir / "damaged" / "15").is_dir()
    assert_same_run(run_dir, finished)


def test_where_every_checkpoint_is_damaged_nothing_is_moved_or_overwritten(reviews, tmp_path):
    run_dir = tmp_path / "run"
    train.run(arguments(reviews, run_dir, "--updates", "10"))
    flip_a_byte(run_dir / "checkpoints" / "10")
    before = sorted((run_dir / "checkpoints").rglob("*"))
    with pytest.raises(UserError, match="no checkpoint of .* can be read: checkpoint 10 is damaged"):
        train.run(["--run-dir", str(run_dir), "--more-updates", "5"])
    assert sorted((run_dir / "checkpoints").rglob("*")) == before


def test_a_config_that_does_not_fit_the_run_is_refused_with_the_fields(finished, reviews):
    before = (finished / "config.json").read_text()
    with pytest.raises(UserError, match=r"batch_size \(4 -> 8\), model.hidden \(16 -> 32\) may not change"):
        train.run(["--run-dir", str(finished), "--batch-size", "8", "--model.hidden", "32"])
    with pytest.raises(UserError, match="updates"):
        train.run(arguments(reviews, finished, "--updates", "30"))
    assert (finished / "config.json").read_text() == before


def test_what_may_change_is_announced_and_kept(reviews, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, signal.SIGTERM)
        train.run(arguments(reviews, run_dir))
    assert train.run(["--run-dir", str(run_dir), "--save-every", "4", "--keep", "2"]) == 0
    assert "changed for this run from now on: save_every (10 -> 4), keep (3 -> 2)" in capsys.readouterr().out
    assert set(Run(run_dir).steps()) == {16, 20}
    assert stored_config(Run(run_dir)).save_every == 4


def test_a_run_whose_data_changed_is_refused(reviews, tmp_path):
    data, run_dir = tmp_path / "reviews.txt", tmp_path / "run"
    data.write_bytes(reviews.read_bytes())
    train.run(arguments(data, run_dir, "--updates", "5"))
    data.write_bytes(reviews.read_bytes() + b"\none more review")
    with pytest.raises(UserError, match="have changed"):
        train.run(["--run-dir", str(run_dir), "--more-updates", "5"])


def test_training_starts_from_another_programs_weights(golden, reviews, tmp_path, capsys):
    source = golden / "seed" / "model.npy"
    options = ("--init", str(source), "--updates", "1", "--learning-rate", "1e-30")
    assert train.run(arguments(reviews, tmp_path / "still", *options)) == 0
    assert f"starting from {source}: 48 units, embedding of 16, a fresh optimizer" in capsys.readouterr().out
    state, meta = checkpoint.restore(Run(tmp_path / "still"), log=print)
    before = mlstm_jax.load(source)
    assert checkpoint.digest(state.params) == before.digest == mlstm_jax.load(source).digest
    assert to_dict(meta.config)["model"] == {"hidden": 48, "embed": 16, "gain": None}
    part = build(stored_config(Run(tmp_path / "still"))).validation[:400].tobytes()
    assert mlstm_jax.load(tmp_path / "still").bits_per_byte(part) == before.bits_per_byte(part)


def test_a_run_from_other_weights_resumes_without_them(golden, reviews, tmp_path, monkeypatch, capsys):
    source = tmp_path / "model.npy"
    source.write_bytes((golden / "seed" / "model.npy").read_bytes())
    options = ("--init", str(source), "--updates", "20")
    assert train.run(arguments(reviews, tmp_path / "whole", *options)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, signal.SIGTERM)
        assert train.run(arguments(reviews, tmp_path / "run", *options)) == 143
    source.unlink()
    with pytest.raises(UserError, match="init .* may not change"):
        train.run(arguments(reviews, tmp_path / "run", *options, "--init", str(golden / "openai" / "model")))
    with pytest.raises(UserError, match="init .* may not change"):
        train.run(arguments(reviews, tmp_path / "run"))
    assert train.run(arguments(reviews, tmp_path / "run", *options)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    losses = [m["bits_per_byte"] for m in Run(tmp_path / "run").read_metrics() if "bits_per_byte" in m]
    assert losses[-1] < losses[0]
    mlstm_jax.load(tmp_path / "run").save(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text().replace("\\", "")  # that hide markup
    assert f"1,280 bytes, starting from {source} |" in card and "| updates | 20 |" in card


def test_training_from_a_run_of_our_own(finished, reviews, tmp_path):
    assert (
        train.run(
            arguments(reviews, tmp_path / "run", "--init", str(finished), "--updates", "20", "--learning-rate", "1e-30")
        )
        == 0
    )
    assert mlstm_jax.load(tmp_path / "run").digest == mlstm_jax.load(finished).digest


def test_fine_tuning_is_one_pass_and_says_so_and_what_the_weights_know(finished, reviews, tmp_path, capsys):
    options = ("--init", str(finished), "--learning-rate", "1e-30", "--batch-size", "64")
    assert train.run(arguments(reviews, tmp_path / "run", *options)) == 0
    said, config = capsys.readouterr().out, stored_config(Run(tmp_path / "run"))
    one_pass = int(said.split("one pass is ")[1].split(" ")[0].replace(",", ""))
    assert (config.updates, config.epochs) == (None, 1.0) and state_of(tmp_path / "run")[1].end == one_pass != 20
    assert f"passes over the data: 1, in {one_pass} updates" in said
    known = mlstm_jax.load(finished).validation_bits_per_byte
    assert f"before update 1: {known:.4f} validation bits per byte" in said.split("the first update took")[0]
    assert Run(tmp_path / "run").read_metrics()[0] == {"update": 0, "validation_bits_per_byte": pytest.approx(known)}
    assert train.run(["--run-dir", str(tmp_path / "run"), "--more-updates", "5"]) == 0
    said = capsys.readouterr().out
    assert "before update 1" not in said and "passes over the data" not in said


@pytest.mark.parametrize("size", ["--model.hidden=32", "--model.embed=9", "--model.gain=2"])
def test_a_size_that_contradicts_the_initial_weights_is_refused_in_one_line(
    size, finished, reviews, tmp_path, run_here
):
    options = ("--init", finished, "--updates", 1)
    ended = run_here("train.py", *arguments(reviews, tmp_path / "run", *options, size))
    assert ended.status == 2 and ended.err.count("\n") == 1 and not (tmp_path / "run" / "config.json").exists()
    assert f"{size.replace('=', ' ')}" in ended.err and "contradict --init, whose weights are 16 units" in ended.err


def test_a_size_that_agrees_with_the_initial_weights_is_accepted(finished, reviews, tmp_path):
    options = ("--init", str(finished), "--updates", "1", "--model.hidden", "16")
    assert train.run(arguments(reviews, tmp_path / "run", *options)) == 0
    with pytest.raises(UserError, match="model.hidden` 32 contradict"):
        train.run(["--run-dir", str(tmp_path / "run"), "--model.hidden", "32"])


def test_weights_that_training_cannot_start_from_are_one_clear_line(reviews, tmp_path):
    with pytest.raises(UserError, match="--init nowhere does not exist"):
        train.run(arguments(reviews, tmp_path / "run", "--init", "nowhere"))
    (tmp_path / "w.npy").write_bytes(b"\x93NUMPY and no more")
    with pytest.raises(UserError, match="w.npy cannot be read"):
        train.run(arguments(reviews, tmp_path / "run", "--init", str(tmp_path / "w.npy")))
    assert train.run(arguments(reviews, tmp_path / "run")) == 0  # nothing stands in the way of another try


def test_a_finished_run_trains_on_with_a_new_decay(reviews, tmp_path):
    run_dir = tmp_path / "run"
    train.run(arguments(reviews, run_dir, "--updates", "5"))
    assert train.run(["--run-dir", str(run_dir), "--more-updates", "5", "--log-every", "1"]) == 0
    rates = [m["learning_rate"] for m in Run(run_dir).read_metrics() if m["update"] > 5 and "learning_rate" in m]
    np.testing.assert_allclose(rates, [5e-3 * (1 - k / 5) for k in range(5)], rtol=1e-6)
    assert train.run(["--run-dir", str(run_dir)]) == 0  # finished again; more_updates is not kept


def test_a_run_that_is_not_finished_is_not_trained_on(reviews, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, signal.SIGTERM)
        train.run(arguments(reviews, run_dir))
    with pytest.raises(UserError, match="18 of its updates to do"):
        train.run(["--run-dir", str(run_dir), "--more-updates", "5"])


def test_a_run_that_blows_up_is_stopped_and_its_last_finite_state_kept(reviews, tmp_path, capsys):
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="ten updates in a row were not finite"):
        train.run(arguments(reviews, run_dir, "--learning-rate", "1e38"))
    assert "update 2 was not finite: skipped, 1 so far" in capsys.readouterr().out
    state, _ = state_of(run_dir)
    assert int(state.update) == 11 and int(state.skipped) == 10
    with pytest.raises(UserError, match="ten updates in a row"):
        train.run(["--run-dir", str(run_dir)])  # it does not run on for ever when it is resumed
    assert int(state_of(run_dir)[0].update) == 12
    state, _ = state_of(run_dir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


train_step = jax.jit(partial(updates.train_step, precision="float32", clip_norm=1.0), static_argnames="optimizer")


def test_an_update_that_is_not_finite_changes_nothing_but_the_counters():
    params = parameters.init(ModelConfig(hidden=8, embed=4), 0)
    state = updates.init_state(params, batch_size=2)
    state = state._replace(carry=tuple(jnp.full_like(s, jnp.nan) for s in state.carry))
    batch = jnp.zeros((2, 5), jnp.uint8)
    after = train_step(state, batch, False, 0.1).state
    for old, new in zip(*(jax.tree.leaves((s.params, s.moments)) for s in (state, after)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (int(after.update), int(after.skipped), int(after.skipped_in_a_row)) == (1, 1, 1)
    assert not np.any(after.carry), "the rows start afresh, or they would never recover"
    again = train_step(after, batch, False, 0.1).state
    assert int(again.skipped_in_a_row) == 0 and np.any(again.params["wh"] != params["wh"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_not_trained_on(value):
    """An infinite second moment would leave its parameter as it is, unseen, for ever."""
    state = updates.init_state(parameters.init(ModelConfig(hidden=8, embed=4), 0), batch_size=2)
    nu = state.moments.nu | {"b": state.moments.nu["b"].at[0].set(value)}
    broken = state._replace(moments=state.moments._replace(nu=nu))
    after = train_step(broken, jnp.arange(10, dtype=jnp.uint8).reshape(2, 5), False, 0.1).state
    assert int(after.skipped_in_a_row) == 1
    for old, new in zip(*(jax.tree.leaves((s.params, s.moments)) for s in (broken, after)), strict=True):
        np.testing.assert_array_equal(old, new)


@given(st.integers(0, 50), st.integers(1, 1000), st.floats(0.01, 1), st.data())
def test_the_rate_is_held_and_then_falls_linearly_to_zero(start, planned, fraction, data):
    end = start + planned
    update = data.draw(st.integers(start, end))
    rate = lambda update, fraction: updates.learning_rate(2.0, update, start, end, fraction)
    assert rate(start, fraction) == pytest.approx(2.0) and rate(end, fraction) == pytest.approx(0, abs=1e-9)
    left = (end - update) / (fraction * planned)
    assert rate(update, fraction) == pytest.approx(2.0 * min(1.0, left), abs=1e-9)
    assert rate(update, 1.0) == 2.0 * (1 - (update - start) / planned), "as it has always been, to the bit"


def test_muon_moves_the_recurrent_matrices_alone_each_gate_by_an_orthogonal_step():
    state = updates.init_state(parameters.init(ModelConfig(hidden=16, embed=4), 0), batch_size=2)
    batch = jnp.arange(34, dtype=jnp.uint8).reshape(2, 17)
    by = {name: train_step(state, batch, False, 1e-3, optimizer=name).state for name in ("adam", "muon")}
    moved = {name: np.array(state.params[name] - by["muon"].params[name]) / 1e-3 for name in ("wh", "wmh")}
    for gate in (*np.split(moved["wh"], 4, axis=1), moved["wmh"]):
        strengths = np.linalg.svd(gate / (updates.MUON_RMS * 16**0.5), compute_uv=False)
        assert (strengths > 0.3).sum() > 8 and strengths.max() < 1.3, "Newton and Schulz bring them near 1"
        assert np.sqrt((gate**2).mean()) == pytest.approx(updates.MUON_RMS, rel=0.3), "as large as Adam's"
    for name in set(state.params) - set(moved):
        for part in ("params", "mu", "nu"):
            adam, muon = (getattr(s if part == "params" else s.moments, part)[name] for s in by.values())
            np.testing.assert_array_equal(adam, muon)
    assert not any(np.any(by["muon"].moments.nu[name]) for name in moved)


def test_a_run_of_muon_resumes_bit_for_bit_and_keeps_its_optimizer(reviews, tmp_path, monkeypatch, capsys):
    muon = ["--optimizer", "muon"]
    assert train.run(arguments(reviews, tmp_path / "whole", *muon)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, signal.SIGTERM)
        assert train.run(arguments(reviews, tmp_path / "run", *muon)) == 143
    with pytest.raises(UserError, match="optimizer"):
        train.run(["--run-dir", str(tmp_path / "run"), "--optimizer", "adam"])
    assert train.run(["--run-dir", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_runs_of_one_process_share_a_program_where_what_is_compiled_is_the_same():
    mesh, config = sharding.one_device(), Config(model=ModelConfig(hidden=8, embed=4), batch_size=2)
    update = lambda **other: updates.jitted(replace(config, **other), "float32", mesh)
    assert update() is update(learning_rate=1e-3, updates=7, seed=5, seq_length=32)
    others = [
        update(clip_norm=2.0),
        update(remat_every=8),
        update(grad_accumulation=2),
        update(optimizer="muon"),
        updates.jitted(config, "bfloat16", mesh),
    ]
    assert len({*others, update()}) == 6
    drawn = [updates.draw_state(replace(config, seed=seed), mesh) for seed in (0, 1, 0)]
    first, second, again = (np.asarray(state.params["wh"]) for state in drawn)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != second)


def test_the_state_starts_from_zero_at_a_shards_start():
    params = parameters.init(ModelConfig(hidden=8, embed=4), 0)
    state = updates.init_state(params, batch_size=2)
    carried = state._replace(carry=tuple(jnp.ones_like(s) for s in state.carry))
    batch = jnp.arange(10, dtype=jnp.uint8).reshape(2, 5)
    step = lambda state, fresh: train_step(state, batch, fresh, 0.1).metrics
    assert step(carried, True)["bits_per_byte"] == step(state, False)["bits_per_byte"]
    assert step(carried, False)["bits_per_byte"] != step(state, False)["bits_per_byte"]


def test_clipping_bounds_the_gradient_and_zero_does_not_clip():
    params = parameters.init(ModelConfig(hidden=8, embed=4), 0)
    batch = jnp.arange(10, dtype=jnp.uint8).reshape(2, 5)

    def first_moment(clip_norm):
        clipped_step = jax.jit(partial(updates.train_step, clip_norm=clip_norm, precision="float32"))
        state, metrics = clipped_step(updates.init_state(params, batch_size=2), batch, False, 0.1)
        moment = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(state.moments.mu)))
        return float(moment) / 0.1, float(metrics["gradient_norm"])  # Adam's first moment is 0.1 x the gradient

    free, norm = first_moment(0.0)
    assert free == pytest.approx(norm, rel=1e-4)
    clipped, same_norm = first_moment(norm / 2)
    assert clipped == pytest.approx(norm / 2, rel=1e-4) and same_norm == norm


def test_a_folder_that_is_not_a_run_is_left_alone(reviews, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        train.run(arguments(reviews, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_do_not_train_one_run(reviews, finished):
    with locked(finished, "trained"), pytest.raises(UserError, match="another process"):
        train.run(["--run-dir", str(finished), "--more-updates", "5"])


def test_a_finished_run_says_so_before_it_looks_at_data_or_devices(finished, tmp_path, monkeypatch, capsys):
    """On any number of devices, and where the data have gone."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    config = Run(run_dir).read_config()
    gone, mesh = str(tmp_path / "gone.txt"), configs.MeshConfig(data=1, fsdp=2, model=2)
    Run(run_dir).write_config(replace(config, data=gone, mesh=mesh))
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("it looked for devices"))
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert "is finished (20 updates); --more-updates N" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed .* may not change"):
        train.run(["--run-dir", str(run_dir), "--seed", "5"])


def test_of_several_processes_the_first_says_that_a_run_is_finished(finished, capsys):
    named = lambda number: ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", number]
    assert train.run(["--run-dir", str(finished), *named("1")]) == 0 and capsys.readouterr().out == ""
    assert train.run(["--run-dir", str(finished), *named("0")]) == 0
    assert "is finished (20 updates)" in capsys.readouterr().out


def test_a_run_goes_on_where_nobody_reads_its_output(reviews, tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments(reviews, run_dir, "--log-every", "1")],
        stdout=subprocess.PIPE,
    )
    for line in process.stdout:
        if line.startswith(b"compiling"):
            break
    process.stdout.close()
    process.wait()
    assert "test_bits_per_byte" in Run(run_dir).read_metrics()[-1] and 20 in Run(run_dir).steps()


def test_a_run_killed_while_its_test_bytes_are_scored_scores_them_when_it_goes_on(
    reviews, tmp_path, monkeypatch, finished
):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        score, calls = validation.bits_per_byte, []

        def killed(*args):
            calls.append(args)
            if len(calls) == 3:  # after the two scorings of the validation bytes
                raise KeyboardInterrupt
            return score(*args)

        patch.setattr(validation, "bits_per_byte", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(arguments(reviews, run_dir))
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert Run(run_dir).read_metrics()[-1].keys() == {"update", "test_bits_per_byte"}
    assert_same_run(run_dir, finished)


def test_training_on_that_is_stopped_at_once_is_not_lost(reviews, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    train.run(arguments(reviews, run_dir, "--updates", "5"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, signal.SIGTERM)
        assert train.run(["--run-dir", str(run_dir), "--more-updates", "5"]) == 143
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert int(state_of(run_dir)[0].update) == 10


def test_a_config_edited_on_disk_is_refused_by_what_the_checkpoint_holds(reviews, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, signal.SIGTERM)
        train.run(arguments(reviews, run_dir))
    path = run_dir / "config.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.005', '"learning_rate": 0.5'))
    with pytest.raises(UserError, match=r"learning_rate \(0.005 -> 0.5\) may not change"):
        train.run(["--run-dir", str(run_dir)])


def test_a_run_that_never_saved_starts_again_with_another_config_and_says_so(reviews, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    Run(run_dir).write_config(configs.from_dict(configs.to_dict(configs.Config())))
    (run_dir / "metrics.jsonl").write_text('{"update": 3}\n')
    assert train.run(arguments(reviews, run_dir, "--updates", "5")) == 0
    assert "has no checkpoint: starting again from update 0" in capsys.readouterr().out


def test_data_that_moved_are_known_by_their_bytes(reviews, tmp_path):
    run_dir, moved = tmp_path / "run", tmp_path / "moved.txt"
    train.run(arguments(reviews, run_dir, "--updates", "5"))
    moved.write_bytes(reviews.read_bytes())
    assert train.run(["--run-dir", str(run_dir), "--data", str(moved), "--more-updates", "2"]) == 0
    assert stored_config(Run(run_dir)).data == str(moved)


def test_data_named_from_one_folder_are_found_from_another(reviews, tmp_path, monkeypatch):
    monkeypatch.chdir(reviews.parent)
    run_dir = tmp_path / "run"
    assert train.run(arguments(reviews.name, run_dir, "--updates", "2")) == 0
    monkeypatch.chdir(tmp_path)
    assert train.run(["--run-dir", "run", "--more-updates", "2"]) == 0
    assert stored_config(Run(run_dir)).data == str(reviews)
    path = run_dir / "config.json"
    path.write_text(path.read_text().replace(str(reviews), reviews.name))  # as version 0.1.0 kept it
    with pytest.raises(UserError, match="reviews.txt is not here: .* with --data"):
        train.run(["--run-dir", "run", "--more-updates", "2"])


@pytest.mark.parametrize("lost", [False, True])
def test_what_is_asked_for_once_is_ignored_in_a_run(lost, reviews, tmp_path, monkeypatch, capsys):
    """Whoever made the run names no host to connect to, no plan: by config.json or by a checkpoint."""
    once = {"coordinator": "localhost:1", "num_processes": 2, "process_id": 1, "plan": "h200", "verify": True}
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(configs, "kept", lambda config: replace(config, **once))  # the stranger's program
        interrupt_at(patch, 3, signal.SIGTERM)
        assert train.run(arguments(reviews, run_dir)) == 143
    assert json.loads((run_dir / "config.json").read_text())["coordinator"] == "localhost:1"
    if lost:
        (run_dir / "config.json").unlink()
    capsys.readouterr()
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert "resuming" in capsys.readouterr().out and Run(run_dir).steps()[-1] == 20
    assert json.loads((run_dir / "config.json").read_text())["coordinator"] is None


def test_a_loss_worse_than_guessing_is_a_warning_once(reviews, tmp_path, capsys):
    count = train_loop.HOPELESS_AFTER + 10
    for rate, warnings in ((1e6, 1), (5e-3, 0)):
        run_dir = tmp_path / str(rate)
        assert train.run(arguments(reviews, run_dir, "--updates", str(count), "--learning-rate", str(rate))) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if "worse than guessing" in line]
        assert len(said) == warnings, said
        assert all("--learning-rate below 1e+06" in line and "--clip-norm below 1" in line for line in said)


def test_a_mean_over_fewer_updates_says_so(reviews, tmp_path, monkeypatch, capsys):
    run_dir, every = tmp_path / "run", tmp_path / "every"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, signal.SIGTERM)
        train.run(arguments(reviews, run_dir))
    capsys.readouterr()
    train.run(["--run-dir", str(run_dir)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "bits/byte" in line]
    assert ["(mean of 3)" in line for line in lines] == [True, False, False]
    train.run(arguments(reviews, every, "--log-every", "1"))
    one = {row["update"]: row["bits_per_byte"] for row in Run(every).read_metrics() if "bits_per_byte" in row}
    rows = [row for row in Run(run_dir).read_metrics() if "bits_per_byte" in row]
    assert [(row["update"], row["averaged"]) for row in rows] == [(5, 5), (10, 3), (15, 5), (20, 5)]
    assert rows[1]["bits_per_byte"] == pytest.approx((one[8] + one[9] + one[10]) / 3, rel=1e-6)


def test_metrics_that_a_crash_damaged_do_not_stop_a_run(reviews, tmp_path):
    run_dir = tmp_path / "run"
    train.run(arguments(reviews, run_dir, "--updates", "10"))
    path = run_dir / "metrics.jsonl"
    before = Run(run_dir).read_metrics()
    path.write_bytes(b"\0\0\0\n[]\n{}\n\xff\n" + path.read_bytes() + b'{"update": 99, "bits')
    assert Run(run_dir).read_metrics() == before
    assert train.run(["--run-dir", str(run_dir), "--more-updates", "5"]) == 0
    assert path.read_bytes().startswith(b'{"update": 5,')


@pytest.mark.parametrize(
    "content, more, message",
    [
        (None, [], "no such file"),
        (b"", [], "holds no text"),
        (b"  \n\n \n", [], "holds no text"),
        (b"one\ntwo\nthree\nfour", [], "are needed for one update; lower `batch_size`"),
        (b"one\ntwo\nthree\nfour", ["--text-key", "text"], "`text_key` goes with JSON, CSV, TSV and Parquet"),
    ],
)
def test_bad_data_is_one_clear_line_and_makes_no_run(content, more, message, tmp_path):
    data = tmp_path / "data.txt"
    if content is not None:
        data.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        train.run(arguments(data, tmp_path / "run", *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_bad_row_is_left_out_of_training_in_one_line(tmp_path, capsys):
    data = tmp_path / "reviews.csv"
    rows = [f'"a good film, number {i}, of the kind that I like",1' for i in range(200)]
    rows[99] = '"a "film" of that kind",1'
    data.write_text("\n".join(["text,label", *rows]))
    assert train.run(arguments(data, tmp_path / "run", "--updates", "1")) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert said.startswith(f"{data}: rows left out: 1 that cannot be read (") and said.endswith(", line 101")
    with pytest.raises(UserError, match="reviews.csv, line 101: "):
        train.run(arguments(data, tmp_path / "strict", "--updates", "1", "--on-error", "fail"))
    assert not (tmp_path / "strict").exists()


def test_a_run_without_a_checkpoint_is_one_clear_line(tmp_path):
    import mlstm_jax

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"batch_size": 4}')
    with pytest.raises(UserError, match="holds no checkpoint yet") as error:
        mlstm_jax.load(tmp_path / "run")
    assert explain(error.value).endswith(f"holds no checkpoint yet; try: python train.py --run-dir {tmp_path / 'run'}")
    with pytest.raises(UserError, match="config.json cannot be read"):
        train.run(["--run-dir", str(tmp_path / "run")])


def script(name, *args, env=None):
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
    )


def test_the_scripts_end_with_status_2_and_one_line_never_a_traceback(finished, tmp_path, run_here):
    for name, *args in (
        ("train.py", "--data", tmp_path / "missing.csv", "--run-dir", tmp_path / "run"),
        ("sample.py", finished, "--clamp", "16=1.0"),
        ("sample.py", finished, "--clamp", "3:1"),
        ("sample.py", tmp_path / "nowhere"),
        ("train.py", "--run-dir", ROOT / "README.md" / "run"),
        ("eval_sst.py", finished, "--data", tmp_path),
    ):
        ended = run_here(name, *args)
        assert ended.status == 2, (name, args, ended.err)
        assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize("name", ["train.py", "sample.py"])
def test_a_platform_that_is_not_there_is_one_line(name, finished, reviews, tmp_path):
    args = arguments(reviews, tmp_path / "run") if name == "train.py" else [finished]
    done = script(name, *args, env={"JAX_PLATFORMS": "nothing"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: jax finds no device for JAX_PLATFORMS=nothing;"), done.stderr
    assert done.stderr.count("\n") == 1


def test_training_needs_no_optional_package(reviews, tmp_path):
    """Evaluation, pictures and TensorBoard packages blocked: train.py says what it leaves out, and trains."""
    missing = ["tensorflow_datasets", "sklearn", "matplotlib", "tensorboardX"]
    for name in missing:
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    done = script(
        "train.py",
        *arguments(reviews, tmp_path / "run", "--updates", "5"),
        env={"PYTHONPATH": str(tmp_path / "blocked")},
    )
    assert done.returncode == 0, done.stderr
    assert "no TensorBoard files" in done.stderr and "left out: loss curve: matplotlib" in done.stderr
    assert not (tmp_path / "run" / "loss_curve.png").exists() and Run(tmp_path / "run").steps() == [5]


def test_a_killed_run_goes_on_from_its_last_checkpoint(reviews, tmp_path, finished):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments(reviews, run_dir, "--save-every", "1", "--log-every", "1")],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.split("/")[0].strip() == "6":
            process.kill()
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert train.run(["--run-dir", str(run_dir)]) == 0
    assert_same_run(run_dir, finished)


def test_without_validation_the_test_alone_is_scored(reviews, tmp_path, capsys):
    assert train.run(arguments(reviews, tmp_path / "run", "--eval-every", "0", "--updates", "2")) == 0
    assert not any("validation_bits_per_byte" in row for row in Run(tmp_path / "run").read_metrics())
    shown = capsys.readouterr().out
    assert "\ntest: " in shown and "validation: " not in shown
