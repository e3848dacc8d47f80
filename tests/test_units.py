"""The unit record on disk, the value at which a unit is held, and the evaluation that writes the record."""

import dataclasses
import json
import os
import subprocess
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest

import eval_sst
import mlstm_jax
from mlstm_jax import probe, units
from mlstm_jax.config import UserError
from mlstm_jax.units import UnitRecord

RECORD = UnitRecord(
    digest="d1",
    update=1000,
    task="sst",
    note="made for a test",
    feature="cell",
    unit=2,
    sign=-1,
    mean_negative=0.1 + 0.2,
    mean_positive=-0.7,
    deviation=1 / 3,
    threshold=-0.2,
    a=-4.0,
    b=0.5,
    c=0.25,
    coefficients=(0.0, 1e-17, -2.0),
    intercept=0.1,
    accuracy_all=0.9,
    accuracy_alone=0.85,
    units_used=2,
)


def test_record_comes_back_as_it_was(tmp_path):
    path = units.save(RECORD, tmp_path / "units")
    assert path == tmp_path / "units" / "sst.json"
    assert units.load([path.parent], "d1") == units.load([path.parent], "d1", "sst") == RECORD
    assert os.listdir(path.parent) == ["sst.json"]


def test_missing_record_names_the_command(tmp_path):
    with pytest.raises(UserError, match="python eval_sst.py RUN$"):
        units.load([tmp_path / "none"], "d1")
    with pytest.raises(UserError, match="python eval_sst.py RUN --task imdb$"):
        units.load([tmp_path], "d1", "imdb")


def test_record_of_other_weights_is_refused_with_the_command(tmp_path):
    units.save(RECORD, tmp_path)
    with pytest.raises(UserError, match=r"sst.json is of other weights.*python eval_sst.py RUN$"):
        units.load([tmp_path], "d2")


def test_without_a_task_the_newest_matching_record_is_taken(tmp_path):
    for age, (task, digest) in enumerate([("rotten_tomatoes", "d2"), ("imdb", "d1"), ("sst", "d1")]):
        path = units.save(dataclasses.replace(RECORD, task=task, digest=digest), tmp_path)
        os.utime(path, (1000 - age, 1000 - age))
    assert units.load([tmp_path], "d1").task == "imdb"
    assert units.load([tmp_path], "d2").task == "rotten_tomatoes"
    assert units.load([tmp_path], "d1", "sst").task == "sst"


def damaged():
    whole = json.dumps(dataclasses.asdict(RECORD))
    fields = json.loads(whole)
    yield from ("", whole[:-30], "[]", "3", "{}", "\udcff")
    wrong = {"unit": 9, "sign": 0, "deviation": "x", "mean_positive": None, "coefficients": None, "a": float("nan")}
    yield from (json.dumps(fields | {key: value}) for key, value in wrong.items())
    yield json.dumps(fields | {"extra": 1})


