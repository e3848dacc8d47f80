"""Runs on failing disks, with lost files, read while they are written: what is safe stays so, and one line says it."""

import errno
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlstm_jax
from helpers.programs import ROOT, TINY
from mlstm_jax.cli import train
from mlstm_jax.cli.arguments import stored_config
from mlstm_jax.config import Config, ModelConfig, to_dict
from mlstm_jax.corpus import batches
from mlstm_jax.errors import UserError
from mlstm_jax.model import parameters
from mlstm_jax.run import Run, newest_run
from mlstm_jax.training import checkpoint, updates


def arguments(reviews, run_dir, *more):
    named = ["--config", TINY, "--data", str(reviews), "--run-dir", str(run_dir)]
    return [*named, "--sample-every", "0", "--eval-every", "100", *more]


@pytest.fixture(scope="module")
def finished(reviews, tmp_path_factory):
    """A run of 20 updates, with checkpoints 10 and 20."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train.run(arguments(reviews, run_dir)) == 0
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@contextmanager
def limit(kind, most):
    """A limit of the system on this process: bytes in a file, or open files."""
    before = resource.getrlimit(kind)
    lift = lambda: resource.setrlimit(kind, before)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield lift
    finally:
        lift()


@contextmanager
def full_disk(monkeypatch, position, after=None):
    """From this batch on, once `after` is there, no file takes 20 kB, which a checkpoint needs. Yields its end."""
    before, stream = resource.getrlimit(resource.RLIMIT_FSIZE), batches.stream

    def filling(*args):
        for place, item in enumerate(stream(*args), args[1]):
            if place == position:
                while after and not after.exists():
                    time.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            yield item

    lift = lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "stream", filling)
        patch.setattr(checkpoint, "PAUSES", (0, 0))
        try:
            yield lift
        finally:
            lift()


def assert_same_run(a, b):
    (state_a, meta_a), (state_b, meta_b) = (checkpoint.restore(Run(run), print) for run in (a, b))
    assert meta_a.position == meta_b.position and checkpoint.digest(state_a) == checkpoint.digest(state_b)


def test_a_save_that_fails_is_said_and_made_again(reviews, finished, tmp_path, monkeypatch, capsys):
    check, moment = checkpoint.Saver.check, threading.Event()

    def check_when_saved(saver, state, meta):  # the few updates left would be done before the save has failed
        while saver.saving is not None and saver.manager.is_saving_in_progress():
            moment.wait(0.01)
        check(saver, state, meta)

    monkeypatch.setattr(checkpoint.Saver, "check", check_when_saved)
    with full_disk(monkeypatch, 8) as lift:
        monkeypatch.setattr(checkpoint.time, "sleep", lift)
        assert train.run(arguments(reviews, tmp_path / "run")) == 0
    assert "checkpoint 10 could not be saved (File too large); trying again" in capsys.readouterr().out
    again, last = Run(tmp_path / "run").steps()
    assert 10 <= again < last == 20
    assert_same_run(tmp_path / "run", finished)


def test_where_saving_fails_for_good_the_run_ends_and_goes_on_later(reviews, finished, tmp_path, monkeypatch):
    printed = r"run: checkpoint 20 could not be saved \(File too large\); checkpoint 10 is safe, and the same command"
    safe = tmp_path / "run" / "checkpoints" / "10"
    with full_disk(monkeypatch, 15, after=safe), pytest.raises(UserError, match=printed):
        train.run(arguments(reviews, tmp_path / "run"))
    assert Run(tmp_path / "run").steps() == [10]
    assert train.run(arguments(reviews, tmp_path / "run")) == 0
    assert_same_run(tmp_path / "run", finished)


def test_a_run_that_cannot_save_at_all_ends_soon_with_one_line(reviews, tmp_path):
    command = arguments(reviews, tmp_path / "run", "--updates", "1000000", "--save-every", "2")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 20; exec "$0" "$@"', sys.executable, str(ROOT / "train.py"), *command],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (
        done.stderr.startswith(f"error: {tmp_path / 'run'}: checkpoint") and "there is no checkpoint yet" in done.stderr
    )
    assert done.stdout.count("trying again") == 2 and "Traceback" not in done.stdout


def test_what_is_saved_is_read_back_once(reviews, tmp_path, monkeypatch):
    load, asked = checkpoint._load, []

    def counted(path, names, mesh):
        asked.append((path.name, *names))
        return load(path, names, mesh)

    monkeypatch.setattr(checkpoint, "_load", counted)
    train.run(arguments(reviews, tmp_path / "run"))
    assert asked == [("10", "params"), ("10", "train")]

    def broken(*_):
        raise ValueError("NOT_FOUND: no such array")

    monkeypatch.setattr(checkpoint, "_load", broken)
    with pytest.raises(UserError, match="checkpoint 10 was saved, but cannot be read again .NOT_FOUND: no such array"):
        train.run(arguments(reviews, tmp_path / "other"))


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "a\\b"])
def test_a_folder_whose_name_is_a_pattern_is_refused_before_anything_is_made(reviews, tmp_path, name):
    with pytest.raises(UserError, match="no checkpoint can be kept where a name has"):
        train.run(arguments(reviews, tmp_path / name / "run"))
    assert not (tmp_path / name).exists()


def test_a_run_that_is_moved_while_it_trains_ends_with_one_line(reviews, tmp_path, monkeypatch):
    stream = batches.stream

    def moving(*args):
        for place, item in enumerate(stream(*args), args[1]):
            if place == 15:
                while not (tmp_path / "run" / "checkpoints" / "10").exists():
                    time.sleep(0.01)
                (tmp_path / "run").rename(tmp_path / "moved")
            yield item

    monkeypatch.setattr(batches, "stream", moving)
    with pytest.raises(UserError, match="run is gone, removed or moved while it was trained"):
        train.run(arguments(reviews, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["params", "moments", "carry"])
def test_numbers_that_are_not_finite_are_never_saved(part, tmp_path):
    state = updates.init_state(parameters.init(ModelConfig(hidden=8, embed=4), 0), batch_size=2)
    broken = jax.tree.map(lambda a: jnp.full_like(a, np.nan) if a.ndim else a, getattr(state, part))
    with (
        checkpoint.Saver(Run(tmp_path), keep=1) as saver,
        pytest.raises(UserError, match="update 0 has left .* not finite"),
    ):
        saver.save(state._replace(**{part: broken}), checkpoint.Meta(Config(), data="", start=0, end=1))
    assert Run(tmp_path).steps() == []


renamed = lambda text: text.replace('"batch_size"', '"batch_sizt"')


@pytest.mark.parametrize("damage", [None, lambda text: "", lambda text: text[:-9], renamed, lambda text: "[" * 100_000])
def test_a_config_that_is_lost_is_read_from_a_checkpoint_and_written_again(damage, copy, capsys):
    path = copy / "config.json"
    before = json.loads(path.read_text())
    path.unlink() if damage is None else path.write_text(damage(path.read_text()))
    assert mlstm_jax.load(copy).update == 20
    assert train.run(["--run-dir", str(copy)]) == 0
    lost = "missing" if damage is None else "damaged"
    assert f"config.json is {lost}: taking the config that checkpoint 20 holds" in capsys.readouterr().out
    assert json.loads(path.read_text()) == before | {"run_dir": str(copy)}
    assert to_dict(stored_config(Run(copy))) == before | {"run_dir": str(copy)}


def test_the_newest_run_is_found_without_its_config(copy, monkeypatch):
    (copy / "config.json").unlink()
    assert newest_run(copy.parent).path == copy and Run(copy).exists()


ERRORS = {
    "Input/output error": OSError(errno.EIO, "Input/output error"),
    "Stale file handle": ValueError("UNKNOWN: Error reading: [os_error_code='116']"),
    "Cannot allocate memory": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "MemoryError": MemoryError(),
}


@pytest.mark.parametrize("cause", ERRORS)
@pytest.mark.parametrize("times", [1, 3])
def test_an_error_of_the_system_moves_no_checkpoint(cause, times, copy, monkeypatch, capsys):
    load, raised = checkpoint._load, []

    def failing(*args):
        if len(raised) < times:
            raised.append(args)
            raise ERRORS[cause]
        return load(*args)

    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0))
    monkeypatch.setattr(checkpoint, "_load", failing)
    if times == 1:
        assert int(checkpoint.restore(Run(copy), print)[0].update) == 20
    else:
        with pytest.raises(UserError, match=f"checkpoints/20 cannot be read now .{cause}.*; nothing was changed"):
            checkpoint.restore(Run(copy), print)
    assert Run(copy).steps() == [10, 20] and not (copy / "damaged").exists()
    assert "damaged" not in capsys.readouterr().out


def test_too_few_open_files_are_no_damage(copy):
    """As the system and TensorStore tell it themselves."""
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(copy)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be read now (Too many open files)" in done.stdout and "damaged" not in done.stdout
    assert "Traceback" not in done.stderr and Run(copy).steps() == [10, 20]


FEW_FILES = """
import os, resource, sys
from pathlib import Path
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run
from mlstm_jax.training import checkpoint
checkpoint.PAUSES, run = (0, 0), Path(sys.argv[1])
checkpoint.restore(Run(run), print)
os.close(free := os.dup(0))
for more in range(20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, free + 20))
    try:
        checkpoint.restore(Run(run), print)
    except UserError as error:
        print(error)
