"""The evaluation through its script: the unit that is found, what is kept of it, and what is said against it."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import planted_model
from helpers.pages import Page
from mlstm_jax import tasks, unit_record
from mlstm_jax.cli import evaluate, train
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.report import html_page
from mlstm_jax.run import Run
from mlstm_jax.sentiment import clamp_effect, controls, evaluation, probe
from mlstm_jax.tasks.sets import Split


class Model:
    """A stand-in for LanguageModel: noise, and one unit that hears "good"."""

    def __init__(self, path, hidden=16, silent=False):
        self.path, self.hidden, self.silent = path, hidden, silent
        self.digest, self.update, self.is_run, self.validation_bits_per_byte = "d1", 40, True, 2.5
        self.precision, self.record_dir = "float32", path / "units"
        self.kept, self.name = Run(path), str(path)
        self.encoded, self.traced = 0, []

    @property
    def unit(self):
        return unit_record.load([self.record_dir], self.digest)

    def require_bytes(self):
        pass

    def encode(self, texts, feature="cell", show_progress=False):
        self.encoded += len(texts)
        print("noise on stdout")
        texts = [t.decode() if isinstance(t, bytes) else t for t in texts]
        x = np.stack([np.random.default_rng(zlib.crc32(t.encode())).normal(size=self.hidden) for t in texts])
        if self.silent:
            return np.zeros_like(x, np.float32)
        x[:, 3] -= 4 * np.array(["good" in t for t in texts])
        return x.astype(np.float32)

    def trace_unit(self, texts, unit, feature="cell", show_progress=False):
        self.traced += [texts]
        return [np.arange(len(text) + 3, dtype=np.float32) for text in texts]


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
    monkeypatch.setattr(language_model, "load", lambda path, precision: model)
    return model


def test_evaluation_finds_the_unit_and_keeps_it(run, sst, capsys):
    evaluate.main(run.path, data=sst)
    record = unit_record.load([run.record_dir], run.digest)
    assert (record.unit, record.sign, record.update, record.feature) == (3, -1, 40, "cell")
    assert record.accuracy_all > 0.9 and record.accuracy_alone > 0.9 and record.scale[0] < record.scale[1]
    shown = capsys.readouterr().out
    for words in ("run [b]", "update 40", "31", "2.5000", "3, sign -", "16 units", "51.61%"):
        assert words in shown, words
    assert "is small" not in shown  # it has one
    assert "sample.py" in shown and "--sentiment +2" in shown
    assert (run.path / "eval/sst/histogram.png").stat().st_size and (run.path / "eval/sst/weights.png").stat().st_size


def test_json_is_all_that_stdout_holds(run, sst, tmp_path, capsys):
    evaluate.main(run.path, data=sst, json=True, out=tmp_path / "pictures")
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert found["unit"] == 3 and found["hidden"] == 16 and found["accuracy_majority"] == 16 / 31
    assert Path(found["record"]).is_file() and Path(found["histogram_png"]).parent == tmp_path / "pictures"
    assert "noise on stdout" in streams.err


def test_test_labels_change_no_choice(run, sst):
    honest = tasks.load("sst", sst)
    shuffled = honest._replace(test=honest.test._replace(labels=1 - honest.test.labels))
    one, other = (evaluation.find(run, t, "cell").record for t in (honest, shuffled))
    assert other.accuracy_all == pytest.approx(1 - one.accuracy_all)
    assert other.accuracy_alone == pytest.approx(1 - one.accuracy_alone)
    kept = dict(accuracy_all=0.0, accuracy_alone=0.0, interval_alone=None, accuracy_majority=None)
    assert dataclasses.replace(one, **kept) == dataclasses.replace(other, **kept)


def test_the_scale_of_a_unit_is_that_of_bytes_of_texts_from_all_over_the_training_set(run):
    texts = [f"{'a' * 97}{i:03}" for i in range(950)]
    labels = np.arange(950) % 2
    task = tasks.Task("t", "", *[tasks.Split(texts, labels)] * 3)
    low, high = evaluation.scale(run, task, 3, "cell")
    assert (low, high) == tuple(np.percentile(np.tile(np.arange(103), 200), [1, 99]).tolist())
    assert (low, high) == evaluation.scale(run, task, 3, "cell")
    (read,) = run.traced  # once
    assert len(read) == len(set(read)) == 200 and (read[0], read[-1]) == (texts[0], texts[-1])


def test_features_are_encoded_once_for_the_same_weights_feature_and_texts(run):
    texts = ["a good one", "a bad one"]
    first = evaluation.features(run, texts, "cell")
    np.testing.assert_array_equal(evaluation.features(run, texts, "cell"), first)
    assert run.encoded == 2
    evaluation.features(run, texts, "hidden")
    evaluation.features(run, texts[::-1], "cell")
    run.digest = "d2"
    evaluation.features(run, texts, "cell")
    assert run.encoded == 8


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_features_are_encoded_again(run, content):
    first = evaluation.features(run, ["a", "b"], "cell")
    (path,) = (run.path / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    np.testing.assert_array_equal(evaluation.features(run, ["a", "b"], "cell"), first)
    assert run.encoded == 4


def test_a_flipped_byte_of_kept_features_is_noticed(run):
    first = evaluation.features(run, ["a", "b"], "cell")
    (path,) = (run.path / "features").iterdir()
    whole = path.read_bytes()
    np.testing.assert_array_equal(np.load(path), first)
    for encoded, place in enumerate(range(0, len(whole), 3), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        np.testing.assert_array_equal(evaluation.features(run, ["a", "b"], "cell"), first)
        assert run.encoded == 2 * encoded and path.read_bytes() == whole
    path.write_bytes(whole[:-32])  # as version 0.1 kept them
    evaluation.features(run, ["a", "b"], "cell")
    assert run.encoded == 2 * (encoded + 1)


def test_model_that_knows_nothing_is_evaluated_too(run, sst, capsys):
    run.silent, run.hidden, run.update, run.validation_bits_per_byte = True, 1, None, None
    evaluate.main(run.path, data=sst)
    shown = capsys.readouterr().out
    assert "0 of 1" in shown and "most accurate alone" in shown and "held-out" not in shown


def test_a_probe_without_a_unit_says_so_answers_the_majority_and_ranks_no_weight(run, sst, capsys):
    run.silent = True
    for path in sst.iterdir():  # two positive texts of three, and the features say nothing
        rows = [f"{int(i % 3 > 0)},{path.name} {i}" for i in range(30)]
        path.write_text("\n".join(["label,sentence", *rows, ""]))
    evaluate.main(run.path, data=sst, label_efficiency=True, json=True)
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert found["units_used"] == 0 and found["accuracy_all"] == found["accuracy_majority"] == 2 / 3
    assert "the probe uses no unit: it calls every text positive, the commoner class" in streams.err
    header, *rows = found["tables"]["Three rankings"]
    assert header[:2] == ["coefficient", "accuracy alone"] and all(row[0] == "" != row[1] for row in rows) and rows
    assert {row[1] for row in found["tables"]["Label efficiency"][1:]} == {"66.67% ± 0.00%"}


def test_other_features_point_to_the_cell(run, sst, capsys):
    evaluate.main(run.path, data=sst, feature="tanh_cell")
    assert "--feature cell" in capsys.readouterr().out


def test_missing_matplotlib_leaves_the_pictures_out(run, sst, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    evaluate.main(run.path, data=sst, json=True)
    streams = capsys.readouterr()
    assert "histogram_png" not in json.loads(streams.out) and "matplotlib is not installed" in streams.err
    assert not (run.path / "eval").exists()


def test_help_imports_neither_jax_nor_scikit_learn():
    code = """import sys, tyro; from mlstm_jax.cli import evaluate