@pytest.mark.parametrize("text", list(damaged()))
def test_damaged_record_is_refused_with_the_command(tmp_path, text):
    (tmp_path / "imdb.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="imdb.json is damaged.*python eval_sst.py RUN --task imdb"):
        units.load([tmp_path], "d1")


@pytest.mark.parametrize("sign", [1, -1])
def test_plus_is_always_positive(sign):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (sign * (2.0 * y + 3) + rng.normal(size=200))[:, None].astype(np.float32)
    record = dataclasses.replace(RECORD, coefficients=(float(sign),), **probe.measure_unit(x, y, 0)._asdict())
    positive = lambda k: record.a * units.clamp_value(record, k) + record.b
    assert positive(2.0) > positive(1.0) > positive(0.0) > positive(-1.0) > positive(-2.0)
    assert positive(2.0) > 2 and positive(-2.0) < -2
    assert units.clamp_value(record, 0.0) == (record.mean_negative + record.mean_positive) / 2


def test_only_a_cell_state_can_be_held():
    with pytest.raises(UserError, match="python eval_sst.py RUN --feature cell"):
        units.clamp_value(dataclasses.replace(RECORD, feature="hidden"), 1.0)


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), units.atomic(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        units.save(RECORD, tmp_path / "file")


class Model:
    """A stand-in for LanguageModel: noise, and one unit that hears "good"."""

    def __init__(self, path, hidden=16, silent=False):
        self.path, self.hidden, self.silent = path, hidden, silent
        self.digest, self.update, self.is_run, self.bits_per_byte_heldout = "d1", 40, True, 2.5
        self.precision, self.record_dir = "float32", path / "units"
        self.work_dir = path
        self.encoded = 0

    def require_bytes(self):
        pass

    def encode(self, texts, feature="cell", show_progress=False):
        self.encoded += len(texts)
        print("noise on stdout")
        x = np.stack([np.random.default_rng(zlib.crc32(t.encode())).normal(size=self.hidden) for t in texts])
        if self.silent:
            return np.zeros_like(x, np.float32)
        x[:, 3] -= 4 * np.array(["good" in t for t in texts])
        return x.astype(np.float32)


@pytest.fixture
def sst(tmp_path):
    """A folder with SST's three files."""
    folder = tmp_path / "sst"
    folder.mkdir()
    for split, n in (("train", 80), ("dev", 30), ("test", 31)):
        rows = [f"{i % 2},{split} {i} is {'good' if i % 2 else 'bad'}" for i in range(n)]
        (folder / f"{split}_binary_sent.csv").write_text("\n".join(["label,sentence", *rows, ""]))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of a stand-in model; main loads it."""
    model = Model(tmp_path / "run [b]")
    fake = types.SimpleNamespace(load=lambda path: model)
    monkeypatch.setitem(sys.modules, "mlstm_jax.lm", fake)
    monkeypatch.setattr(mlstm_jax, "lm", fake, raising=False)
    return model


def task(folder):
    from mlstm_jax import tasks

    return tasks.load("sst", folder)


def test_evaluation_finds_the_unit_and_keeps_it(run, sst, capsys):
    eval_sst.main(run.path, sst=sst)
    record = units.load([run.record_dir], run.digest)
    assert (record.unit, record.sign, record.update, record.feature) == (3, -1, 40, "cell")
    assert record.accuracy_all > 0.9 and record.accuracy_alone > 0.9
    shown = capsys.readouterr().out
    for words in ("run [b]", "update 40", "31", "2.5000", "3, sign -", "16 units", "51.61%", "do not expect"):
        assert words in shown, words
    assert "sample.py" in shown and "--sentiment +2" in shown
    assert (run.path / "eval/sst/histogram.png").stat().st_size and (run.path / "eval/sst/weights.png").stat().st_size


def test_json_is_all_that_stdout_holds(run, sst, tmp_path, capsys):
    eval_sst.main(run.path, sst=sst, json=True, out=tmp_path / "pictures")
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert found["unit"] == 3 and found["hidden"] == 16 and found["accuracy_majority"] == 16 / 31
    assert Path(found["record"]).is_file() and Path(found["histogram_png"]).parent == tmp_path / "pictures"
    assert "noise on stdout" in streams.err


def test_test_labels_change_no_choice(run, sst):
    honest = task(sst)
    shuffled = honest._replace(test=honest.test._replace(labels=1 - honest.test.labels))
    one, other = (eval_sst.evaluate(run, t, "cell")[0] for t in (honest, shuffled))
    assert other.accuracy_all == pytest.approx(1 - one.accuracy_all)
    assert other.accuracy_alone == pytest.approx(1 - one.accuracy_alone)
    kept = dict(accuracy_all=0.0, accuracy_alone=0.0)
    assert dataclasses.replace(one, **kept) == dataclasses.replace(other, **kept)


def test_features_are_encoded_once_for_the_same_weights_feature_and_texts(run):
    texts = ["a good one", "a bad one"]
    first = eval_sst.features(run, texts, "cell")
    np.testing.assert_array_equal(eval_sst.features(run, texts, "cell"), first)
    assert run.encoded == 2
    eval_sst.features(run, texts, "hidden")
    eval_sst.features(run, texts[::-1], "cell")
    run.digest = "d2"
    eval_sst.features(run, texts, "cell")
    assert run.encoded == 8


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_features_are_encoded_again(run, content):
    first = eval_sst.features(run, ["a", "b"], "cell")
    (path,) = (run.path / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    np.testing.assert_array_equal(eval_sst.features(run, ["a", "b"], "cell"), first)
    assert run.encoded == 4


def test_model_that_knows_nothing_is_evaluated_too(run, sst, capsys):
    run.silent, run.hidden, run.update, run.bits_per_byte_heldout = True, 1, None, None
    eval_sst.main(run.path, sst=sst)
    shown = capsys.readouterr().out
    assert "0 of 1" in shown and "best alone" in shown and "held-out" not in shown


def test_other_features_point_to_the_cell(run, sst, capsys):
    eval_sst.main(run.path, sst=sst, feature="tanh_cell")
    assert "--feature cell" in capsys.readouterr().out


def test_missing_matplotlib_leaves_the_pictures_out(run, sst, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    eval_sst.main(run.path, sst=sst, json=True)
    streams = capsys.readouterr()
    assert "histogram_png" not in json.loads(streams.out) and "matplotlib is not installed" in streams.err
    assert not (run.path / "eval").exists()


def test_help_imports_neither_jax_nor_scikit_learn():
    code = """import sys, eval_sst, tyro
try: tyro.cli(eval_sst.main, args=["--help"])
except SystemExit: print({"jax", "sklearn", "matplotlib"} & set(sys.modules))"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("set()\n") and "--feature" in shown