"""


def test_a_checkpoint_that_makes_way_for_a_newer_one_is_not_called_damaged(copy, monkeypatch):
    load, said = checkpoint._load, []
    shutil.rmtree(copy / "checkpoints" / "10")

    def replaced(path, names, mesh):
        if path.name == "20" and path.exists():
            path.rename(path.with_name("30"))
        return load(path, names, mesh)

    monkeypatch.setattr(checkpoint, "_load", replaced)
    _, meta = checkpoint.load_params(Run(copy), said.append)
    assert meta.update == 20 and not said
    with pytest.raises(UserError, match="holds no checkpoint 20; there are: 30"):
        checkpoint.load_params(Run(copy), said.append, update=20)


def test_every_point_is_in_the_event_file_at_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    from mlstm_jax.training import log

    (tmp_path / "metrics.jsonl").write_text("")
    with log.Log(Run(tmp_path), 3, 9) as out:
        out.metrics(5, {"bits_per_byte": 2.5, "skipped": 0})
        (path,) = (tmp_path / "tensorboard").iterdir()
        data, events = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [event.step for event in events if event.HasField("session_log")] == [4]
    points = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in events[2:]]
    assert points == [(5, "bits_per_byte", 2.5), (5, "skipped", 0)]


def test_records_that_cannot_be_written_stop_nothing(tmp_path, capsys):
    from mlstm_jax.training import log

    with log.Log(Run(tmp_path), 0, 9) as out, limit(resource.RLIMIT_FSIZE, 100) as lift:
        for update in range(1, 6):
            out.metrics(update, {"bits_per_byte": 2.5})
        lift()
        out.metrics(6, {"bits_per_byte": 2.5})
    assert capsys.readouterr().out.count("metrics.jsonl cannot be written now (File too large)") == 1
    assert [row["update"] for row in Run(tmp_path).read_metrics()] == [1, 2, 3, 4, 5, 6]
