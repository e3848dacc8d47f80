"""Runs, corpora, weights and outputs in buckets, on servers of this machine."""

import glob
import logging
import signal
import time
import uuid

import pytest

pytest.importorskip("gcsfs", reason="gcsfs is not installed (the extra storage-test)")
pytest.importorskip("s3fs", reason="s3fs is not installed (the extra storage-test)")
pytest.importorskip("moto.server", reason="moto is not installed (the extra storage-test)")
pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed (the extra storage-test)")

import mlstm_jax
from helpers import buckets, planted_model
from helpers.buckets import BUCKET, Servers, denying
from helpers.corpora import here, sums
from helpers.programs import SHORT, TINY, assert_same_figures, end, figures, start, two
from mlstm_jax import storage
from mlstm_jax.cli import train, train_loop
from mlstm_jax.corpus import build, shards
from mlstm_jax.corpus.prepare import Options
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # the servers' own, and those of what is cut off

SCHEMES = ("gs", "s3")
# Trains, and is killed at batch 6 when a checkpoint is in the bucket.
KILLED = """
import os, signal, sys, time
from mlstm_jax import storage
from mlstm_jax.corpus import batches

storage.BEAT, stream = 0.2, batches.stream

def killed(*args):
    for place, item in enumerate(stream(*args), args[1]):
        if place == 6:
            while not storage.steps(storage.local(sys.argv[-1]) / "checkpoints"):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        yield item

batches.stream = killed
from mlstm_jax.cli import train

train.run(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Both servers."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    found = Servers(tmp_path_factory.mktemp("gs"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def machine(servers, tmp_path, monkeypatch):
    """Goes to a machine that has never seen a bucket; the servers are brisk."""
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    for name, seconds in {"BEAT": 0.2, "DEAD": 1.0, "PAUSE": 0.1, "PATIENCE": 60.0}.items():
        monkeypatch.setattr(storage, name, seconds)

    def go(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return str(tmp_path / name)

    go("first")
    return go


@pytest.fixture(params=SCHEMES)
def place(request):
    """A place in a bucket of each kind where nothing is yet."""
    return f"{request.param}://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def s3():
    """A place in one bucket where nothing is yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def training(data, run_dir, *more):
    return ["--config", TINY, "--data", str(data), *SHORT, *more, "--run-dir", str(run_dir)]


def here_as_there(path):
    return sorted(storage.files(storage.local(path)))


@pytest.fixture(scope="module")
def corpus(reviews, tmp_path_factory):
    """A corpus on this machine."""
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    here([reviews], out, Options(2), workers=1)
    return out