try: tyro.cli(evaluate.main, args=["--help"])
except SystemExit: print({"jax", "sklearn", "matplotlib"} & set(sys.modules))"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("set()\n") and "--feature" in shown


# The whole evaluation of a model whose unit 7 copies a smiley, and of one that has learnt nothing


@pytest.fixture(scope="module")
def smileys(tmp_path_factory):
    """What --report finds of the planted unit, as JSON; the folder of the weights and the report, what was said."""
    folder = tmp_path_factory.mktemp("smileys")
    planted_model.smileys().save(folder / "weights")
    reviews = planted_model.write_labelled(folder / "smileys.csv")
    arguments = [str(folder / "weights"), "--task", str(reviews), "--json", "--report", str(folder / "out")]
    arguments += ["--samples", "24", "--sample-length", "60"]
    out, err = io.StringIO(), io.StringIO()
    words = clamp_effect.bag_of_words
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(clamp_effect, "bag_of_words", lambda: words(tasks.from_file(reviews)))  # not of 20,000 reviews
        patch.setattr(sys, "argv", ["eval_sst.py", *arguments])
        tyro.cli(evaluate.main)
    return json.loads(out.getvalue()), folder, err.getvalue()


def accuracy(cell):
    return float(cell.split("%")[0]) / 100


def test_every_ranking_and_resampled_probe_finds_the_planted_unit(smileys):
    found, _, _ = smileys
    assert (found["unit"], found["sign"], found["task"]) == (planted_model.UNIT, 1, "smileys")
    low, high = found["interval_alone"]
    assert low <= found["accuracy_alone"] <= high and low > 0.75
    assert found["mean_positive"] == pytest.approx(0.8, abs=0.1) == -found["mean_negative"]
    names, first, *_ = found["tables"]["Three rankings"]
    assert len(names) == 3 and all(cell.startswith("7 (+)") for cell in first)


