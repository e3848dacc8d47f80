"""Laws of a prepared corpus: no review lost or changed, one shuffle whatever the workers, nothing half-made passes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import train
from mlstm_jax import checkpoint
from mlstm_jax.config import UserError
from mlstm_jax.corpus import readers, shards, windows
from mlstm_jax.text import frame

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "configs" / "tiny.py")


def dump(path, count, seed=0, bad=0):
    """A dump like that of 2014: strict and loose lines, entities, tags, any letters, empty and doubled reviews."""
    draw = random.Random(seed)
    words = 'a good bad film &amp; &quot;so&quot; <br /> naïve 🙂 𝒳 it\'s \\n "x" tea\tcup'.split(" ")
    lines, texts = [], []
    for number in range(count):
        text = "" if number % 17 == 0 else " ".join(draw.choices(words, k=draw.randrange(1, 40)))
        text = texts[-1] if number % 23 == 1 else text
        record = {"reviewerID": str(number), "reviewText": text, "overall": float(draw.randrange(1, 6))}
        lines.append(repr(record) if draw.random() < 0.5 else json.dumps(record, ensure_ascii=draw.random() < 0.5))
        texts.append(text)
    for _ in range(bad):
        lines.insert(draw.randrange(1, len(lines)), '{"reviewText": "cut')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def split(folder, name):
    """The reviews of a part, as bytes, by its ends."""
    data, ends = (folder / f"{name}.bin").read_bytes(), np.load(folder / f"{name}.ends.npy").tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def names(folder):
    return [part["name"] for part in json.loads((folder / "manifest.json").read_text())["parts"]]


def sums(folder):
    """What a folder holds, by the name of the file."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".npy", ".jsonl")
    }


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return dump(tmp_path_factory.mktemp("dump") / "reviews.json", 2000, bad=3)