@pytest.fixture(scope="module")
def on_corpus(corpus, tmp_path_factory):
    """A run on it that was never stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "local"
    assert train.run(training(corpus, run_dir)) == 0
    return run_dir


def test_corpus_training_kill_resume_eval_and_sample_in_a_bucket(
    place, reviews, corpus, on_corpus, machine, run_here, tmp_path
):
    data, run_dir = f"{place}/corpus", f"{place}/run"
    ended = run_here("mlstm corpus", reviews, "--out", data, "--shards", "2", "--workers", "1")
    assert ended.status == 0 and f"--data {data}" in ended.out, ended.err
    fetched = storage.local(data)
    storage.fetch(fetched)
    assert sums(fetched) == sums(corpus)
    assert ".plan.json" not in storage.names(fetched)

    (killed,) = end(start(["-c", KILLED, *training(data, run_dir)], 1, XDG_CACHE_HOME=machine("killed")))
    assert killed.status == -9, killed.err
    assert storage.steps(storage.local(run_dir) / "checkpoints") == [4]

    machine("second")  # which waits until the first one is dead
    ended = run_here("train.py", *training(data, run_dir))
    assert ended.status == 0, ended.err
    assert "taken over" in ended.err and f"resuming {run_dir} after update 4\n" in ended.out
    assert not list((tmp_path / "second" / "mlstm_jax" / "shards").rglob(".*"))

    machine("third")
    model = mlstm_jax.load(run_dir)
    assert model.digest == mlstm_jax.load(on_corpus).digest
    run = Run(storage.local(run_dir))
    storage.fetch(run.metrics_file)
    assert_same_figures(run.path, on_corpus)
    assert run.steps() == [4, 8, 12] and "config.json" in here_as_there(run_dir)
    assert any(name.startswith("tensorboard/") for name in here_as_there(run_dir))

    task = planted_model.write_labelled(tmp_path / "task.csv", 60)
    ended = run_here("eval_sst.py", run_dir, "--task", task)
    assert ended.status == 0 and f"wrote {run_dir}/units/task.json" in ended.out, ended.err
    assert {"units/task.json", "eval/task/histogram.png"} <= set(here_as_there(run_dir))

    machine("fourth")
    ended = run_here("sample.py", run_dir, "--sentiment", "2", "--num", "1", "--length", "9")
    assert ended.status == 0 and "holding unit" in ended.err, ended.err
    ended = run_here("train.py", "--run-dir", run_dir)
    assert ended.status == 0 and f"{run_dir} is finished" in ended.out, ended.err
    assert ".lock" not in here_as_there(run_dir)


def test_weights_inputs_and_outputs_in_a_bucket(place, run_here, tmp_path):
    planted_model.smileys().save(f"{place}/model")
    task = planted_model.write_labelled(tmp_path / "task.csv", 60)
    for name in ("task.csv", "more/task.csv"):
        storage.put(storage.local(f"{place}/{name}"), task)
    ended = run_here("mlstm eval", f"{place}/model", "--task", f"{place}/task.csv", "--out", f"{place}/pictures")
    assert ended.status == 0, ended.err
    assert {"units/task.json"} <= set(here_as_there(f"{place}/model"))
    assert "histogram.png" in here_as_there(f"{place}/pictures")

    ended = run_here("mlstm score", f"{place}/model", f"{place}/more/*.csv", "--out", f"{place}/scored.csv")
    assert ended.status == 0 and f"in {place}/scored.csv" in ended.err, ended.err
    scored = storage.read(storage.local(f"{place}/scored.csv"))
    ended = run_here("mlstm score", f"{place}/model", task, "--out", tmp_path / "scored.csv")
    assert ended.status == 0 and scored == (tmp_path / "scored.csv").read_bytes()
    again = run_here("mlstm score", f"{place}/model", task, "--out", f"{place}/scored.csv")
    assert again.status == 2 and f"{place}/scored.csv is there already" in again.err

    ended = run_here("mlstm heatmap", f"{place}/model", "so :)", "--out", f"{place}/page.html")
    assert ended.status == 0 and storage.read(storage.local(f"{place}/page.html")).startswith(b"<!DOCTYPE")
    ended = run_here("mlstm convert", f"{place}/model", f"{place}/openai", "--format", "openai")
    assert ended.status == 0 and "14.npy" in here_as_there(f"{place}/openai")
    assert mlstm_jax.load(f"{place}/openai").digest == planted_model.smileys().digest
    again = run_here("mlstm convert", f"{place}/model", f"{place}/openai")
    assert again.status == 2 and again.err.count("\n") == 1 and "is there already" in again.err


@pytest.mark.slow
def test_two_processes_share_one_run_in_a_bucket(s3, reviews, machine, tmp_path):
    run_dir, mesh = f"{s3}/run", ["--mesh.data", "2", "--mesh.fsdp", "2"]
    hosts = [{"XDG_CACHE_HOME": machine(f"host{number}")} for number in (0, 1)]
    stopped = two(reviews, run_dir, *mesh, at=(None, (5, signal.SIGTERM)), more=hosts)
    assert [process.status for process in stopped] == [143, 143], stopped[0].err + stopped[1].err
    assert f"stopped and saved after update 6 of 12; python train.py --run-dir {run_dir} goes on" in stopped[0].out
    ended = two(reviews, run_dir, *mesh, more=hosts)
    assert [process.status for process in ended] == [0, 0], ended[0].err + ended[1].err
    assert f"resuming {run_dir} after update 6\n" in ended[0].out
    alone = two(reviews, tmp_path / "run", *mesh)
    assert [process.status for process in alone] == [0, 0], alone[0].err + alone[1].err
    machine("reader")
    run = Run(storage.local(run_dir))
    assert run.steps()[-1] == 12 and ".lock" not in here_as_there(run_dir)
    assert mlstm_jax.load(run_dir).digest == mlstm_jax.load(tmp_path / "run").digest
    for name in ("bits_per_byte", "validation_bits_per_byte", "test_bits_per_byte"):
        assert figures(run.path, name) == figures(tmp_path / "run", name)


def test_a_damaged_checkpoint_in_a_bucket_is_made_and_sent_again(s3, reviews, whole, run_here, machine):
    run_dir = f"{s3}/run"
    assert train.run(training(reviews, run_dir)) == 0
    place = storage.local(run_dir) / "checkpoints" / "12" / "meta" / "metadata"
    buckets.write(place, b"x" * len(storage.read(place)))
    ended = run_here("train.py", "--run-dir", run_dir)
    assert ended.status == 0, ended.err
    assert "checkpoint 12 is damaged" in ended.out and f"resuming {run_dir} after update 8\n" in ended.out
    machine("reader")
    assert Run(storage.local(run_dir)).steps() == [4, 8, 12]
    assert mlstm_jax.load(run_dir).digest == mlstm_jax.load(whole).digest


def meanwhile(monkeypatch, at, do):
    """Have something done when batch `at` is taken."""
    stream = train_loop.batches.stream

    def watched(*args):
        for place, item in enumerate(stream(*args), args[1]):
            if place in at:
                do(place)
            yield item

    monkeypatch.setattr(train_loop.batches, "stream", watched)


@pytest.mark.parametrize("seconds", [0, pytest.param(30, marks=pytest.mark.slow)])
def test_a_run_outlives_a_server_that_stops_and_says_so(seconds, s3, reviews, whole, servers, monkeypatch):
    said = []
    monkeypatch.setattr(storage.logger, "warning", said.append)

    def do(place):
        if place == 5:
            return servers.stop("s3")
        deadline = time.monotonic() + 60
        while not any("does not answer" in text for text in said) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(seconds)
        servers.start("s3")

    meanwhile(monkeypatch, (5, 9), do)
    assert train.run(training(reviews, f"{s3}/run")) == 0
    assert any("training goes on" in text for text in said) and any("answers again" in text for text in said)
    assert mlstm_jax.load(f"{s3}/run").digest == mlstm_jax.load(whole).digest


def test_what_could_not_be_sent_is_kept_and_sent_by_the_same_command(s3, reviews, servers, monkeypatch, run_here):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    meanwhile(monkeypatch, (5,), lambda place: servers.stop("s3"))
    try:
        ended = run_here("train.py", *training(reviews, f"{s3}/run"))
    finally:
        servers.start("s3")
    assert ended.status == 2 and "the same command on this machine goes on from there" in ended.err
    monkeypatch.setattr(storage, "PATIENCE", 60.0)
    ended = run_here("train.py", *training(reviews, f"{s3}/run"))
    assert ended.status == 0 and "is finished (12 updates)" in ended.out
    assert Run(storage.local(f"{s3}/run")).steps() == [4, 8, 12]


def test_a_second_trainer_is_refused(s3, machine):
    folder = storage.local(f"{s3}/run", "train")
    with storage.keeping(folder, 3):
        with pytest.raises(UserError, match="is being trained"), storage.keeping(folder, 3):
            pass
        machine("other")
        other = storage.local(f"{s3}/run", "train")
        with pytest.raises(UserError, match=f"{s3}/run is being trained by another process on"):
            with storage.keeping(other, 3):
                pass
        machine("first")
    assert storage.names(folder) == []


def taken_over(lock):
    buckets.write(lock, b'{"owner": "x", "host": "other", "beat": 1}')


def taken_over_and_finished(lock):
    storage.remove([lock])


@pytest.mark.parametrize("by_another", [taken_over, taken_over_and_finished])
def test_a_run_that_was_taken_over_meanwhile_ends_and_sends_nothing(by_another, s3, monkeypatch, caplog):
    folder, asked = storage.local(f"{s3}/run", "train"), []
    monkeypatch.setattr(storage.os, "kill", lambda number, signal: asked.append(signal))
    with pytest.raises(UserError, match="was taken over by another process"):
        with storage.keeping(folder, 3):
            deadline = time.monotonic() + 30
            while not asked and time.monotonic() < deadline:  # a sign of life may be on its way
                by_another(folder / ".lock")
                time.sleep(0.05)
            (folder / "late.txt").write_text("late")
    assert asked == [signal.SIGTERM] and "this one stops" in caplog.text
    assert "late.txt" not in storage.names(folder) and (folder / "late.txt").exists()
    storage.remove([folder / ".lock"])
    with storage.keeping(folder, 3):
        assert not (folder / "late.txt").exists()
    assert "what this machine once could not send is removed" in caplog.text


def test_what_ended_the_training_is_said_though_the_bucket_is_gone(s3, servers, monkeypatch, caplog):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    try:
        with pytest.raises(UserError, match="^ten updates"), storage.keeping(storage.local(f"{s3}/run", "train"), 3):
            servers.stop("s3")
            raise UserError("ten updates in a row were not finite")
    finally:
        servers.start("s3")
    assert "the same command on this machine goes on from there" in caplog.text


def test_of_a_folder_of_checkpoints_only_what_was_cut_off_is_removed(s3):
    folder = storage.local(f"{s3}/run", "train")
    for name in ("notes.txt", "4/params/a", "8/params/a", "8.json"):
        buckets.write(folder / "checkpoints" / name, b'{"files": {"params/a": 13}}')
    with storage.keeping(folder, 3):
        pass
    assert sorted(storage.files(folder / "checkpoints")) == ["8.json", "8/params/a", "notes.txt"]


def test_a_pattern_takes_what_it_takes_on_a_disk(place, tmp_path):
    for name in ("a.csv", "b/a.csv", "b/c/a.csv", "b/a.txt"):
        buckets.write(storage.local(f"{place}/{name}"), b"x")
    for pattern, expected in {
        "*.csv": ["a.csv"],
        "*/a.*": ["b/a.csv", "b/a.txt"],
        "**/a.csv": ["a.csv", "b/a.csv", "b/c/a.csv"],
    }.items():
        found = glob.glob(storage.fetched(f"{place}/{pattern}"), recursive=True)
        assert sorted(map(storage.name, found)) == [f"{place}/{name}" for name in expected]
    with pytest.raises(UserError, match="there is nothing of that name"):
        storage.fetched(f"{place}/*.html")


def test_what_could_not_be_sent_does_not_stand_in_the_way_of_the_same_command(s3, monkeypatch):
    def refuse(path):
        raise UserError("no answer")

    model, weights = planted_model.smileys(), f"{s3}/model"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        with pytest.raises(UserError, match="^no answer; what was to be written is kept in"):
            model.save(weights)
    model.save(weights)
    assert mlstm_jax.load(weights).digest == model.digest


def test_scores_that_could_not_be_sent_are_sent_when_resumed(s3, monkeypatch, run_here, tmp_path):
    def refuse(path):
        raise UserError("no answer")

    planted_model.smileys().save(tmp_path / "model")
    task = planted_model.write_labelled(tmp_path / "task.csv", 60)
    run_here("mlstm eval", tmp_path / "model", "--task", task)
    command = ["mlstm score", tmp_path / "model", task, "--out", f"{s3}/scored.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        assert run_here(*command).status == 2
    ended = run_here(*command, "--resume")
    assert ended.status == 0 and "which is finished" in ended.err, ended.err
    assert storage.names(storage.local(s3)) == ["scored.csv"]


def test_a_checkpoint_that_is_cut_off_does_not_count(s3):
    folder = storage.local(f"{s3}/run")
    buckets.write(folder / "checkpoints" / "4" / "meta" / "metadata", b"{}")
    assert Run(folder).steps() == []
    buckets.write(folder / "checkpoints" / "8.json", b'{"files": {"meta/metadata": 2}}')
    assert Run(folder).steps() == [8]
    with pytest.raises(FileNotFoundError):
        Run(folder).fetch(8, ("params",))


def test_shards_come_through_a_small_cache_and_are_verified(place, corpus, tmp_path):
    for name in storage.files_here(corpus):
        storage.put(storage.local(f"{place}/{name}"), corpus / name)
    parts = shards.load(storage.local(place))
    near = shards.Fetched(storage.local(place), parts, tmp_path / "near")
    for number, part in enumerate(parts):
        near.fetch(number)
        assert near[number].tobytes() == (corpus / f"{part.name}.bin").read_bytes()
        assert len(list((tmp_path / "near").glob("*.bin"))) <= 3
    near._pool.shutdown()
    (tmp_path / "near" / f"{parts[-1].name}.bin").write_bytes(b"x" * parts[-1].bytes)  # a disk may err
    again = shards.Fetched(storage.local(place), parts, tmp_path / "near")
    again.fetch(len(parts) - 1)
    assert again[-1].tobytes() == (corpus / f"{parts[-1].name}.bin").read_bytes()
    again._pool.shutdown()
    buckets.write(storage.local(f"{place}/{parts[0].name}.bin"), b"x" * parts[0].bytes)
    with pytest.raises(UserError, match=f"{parts[0].name}.bin is not as it was written"):
        shards.Fetched(storage.local(place), parts, tmp_path / "other").fetch(0)
    storage.remove([storage.local(f"{place}/{parts[0].name}.bin")])
    with pytest.raises(UserError, match=f"{parts[0].name}.bin is missing; make the corpus again"):
        shards.Fetched(storage.local(place), parts, tmp_path / "other").fetch(0)
    assert build.is_prepared(place) and not build.is_prepared(f"{place}/none")


def test_a_corpus_goes_on_on_either_machine_and_overwrites_no_other(s3, reviews, corpus, machine, monkeypatch):
    put = storage.put

    def until_the_manifest(path, source=None):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        put(path, source)

    make = lambda count: here([reviews], storage.local(f"{s3}/corpus", "corpus"), Options(count), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", until_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            make(2)
    with pytest.raises(UserError, match="holds something else"):
        make(1)
    machine("other")
    make(2)
    machine("first")  # where it was begun, and nothing is known of its end
    with pytest.raises(UserError, match="holds a corpus already"):
        make(2)
    machine("reader")
    made = storage.local(f"{s3}/corpus")
    storage.fetch(made)
    assert sums(made) == sums(corpus) and ".plan.json" not in storage.names(made)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_bucket_is_one_line(scheme, run_here, reviews, tmp_path):
    missing = f"{scheme}://missing-bucket/x"
    for command in (
        ["mlstm train", *training(reviews, missing)],
        ["mlstm train", *training(missing, tmp_path / "run")],
        ["mlstm sample", missing],
        ["mlstm corpus", reviews, "--out", missing, "--shards", "2", "--workers", "1"],
    ):
        ended = run_here(*command)
        assert ended.status == 2 and "no such bucket" in ended.err and "Traceback" not in ended.err, command
        assert ended.err.count("error: ") == 1 and "update" not in ended.out


def test_wrong_credentials_are_one_line(s3, servers, run_here, reviews, monkeypatch):
    servers.require_keys(True)
    try:
        ended = run_here("mlstm train", *training(reviews, f"{s3}/run"))
    finally:
        servers.require_keys(False)
    assert ended.status == 2 and ended.err.count("\n") == 1 and "no access" in ended.err and "AWS_PROFILE" in ended.err


def test_wrong_credentials_of_google_are_one_line(run_here, reviews, monkeypatch):
    server, address = denying()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setattr(storage, "_system", storage._system.__wrapped__)
    ended = run_here("mlstm train", *training(reviews, f"gs://{BUCKET}/denied"))
    server.shutdown()
    assert ended.status == 2 and ended.err.count("\n") == 1 and "no access" in ended.err and "gcloud" in ended.err


def test_nothing_in_a_bucket_is_one_line(place, run_here):
    ended = run_here("mlstm sample", f"{place}/none")
    assert ended.status == 2 and ended.err == f"error: {place}/none holds nothing\n"