def test_the_controls_show_what_the_planted_unit_is_worth(smileys):
    found, _, _ = smileys
    rows = {(row[0], row[1]): row[2] for row in found["tables"]["With and without the unit"][1:]}
    assert accuracy(rows["all units", "16"]) > 0.8 < accuracy(rows["the unit alone", "1"])
    without = rows["all without the unit", "15"]
    low, high = (float(end) / 100 for end in without.split("[")[1].removesuffix("%]").split("%, "))
    assert low < found["accuracy_majority"] + 0.02 and high < 0.75
    assert accuracy(rows["random others", "1"]) < 0.65 > accuracy(rows["random others", "10"])
    endings = found["tables"]["Texts that end otherwise"][1:]
    assert len(endings) == len(evaluation.ENDINGS)
    assert all(accuracy(alone) == pytest.approx(found["accuracy_alone"], abs=1e-4) for _, _, alone, _ in endings)
    features = {row[0]: row for row in found["tables"]["What is read of the state"][1:]}
    assert list(features) == ["cell state", "tanh of the cell state", "hidden state"]
    assert all(row[3] == "7" for row in features.values())
    assert accuracy(found["tables"]["Label efficiency"][-1][1]) == pytest.approx(found["accuracy_all"], abs=0.03)


def test_the_clamp_of_the_planted_unit_is_monotone(smileys):
    found, _, _ = smileys
    header, *rows = found["tables"]["Does the clamp work?"]
    assert [row[0] for row in rows] == ["-3", "-2", "-1", "+0", "+1", "+2", "+3"]
    scores = [float(row[header.index("VADER")].split(" ")[0]) for row in rows]
    assert scores == sorted(scores) and scores[0] < -0.5 and scores[-1] > 0.5
    bits = [float(row[-1].split(" ")[0]) for row in rows]
    assert max(bits) < 2  # what it writes is what it expects: one smiley or the other