@pytest.fixture(scope="module")
def corpus(reviews, tmp_path_factory):
    """Prepared with many chunks and many buckets."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "chunks", partial(readers.chunks, size=20_000))
        patch.setattr(shards, "BUCKET", 30_000)
        shards.prepare([str(reviews)], out, shards.Options(7, seed=3), workers=2)
    return out


def test_every_review_comes_out_once_and_as_it_went_in(reviews, corpus):
    texts, bad = [], 0
    for chunk in readers.chunks(*[(s, 0, readers.Keys()) for s in readers.sources([str(reviews)])][0]):
        for _, text, label, wrong in readers.parse(chunk):
            bad += wrong is not None
            texts += [(frame(text), label)] if wrong is None and text.strip() else []
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
    manifest, mapped = shards.load(corpus)
    for part in (shards.Part(**part) for part in manifest["parts"]):
        shards.verify(corpus, part)
        assert part.bytes == len(mapped[part.name]) and part.reviews == len(split(corpus, part.name))


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
    monkeypatch.setattr(shards, "chunks", partial(readers.chunks, size=20_000))
    shards.prepare([str(reviews)], tmp_path / "out", shards.Options(7, seed=3), workers=workers)
    assert sums(tmp_path / "out") == sums(corpus)
    shards.prepare([str(reviews)], tmp_path / "other", shards.Options(7, seed=4), workers=workers)
    assert sums(tmp_path / "other") != sums(corpus)


def test_of_equal_texts_one_is_kept_where_that_is_asked_for(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "chunks", partial(readers.chunks, size=20_000))
    monkeypatch.setattr(shards, "BUCKET", 30_000)
    manifest = shards.prepare([str(reviews)], tmp_path / "out", shards.Options(3, distinct=True), workers=2)
    out = [text for name in names(tmp_path / "out") for text in split(tmp_path / "out", name)]
    assert len(set(out)) == len(out) == manifest["reviews"]["kept"] and manifest["reviews"]["duplicates"] > 50
    sizes = [part["reviews"] for part in manifest["parts"]]
    assert max(sizes) - min(sizes) <= 1


def test_bad_lines_are_kept_with_file_and_line_or_stop_it(reviews, corpus, tmp_path):
    bad = [json.loads(line) for line in (corpus / "bad_lines.jsonl").read_text().splitlines()]
    lines = reviews.read_text(encoding="utf-8").split("\n")
    assert len(bad) == 3 and all(lines[record["line"] - 1] == record["data"] for record in bad)
    assert {record["file"] for record in bad} == {str(reviews)}
    with pytest.raises(UserError, match=rf"{reviews}, line \d+: "):
        shards.prepare([str(reviews)], tmp_path / "out", shards.Options(3), workers=2, on_error="fail")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_cannot_be_prepared_is_one_clear_line(reviews, corpus, tmp_path):
    prepare = partial(shards.prepare, workers=1)
    with pytest.raises(UserError, match="holds a corpus already"):
        prepare([str(reviews)], corpus, shards.Options(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        prepare([str(reviews)], tmp_path / "mine", shards.Options(3))
    with pytest.raises(UserError, match="do not fill 3000 shards"):
        prepare([str(reviews)], tmp_path / "many", shards.Options(3000))
    with pytest.raises(UserError, match="--shards must be at least 1"):
        prepare([str(reviews)], tmp_path / "none", shards.Options(0))
    with pytest.raises(UserError, match="no such file"):
        prepare([str(tmp_path / "nothing.json")], tmp_path / "out", shards.Options(3))


def command(reviews, out):
    return [
        sys.executable,
        "-m",
        "mlstm_jax.corpus",
        str(reviews),
        "--out",
        str(out),
        "--shards",
        "4",
        "--workers",
        "2",
    ]


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tmp_path):
    reviews = dump(tmp_path / "reviews.json", 60_000)
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    begun = time.monotonic()
    whole = run(command(reviews, tmp_path / "whole"))
    seconds = time.monotonic() - begun
    assert whole.returncode == 0 and "60,000 reviews read" in whole.stdout
    draw, killed = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(command(reviews, tmp_path / "killed"), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(seconds * draw.uniform(0.3, 0.9))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if not (tmp_path / "killed" / "manifest.json").exists() and (tmp_path / "killed").exists():
            with pytest.raises(UserError, match="no manifest.json"):
                shards.load(tmp_path / "killed")
    assert killed
    if not (tmp_path / "killed" / "manifest.json").exists():
        assert run(command(reviews, tmp_path / "killed")).returncode == 0
    assert sums(tmp_path / "killed") == sums(tmp_path / "whole")


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_that_looks_whole(reviews, tmp_path):
    limited = ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash", *command(reviews, tmp_path / "out")]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "File too large" in done.stderr and not (tmp_path / "out" / "manifest.json").exists()
    assert subprocess.run(command(reviews, tmp_path / "out"), cwd=ROOT, capture_output=True).returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()


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
    assert train.main(arguments(corpus, tmp_path / "run")) == 0
    assert "to train on in 7 shards" in capsys.readouterr().out
    state, meta = checkpoint.restore(tmp_path / "run", say=print)
    assert int(state.update) == 20 and meta["position"] == 20
    assert train.main(["--run-dir", str(tmp_path / "run"), "--verify"]) == 0
    assert "all 7 shards" in capsys.readouterr().out


def test_a_truncated_or_missing_shard_is_named_before_training_starts(copy, tmp_path):
    shard = copy / "train-00003.bin"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UserError, match="train-00003.bin has .* bytes, and should have"):
        train.main(arguments(copy, tmp_path / "run"))
    shard.unlink()
    with pytest.raises(UserError, match="train-00003.bin is missing"):
        train.main(arguments(copy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train-00000", "validation", "test"])
def test_altered_bytes_are_named_before_training_on_them(copy, tmp_path, name):
    data = bytearray((copy / f"{name}.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / f"{name}.bin").write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.bin has changed"):
        train.main(arguments(copy, tmp_path / "run"))
    with pytest.raises(UserError, match=f"{name}.bin has changed"):
        train.main(arguments(copy, tmp_path / "run", "--verify"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "parts": []}', '{"format": 1, "parts": [{"name": "x"}]}']
)
def test_a_damaged_manifest_is_one_clear_line(copy, tmp_path, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json"):
        train.main(arguments(copy, tmp_path / "run"))


def test_the_stream_is_the_windows_in_their_order_and_raises_what_the_check_raises():
    data = [np.random.default_rng(n).integers(0, 256, 500, np.uint8) for n in range(3)]
    cut, checked = windows.Windows(data, lanes=4, window=16), []
    found = windows.stream(cut, 5, checked.append)
    for position in range(5, 60):
        window, fresh = next(found)
        expected, expected_fresh = cut.at(position)
        assert (window == expected).all() and fresh == expected_fresh
    found.close()
    assert checked[:4] == [0, 1, 2, 0]

    def refuse(shard):
        if shard == 1:
            raise UserError("changed")

    found = windows.stream(cut, 0, refuse)
    for _ in range(int(cut.counts[0])):
        next(found)
    with pytest.raises(UserError, match="changed"):
        next(found)
