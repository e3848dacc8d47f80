"""Files that are read again, damaged: refused in one line, made again, or without effect; never another answer.

Every kind is flipped in one bit some times, then cut and filled with zeros a few times.
"""

import random
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import mlstm_jax
from helpers import planted_model
from helpers.accidents import Figures, copied, cut, files, fill, flip, judge, run, tail
from helpers.programs import ROOT, interrupting, write_reviews
from mlstm_jax import unit_record
from mlstm_jax.cli import evaluate, score, train
from mlstm_jax.config import Config
from mlstm_jax.corpus import batches
from mlstm_jax.corpus.build import build
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.run import Run
from mlstm_jax.sentiment import evaluation
from mlstm_jax.training import checkpoint

pytestmark = pytest.mark.slow


def damages(flips, others=2):
    """So many flips, cuts and fillings, each with numbers of its own to draw from."""
    hurts = [flip] * flips + [cut] * others + [fill] * others
    return [(hurt, random.Random(number)) for number, hurt in enumerate(hurts)]


def hurt_one(hurt, draw, among):
    """Damage one of these files; what was done, for a failure's text."""
    path = draw.choice(among)
    before = path.read_bytes()
    while path.read_bytes() == before:  # zeros may be filled with zeros
        hurt(path, draw)
    return f"{hurt.__name__} {path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def runs(folder):
    """A run of 20 updates, and the same one stopped after 15, with a checkpoint of 10, too."""
    reviews = write_reviews(folder / "reviews.txt")
    named = ["--config", str(ROOT / "configs" / "tiny.py"), "--data", str(reviews), "--sample-every", "0"]
    begin = lambda run_dir: train.run([*named, "--run-dir", str(run_dir)])
    assert begin(folder / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "stream", interrupting(batches.stream, 14, signal.SIGTERM))
        assert begin(folder / "stopped") == 143
    assert Run(folder / "stopped").steps() == [10, 15]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """A planted model as a folder for a model hub, whose unit has been found."""
    planted_model.smileys().save(folder / "model")
    task = planted_model.write_labelled(folder / "task.csv", 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        evaluate.main(folder / "model", task=str(task))
    return folder / "model"


@pytest.mark.parametrize("part", ["params", "train and params"])
def test_checkpoints(runs, part, tmp_path):
    """The step is found whole, or the one before it is taken and that is said; the run is never refused."""
    figures = Figures(f"checkpoints, as {'sampling' if part == 'params' else 'training'} reads them")
    copy, arrays = tmp_path / "run", ("meta", *part.split(" and "))

    def read(run_dir):
        if part == "params":
            model = mlstm_jax.load(run_dir)
            return model.update, model.digest
        state, _ = checkpoint.restore(Run(run_dir), print)
        return int(state.update), checkpoint.digest(jax.device_get(state))

    newest = read(copied(runs / "stopped", copy))
    (copy / "checkpoints" / "15").rename(tmp_path / "15")
    before = read(copy)
    assert (newest[0], before[0]) == (15, 10)
    for hurt, draw in damages(25, 4):
        step = copied(runs / "stopped", copy) / "checkpoints" / "15"
        about = hurt_one(hurt, draw, [file for name in arrays for file in files(step / name)] + [*step.glob("_*")])

        def right(result, said):
            return result == newest or (result == before and "checkpoint 15 is damaged" in said)

        def whole():
            try:
                return read(copy)
            except UserError as error:
                return error  # for a checkpoint that is refused there is the one before it

        judge(figures, about, whole, right)
    figures.report()


def test_config_of_a_run(runs, tmp_path):
    """The run goes on to the same end, or it is refused."""
    figures, copy = Figures("config.json"), tmp_path / "run"
    expected = mlstm_jax.load(runs / "whole").digest
    for hurt, draw in damages(20):
        about = hurt_one(hurt, draw, [copied(runs / "stopped", copy) / "config.json"])
        about += " " + (copy / "config.json").read_text(errors="replace")[:1500]
        ends = lambda: (train.run(["--run-dir", str(copy)]), mlstm_jax.load(copy).digest)
        judge(figures, about, ends, lambda result, _: result == (0, expected))
    figures.report()


def test_metrics(runs, tmp_path):
    """A line that is damaged is left out with a word."""
    figures, copy = Figures("metrics.jsonl"), tmp_path / "run"
    known = Run(runs / "whole").read_metrics()
    copy.mkdir()
    for hurt, draw in damages(15):
        about = hurt_one(hurt, draw, [copied(runs / "whole" / "metrics.jsonl", copy / "metrics.jsonl")])

        def right(rows, said, hurt=hurt):
            return all(row in known for row in rows) and (rows == known or bool(said) or hurt is cut)

        judge(figures, about, lambda: Run(copy).read_metrics(), right)
    figures.report()


def test_unit_record(found, tmp_path):
    figures, copy = Figures("unit record"), tmp_path / "units"
    digest = mlstm_jax.load(found).digest
    known = unit_record.load([found / "units"], digest)
    for hurt, draw in damages(20):
        about = hurt_one(hurt, draw, files(copied(found / "units", copy)))
        judge(figures, about, lambda: unit_record.load([copy], digest), lambda record, _: record == known)
    figures.report()


def test_cached_features(found, tmp_path, monkeypatch):
    """Other features than the model gives are never taken; these are made again."""
    figures = Figures("cached features")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, texts = language_model.load(found), ["good :)", "bad :(", "neither", "A longer one, with more in it. :)"]
    known = evaluation.features(model, texts, "cell")
    monkeypatch.setattr(
        language_model.LanguageModel, "encode", lambda *_, **__: known.copy()
    )  # making it again takes seconds
    (kept,) = (path.parent for path in tmp_path.rglob("*.npy"))
    pristine = copied(kept, tmp_path / "pristine")
    for hurt, draw in damages(20):
        about = hurt_one(hurt, draw, files(copied(pristine, kept)))
        judge(figures, about, lambda: evaluation.features(model, texts, "cell"), lambda x, _: np.array_equal(x, known))
    figures.report()


def read_weights(folder):
    model = mlstm_jax.load(folder)
    about = model.update, model.trained_on, model.validation_bits_per_byte
    return {name: np.asarray(array).tobytes() for name, array in model.params.items()}, about


def test_safetensors_folder(runs, tmp_path):
    figures, pristine, copy = Figures("safetensors folder"), tmp_path / "hub", tmp_path / "copy"
    mlstm_jax.load(runs / "whole").save(pristine)
    known = read_weights(pristine)
    for hurt, draw in damages(25):
        names = ["config.json", "model.safetensors", "model.safetensors"]
        about = hurt_one(hurt, draw, [copied(pristine, copy) / name for name in names])
        judge(figures, about, lambda: read_weights(copy), lambda result, _: result == known)
    figures.report()


def test_formats_of_others_have_no_checksum(runs, tmp_path):
    """How many flips of the paper's format are taken, which nothing in it can tell; no reader ends in a traceback."""
    figures, pristine, copy = Figures("folder of .npy, which has no checksum"), tmp_path / "hub", tmp_path / "copy"
    mlstm_jax.load(runs / "whole").save(pristine, "openai")
    known, taken = read_weights(pristine), []
    for hurt, draw in damages(15):
        about = hurt_one(hurt, draw, files(copied(pristine, copy)))

        def right(result, _):
            taken.append(result != known)
            return True

        judge(figures, about, lambda: read_weights(copy), right)
    figures.report()
    print(f"{sum(taken)} of {len(taken)} that were read are other weights")


def test_prepared_corpus(folder, tmp_path):
    """Shards, and the manifest that says what they are."""
    figures, pristine, copy = Figures("prepared corpus"), tmp_path / "corpus", tmp_path / "copy"
    made = run("corpus", write_reviews(tmp_path / "reviews.txt"), "--out", pristine, "--shards", 3, "--workers", 1)
    assert made.status == 0, tail(made)

    def read():
        parts = build(Config(data=str(copy)))
        for number in range(len(parts.train)):
            parts.check(number)
        return [part.tobytes() for part in (*parts.train, parts.validation, parts.test)]

    copied(pristine, copy)
    known = read()
    for hurt, draw in damages(30, 4):
        copied(pristine, copy)
        about = hurt_one(hurt, draw, [copy / "manifest.json", *copy.glob("*.bin")])
        judge(figures, about, read, lambda result, _: result == known)
    figures.report()


class Killed(BaseException):
    pass


def test_state_of_a_scoring(found, tmp_path, monkeypatch):
    """What is known of a half-written output: it goes on to the same bytes, or is refused."""
    figures, out = Figures("part.state of score"), tmp_path / "out.csv"
    source = planted_model.write_labelled(tmp_path / "input.csv", 90)
    monkeypatch.setattr(score, "ROWS", 20)
    scored = lambda out, **more: score.main(found, (str(source),), out=out, **more)
    scored(tmp_path / "whole.csv")
    known, calls, as_rows = (tmp_path / "whole.csv").read_bytes(), [], score.as_rows

    def dying(*args, **named):
        calls.append(1)
        if len(calls) > 2:
            raise Killed
        return as_rows(*args, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(score, "as_rows", dying)
        scored(out)
    part, state = Path(f"{out}.part"), Path(f"{out}.part.state")
    kept = [(path, copied(path, tmp_path / f"kept{path.suffix}")) for path in (part, state)]
    for hurt, draw in damages(20):
        out.unlink(missing_ok=True)
        for path, copy in kept:
            copied(copy, path)
        about = f"{hurt_one(hurt, draw, [state])} {state.read_text(errors='replace')}"
        judge(figures, about, lambda: scored(out, resume=True) or out.read_bytes(), lambda data, _: data == known)
    figures.report()