def test_the_report_holds_every_section_and_its_numbers(smileys):
    found, folder, said = smileys
    page = (folder / "out" / "index.html").read_text()
    assert found["report"] == str(folder / "out" / "index.html")
    for title, (_, *rows) in found["tables"].items():
        assert title in page and (title in said or title == "How to reproduce")
        assert all(html_page.escape(cell) in page for row in rows for cell in row)
    unit = f"Unit {planted_model.UNIT}"
    for words in ("How to reproduce", found["digest"], "--samples 24", "The unit byte by byte", unit):
        assert words in page, words
    for picture in ("histogram", "weights", "controls", "label_efficiency", "clamp_effect"):
        assert Path(found[f"{picture}_png"]).stat().st_size > 1000
        assert page.count(f'id="{picture}-figure_1"') == 1  # drawn into the page, in its ink
    parts = Page(page)
    anchors = [value.removeprefix("#") for value in parts.addresses]
    assert anchors == [value for tag, name, value in parts.attributes if (tag, name) == ("h2", "id")]
    assert "with-and-without-the-unit" in anchors and "how-to-reproduce" in anchors
    verdict = f"sentiment {unit.lower()}: "
    assert parts.parts["p"][0].startswith(verdict) and "warning" not in page.split(verdict)[0].split("</style>")[1]
    assert parts.parts["h3"] == ["-3 deviations", "neutral", "+3 deviations"]
    columns = page.split('class="columns"')[1].split("<h2")[0].split("<h3>")[1:]
    smile = [column.count(":)") - column.count(":(") for column in columns]
    assert all(column.count("<p ") == 3 for column in columns) and smile[0] < smile[1] < smile[2]
    marks = [part for part in parts.parts["div"] if part.startswith(("\u2713", "\u2717"))]
    assert len(marks) == 6 and {mark.split(" ")[1] for mark in marks} == {"negative", "positive"}


def test_a_report_is_not_overwritten(smileys, monkeypatch):
    _, folder, _ = smileys
    with pytest.raises(UserError, match="there already; name another folder"):
        evaluate.main(folder / "weights", task=str(folder / "smileys.csv"), report=folder / "out")


def test_of_random_weights_nothing_is_found_and_the_intervals_say_so(tmp_path):
    task = tasks.from_file(planted_model.write_labelled(tmp_path / "smileys.csv", n=1500))
    model = planted_model.random_weights()
    found = evaluation.find(model, task, "cell")
    for right in (found.right_all, found.right_alone):
        low, high = probe.interval(right)
        assert low < 0.5 < high and high - low > 0.1
    assert all(ranking.score.max() < 0.6 for ranking in list(probe.rank(found.probe, *found.train).values())[1:])
    assert all(abs(row.mean_unit - 0.5) < 0.1 for row in controls.label_efficiency(found.train, found.test, 1.0, 3))


@pytest.mark.parametrize("negative, positive", [("Rotten", "Fresh"), ("-", "+"), ("负面", "正面"), ("cold", "hot")])
def test_the_same_texts_have_the_same_sign_whatever_their_labels_are_called(
    weights, smileys, tmp_path, capsys, negative, positive
):
    text = (smileys[1] / "smileys.csv").read_text()
    for place, name in enumerate((negative, positive)):
        text = text.replace(f",{place}\n", f",{name}\n")
    (tmp_path / "words.csv").write_text(text)
    named = {"positive": positive} if positive == "hot" else {}
    evaluate.main(weights, task=str(tmp_path / "words.csv"), json=True, **named)
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    same = ("unit", "sign", "mean_positive", "mean_negative", "threshold", "a", "b", "accuracy_alone", "accuracy_all")
    assert [found[name] for name in same] == [smileys[0][name] for name in same]
    assert (found["positive"], found["negative"]) == (positive, negative)
    assert f"positive = {positive}, negative = {negative}" in streams.err
    record = json.loads(Path(found["record"]).read_text())
    assert (record["positive"], record["negative"]) == (positive, negative)


# Tasks of other kinds, and what cannot be a task


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "weights"
    planted_model.smileys().save(folder)
    return folder


def test_a_set_without_splits_is_tested_in_ten_folds(weights, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, smiley in (("custrev.neg", ":("), ("custrev.pos", ":)")):
        texts = (f"{smiley} {''.join(rng.choice(list('abcdefgh'), 20))}" for _ in range(60))
        (tmp_path / name).write_text("\n".join(texts))
    evaluate.main(weights, task="cr", data=tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy_all"] == found["accuracy_alone"] == 1
    assert found["interval_alone"] == [pytest.approx(0.969, abs=1e-3), 1], "120 of 120 are right"
    assert found["units"] == [planted_model.UNIT] * 10 and len(found["c"]) == 10
    with pytest.raises(UserError, match="without further tests"):
        evaluate.main(weights, task="cr", data=tmp_path, controls=True)


def test_no_fold_is_tested_by_a_probe_that_saw_it(weights, tmp_path, monkeypatch):
    for name, smiley in (("custrev.neg", ":("), ("custrev.pos", ":)")):
        (tmp_path / name).write_text("\n".join(f"{smiley} text {i}" for i in range(20)))
    folds, fit, seen = tasks.load("cr", tmp_path), probe.fit, []
    monkeypatch.setattr(probe, "fit", lambda x, y, *dev: (seen.append(len(y) + len(dev[1])), fit(x, y, *dev))[1])
    flipped = folds._replace(
        all=folds.all._replace(labels=np.where(folds.fold == 3, 1 - folds.all.labels, folds.all.labels))
    )
    done = evaluation.cross_validate(language_model.load(weights), flipped, "cell")
    assert seen == [36] * 10
    assert not done.right_alone[folds.fold == 3].any(), "labels of a tested fold change nothing that it is tested with"


def test_several_classes_have_a_probe_each(weights, tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = {"bad": ":(", "good": ":)", "none": ""}
    rows = [f"{words[label]} {''.join(rng.choice(list('abcdefgh'), 12))},{label}" for label in words for _ in range(60)]
    (tmp_path / "moods.csv").write_text("\n".join(["text,label", *rows]))
    evaluate.main(weights, task=str(tmp_path / "moods.csv"), json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == ["bad", "good", "none"] and found["top_units"][:2] == [planted_model.UNIT] * 2
    assert found["accuracy_all"] > 0.9 and found["accuracy_majority"] < 0.5


def test_a_class_that_no_terminal_can_show_is_shown_all_the_same(weights, tmp_path, run_here):
    rows = [{"text": f"{'abc'[i % 3]} {i}", "label": ("\ud800", "\udcff", "\x1b[31m")[i % 3]} for i in range(90)]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ended = run_here("eval_sst.py", weights, "--task", tmp_path / "odd.jsonl")
    assert ended.status == 0 and "3 classes" in ended.out and "\x1b" not in ended.out, ended.err


def test_the_unit_is_followed_over_the_checkpoints_of_a_run(tmp_path, capsys, monkeypatch):
    reviews = tmp_path / "reviews.txt"
    reviews.write_text("\n".join(f"review {i} says :{')('[i % 2]} and more" for i in range(400)))
    arguments = [
        "--run-dir",
        str(tmp_path / "run"),
        "--data",
        str(reviews),
        "--model.hidden",
        "16",
        "--model.embed",
        "8",
    ]
    arguments += ["--batch-size", "4", "--seq-length", "16", "--updates", "12", "--save-every", "4", "--keep", "9"]
    arguments += ["--eval-every", "8"]
    assert train.run(arguments) == 0
    capsys.readouterr()
    again = dict(task=str(planted_model.write_labelled(tmp_path / "smileys.csv", n=120)), over_training=True, json=True)
    evaluate.main(tmp_path / "run", **again)
    found = json.loads(capsys.readouterr().out)
    (_, *rows) = found["tables"]["The unit over training"]
    assert [row[:3] for row in rows] == [["run", f"{u}", "0.0"] for u in (4, 8, 12)]
    assert Path(found["over_training_png"]).stat().st_size > 1000
    assert all(0 <= accuracy(row[4]) <= 1 and 0 <= accuracy(row[5]) <= 1 for row in rows)
    assert float(rows[-1][3]) == pytest.approx(found["validation_bits_per_byte"], abs=1e-4)
    assert rows[0][3] == "" and float(rows[1][3]) != float(rows[2][3]), "update 4 was not scored"
    assert int(rows[-1][6]) == found["unit"], "of fewer than a thousand texts, it is the evaluation's own unit"

    # A run that is training meanwhile gives up its older checkpoints.
    load = language_model.load

    def giving_up(path, update=None, precision="auto"):
        if update == 8:
            shutil.rmtree(path / "checkpoints" / "8")
        return load(path, update, precision)

    monkeypatch.setattr(language_model, "load", giving_up)
    evaluate.main(tmp_path / "run", **again)
    (_, *rows) = json.loads(capsys.readouterr().out)["tables"]["The unit over training"]
    assert [row[1] for row in rows] == ["4", "12"]


def test_several_runs_are_compared_over_training_and_nothing_else(tmp_path, capsys):
    small = ["--model.embed", "8", "--batch-size", "4", "--seq-length", "16", "--updates", "6", "--save-every", "3"]
    reviews = tmp_path / "reviews.txt"
    reviews.write_text("\n".join(f"review {i} says :{')('[i % 2]} and more" for i in range(400)))
    for hidden in ("8", "16"):
        arguments = ["--run-dir", str(tmp_path / hidden), "--data", str(reviews), "--model.hidden", hidden, *small]
        assert train.run(arguments) == 0
    capsys.readouterr()
    task = str(planted_model.write_labelled(tmp_path / "smileys.csv", n=120))
    runs = (tmp_path / "8", (tmp_path / "16",))
    evaluate.main(*runs, task=task, over_training=True, json=True)
    found = json.loads(capsys.readouterr().out)
    (_, *rows) = found["tables"]["The unit over training"]
    assert [row[:2] for row in rows] == [["8", "3"], ["8", "6"], ["16", "3"], ["16", "6"]]
    assert Path(found["over_training_png"]).stat().st_size > 1000
    other = shutil.copytree(tmp_path / "8", tmp_path / "copy/8")
    evaluate.main(tmp_path / "8", (other,), task=task, over_training=True, json=True)
    (_, *rows) = json.loads(capsys.readouterr().out)["tables"]["The unit over training"]
    assert {row[0] for row in rows} == {str(tmp_path / "8"), str(other)}, "of the same name, by their whole paths"
    for others in (dict(), dict(over_training=True, controls=True)):
        with pytest.raises(UserError, match="--over-training, and nothing else"):
            evaluate.main(*runs, task=task, **others)


def test_of_texts_in_order_of_their_class_both_are_taken():
    split = Split([f"text {i}" for i in range(3000)], np.repeat([0, 1], [2000, 1000]))
    some = evaluation.thinned(split)
    assert len(some.texts) == len(set(some.texts)) == evaluation.MOST
    assert [split.labels[int(text.split()[1])] for text in some.texts] == some.labels.tolist()
    assert some.labels.mean() == pytest.approx(1 / 3, abs=0.01)
    assert evaluation.thinned(some).texts == some.texts


@settings(deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, unique=True), st.integers(2, 15))
def test_spaced_checkpoints_are_some_of_them_and_the_last(updates, most):
    updates = sorted(updates)
    chosen = evaluation.spaced(updates, most)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(updates) and len(chosen) <= most
    assert chosen[-1] == updates[-1] and (len(updates) > most or chosen == updates)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\n" + "a b c,1\n" * 40, "two classes or more are needed"),
        ("", "is empty"),
        ("text,text,label\na,b,1\n", "more than one column is named 'text'"),
        ("text,mood\na,1\nb,2\n", "--label-key"),
        (
            "text,label\n" + "a b c,hot\nb c,cold\n" * 40,
            "of the labels 'cold' and 'hot' is the positive class? Name it",
        ),
    ],
)
def test_what_is_no_task_is_one_line_and_status_2(weights, tmp_path, run_here, content, says):
    (tmp_path / "mine.csv").write_text(content)
    ended = run_here("eval_sst.py", weights, "--task", tmp_path / "mine.csv")
    assert ended.status == 2 and ended.out == ""
    *_, last = ended.err.splitlines()
    assert says in last and last.startswith("error: ") and "Traceback" not in ended.err


def test_nul_lone_surrogates_words_as_labels_and_a_megabyte_are_evaluated(weights, tmp_path, run_here):
    rows = [
        {"text": f":{')('[i % 2]} {'abcdefgh'[i % 8]} \0 \ud800 {i}", "label": ("good", "bad")[i % 2]}
        for i in range(90)
    ]
    rows.append({"text": ":) " + "a " * 500_000, "label": "good"})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ended = run_here("eval_sst.py", weights, "--task", tmp_path / "mine.jsonl", "--json")
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["unit"] == planted_model.UNIT
