"""The probe against scikit-learn called directly, thresholds against brute force."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, mutual_info_score, precision_score, recall_score
from sklearn.multiclass import OneVsRestClassifier

from helpers.programs import start
from mlstm_jax.errors import UserError
from mlstm_jax.sentiment import probe

PLANTED = 7


def planted(n, seed, sign=1, hidden=12):
    """Features in which one unit follows the label, and the labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, hidden)).astype(np.float32)
    x[:, PLANTED] = sign * (1.6 * y - 0.5) + 0.6 * rng.normal(size=n)
    return x, y


TRAIN, DEV, TEST = planted(300, 0), planted(120, 1), planted(150, 2)


def test_probe_equals_scikit_learn_called_directly():
    direct = lambda c: LogisticRegression(l1_ratio=1.0, solver="liblinear", C=c, random_state=42).fit(*TRAIN)
    candidates = [direct(2.0**k) for k in range(-8, 1)]
    scores = [model.score(*DEV) for model in candidates]
    best = candidates[scores.index(max(scores))]
    found = probe.fit(*TRAIN, *DEV)
    assert found.c == best.C
    np.testing.assert_array_equal(found.coefficients, best.coef_[0])
    assert found.intercept == best.intercept_[0]
    assert probe.accuracy(found, *TEST) == best.score(*TEST)
    assert probe.units_used(found) == np.count_nonzero(best.coef_)


@pytest.mark.parametrize("commoner", [0, 1])
def test_a_probe_without_a_unit_answers_the_commoner_class_and_others_are_scikit_learns(commoner):
    rng = np.random.default_rng(0)
    y = np.where(rng.random(400) < 0.68, commoner, 1 - commoner)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    used = []
    for c in probe.STRENGTHS:
        (found,) = probe.fit_each(probe.Examples(x, y), [(None, c)])
        direct = LogisticRegression(l1_ratio=1.0, solver="liblinear", C=c, random_state=42).fit(x, y)
        used.append(probe.units_used(found))
        np.testing.assert_array_equal(found.coefficients, direct.coef_[0])
        if used[-1]:
            assert found.intercept == direct.intercept_[0]
        else:
            np.testing.assert_array_equal(probe.right(found, x, y), y == commoner)
            assert 1 / (1 + np.exp(-found.intercept)) == pytest.approx(y.mean())
    assert used[0] == 0 < used[-1]


def test_a_probe_that_uses_units_has_to_beat_the_commoner_class():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 20)).astype(np.float32), (rng.random(200) < 0.7).astype(np.int64)
    found = probe.fit(x[:100], y[:100], x[100:], y[100:])
    assert probe.units_used(found) == 0 and found.c == probe.STRENGTHS[0]
    assert probe.accuracy(found, x[100:], y[100:]) == y[100:].mean() > 0.6
    assert probe.units_used(probe.fit(*TRAIN, *DEV)) > 0


def test_first_best_strength_wins_a_tie():
    x, y = planted(200, 3)
    separable = np.where(y == 1, 1.0, -1.0)[:, None].astype(np.float32) * 5
    assert probe.fit(separable, y, separable, y).c == probe.STRENGTHS[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_planted_unit_is_found_with_its_sign(sign):
    (x, y), (test_x, test_y) = (planted(n, seed, sign) for n, seed in ((300, 0), (150, 2)))
    unit = probe.top_unit(x, y)
    measure = probe.measure_unit(x, y, unit)
    assert (unit, measure.sign) == (PLANTED, sign)
    assert sign * (measure.mean_positive - measure.mean_negative) == pytest.approx(1.6, abs=0.2)
    assert measure.deviation == pytest.approx(0.6, abs=0.06)
    assert np.sign(measure.a) == sign
    assert probe.unit_right(test_x[:, unit], test_y, measure.sign, measure.threshold).mean() > 0.85


def test_a_unit_of_tiny_values_does_not_come_first_for_its_large_coefficient():
    x, y = TRAIN
    rng = np.random.default_rng(4)
    shrunk = x.copy()
    shrunk[:, PLANTED - 1] = 0.02 * (np.where(y == 1, 1, -1) + 2 * rng.normal(size=len(y)))
    fitted = probe.fit_each(probe.Examples(shrunk, y), [(None, 100.0)])
    assert np.argmax(np.abs(next(fitted).coefficients)) == PLANTED - 1
    assert probe.top_unit(shrunk, y) == probe.top_unit(-shrunk, y) == PLANTED


def test_negated_unit_mirrors_its_measure():
    x, y = TRAIN
    one, other = probe.measure_unit(x, y, PLANTED), probe.measure_unit(-x, y, PLANTED)
    assert (other.sign, other.threshold, other.deviation) == (-one.sign, -one.threshold, one.deviation)
    assert other.a == pytest.approx(-one.a, rel=1e-4) and other.b == pytest.approx(one.b, abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=12), st.sampled_from([1, -1]))
def test_threshold_equals_brute_force(points, sign):
    values, labels = np.array([v for v, _ in points], np.float32), np.array([label for _, label in points])
    every = [probe.unit_right(values, labels, sign, t).mean() for t in np.arange(-6, 6.5, 0.5)]
    assert probe.unit_right(values, labels, sign, probe.best_threshold(values, labels, sign)).mean() == max(every)


def test_threshold_parts_neighbouring_float32_values():
    low = np.float32(0.1)
    values, labels = np.array([low, np.nextafter(low, np.float32(1))]), np.array([0, 1])
    threshold = probe.best_threshold(values, labels, 1)
    assert values[0] < np.float64(threshold) < values[1]
    assert probe.unit_right(values, labels, 1, threshold).all()
    assert probe.unit_right(-values, labels, -1, -threshold).all()


def test_one_unit_logistic_equals_scikit_learn_without_penalty():
    x, y = TRAIN
    measure = probe.measure_unit(x, y, PLANTED)
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit(x[:, [PLANTED]].astype(np.float64), y)
    assert measure.a == pytest.approx(reference.coef_[0, 0], rel=2e-3)
    assert measure.b == pytest.approx(reference.intercept_[0], rel=2e-3)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_separable_unit_stays_finite(scale):
    y = np.array([0, 1] * 20)
    x = (scale * np.where(y == 1, 3.0, 1.0))[:, None].astype(np.float32)
    measure = probe.measure_unit(x, y, 0)
    assert np.isfinite(measure).all()
    assert probe.unit_right(x[:, 0], y, measure.sign, measure.threshold).all()
    logits = measure.a * x[:, 0].astype(np.float64) + measure.b
    assert (logits[y == 1] > 2).all() and (logits[y == 0] < -2).all() and (np.abs(logits) < 100).all()


def test_constant_unit_says_only_how_common_each_label_is():
    y = np.array([0, 1, 1, 1])
    x = np.full((4, 2), 0.1, np.float32)
    measure = probe.measure_unit(x, y, 1)
    assert np.isfinite(measure).all() and measure.deviation < 1e-12
    assert measure.a == 0 and 1 / (1 + np.exp(-measure.b)) == pytest.approx(0.75)
    assert probe.unit_right(x[:, 1], y, measure.sign, measure.threshold).mean() == 0.75
    assert probe.top_unit(x, y) == 0


def test_stopped_fit_is_reported_without_a_warning(recwarn, monkeypatch):
    regress = probe._regress
    monkeypatch.setattr(probe, "_regress", lambda x, y, **options: regress(x, y, max_iter=1, **options))
    assert not probe.fit(*TRAIN, *DEV).converged
    assert not recwarn.list
    monkeypatch.undo()
    assert probe.fit(*TRAIN, *DEV).converged


def test_unusable_training_texts_are_refused():
    x, y = TRAIN
    with pytest.raises(UserError, match="both labels"):
        probe.fit(x, np.ones_like(y), *DEV)
    with pytest.raises(UserError, match="not finite"):
        probe.fit(np.where(x > 2, np.nan, x), y, *DEV)


def test_missing_scikit_learn_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match="pip install 'scikit-learn"):
        probe.fit(*TRAIN, *DEV)


def test_import_is_light():
    code = """import sys, mlstm_jax.sentiment.probe, mlstm_jax.unit_record, mlstm_jax.report.plots
print({"jax", "sklearn", "matplotlib"} & set(sys.modules))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_ranking_finds_the_planted_unit_and_its_sign():
    x, y = TRAIN
    for sign in (1, -1):
        ranked = probe.rank(probe.fit(sign * x, y, sign * DEV[0], DEV[1]), sign * x, y)
        assert list(ranked) == ["coefficient", "accuracy alone", "mutual information"]
        for ranking in ranked.values():
            assert ranking.order[0] == PLANTED == ranking.score.argmax() and ranking.sign[PLANTED] == sign
            assert sorted(ranking.order.tolist()) == list(range(x.shape[1]))
            assert (np.diff(ranking.score[ranking.order]) <= 0).all()


def test_accuracy_alone_is_that_of_the_measured_unit():
    x, y = TRAIN
    alone = probe.accuracies_alone(x, y)
    for unit in range(x.shape[1]):
        measure = probe.measure_unit(x, y, unit)
        assert alone[unit] == probe.unit_right(x[:, unit], y, measure.sign, measure.threshold).mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_mutual_information_equals_scikit_learn_on_the_same_bins(classes):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, 500)
    x = (rng.normal(size=(500, 4)) + y[:, None] * [0, 0.5, 1, 2]).astype(np.float32)
    x[:, 3] = x[:, 3].round()  # equal values share a bin
    for unit, bits in enumerate(probe.mutual_information(x, y)):
        edges = np.unique(np.quantile(x[:, unit], np.arange(1, 16) / 16))
        binned = np.searchsorted(edges, x[:, unit], "right")
        assert bits == pytest.approx(mutual_info_score(y, binned) / np.log(2), abs=1e-12)
    assert probe.mutual_information(np.zeros((4, 1), np.float32), np.array([0, 1, 0, 1]))[0] == 0


def test_noise_ranks_no_unit_far_ahead():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2000, 50)).astype(np.float32), rng.integers(0, 2, 2000)
    assert probe.accuracies_alone(x, y).max() < 0.56
    assert probe.mutual_information(x, y).max() < 0.02


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1))
def test_interval_holds_the_accuracies_that_do_not_contradict_what_was_seen(n, share):
    right = np.arange(n) < round(share * n)
    low, high = probe.interval(right)
    assert 0 <= low <= right.mean() <= high <= 1
    for end in (low, high):  # where the score test of the accuracy `end` just rejects at 5 %
        if 0 < end < 1:
            assert abs(right.mean() - end) / (end * (1 - end) / n) ** 0.5 == pytest.approx(1.96, abs=0.001)


def test_a_few_texts_that_are_all_right_say_little():
    assert probe.interval(np.ones(5, bool)) == (pytest.approx(0.566, abs=0.001), 1.0)


def test_probes_fitted_in_processes_equal_those_of_this_one(monkeypatch):
    examples = probe.Examples(*TRAIN)
    wanted = [(None, 1.0), (np.arange(100), 0.5), (None, 0.25)]
    here = list(probe.fit_each(examples, wanted))
    monkeypatch.setattr(probe, "LARGE", 0)
    for one, other in zip(here, probe.fit_each(examples, wanted), strict=True):
        assert one.c == other.c and one.intercept == other.intercept
        np.testing.assert_array_equal(one.coefficients, other.coefficients)


def fitting(parent):
    """The processes of a program that fit a probe for it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, its_parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if state != "Z" and (parent is None or int(its_parent) == parent) and b"popen_loky" in command:
            found[int(folder.name)] = int(rest[9])  # and the time that each has worked
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_that_fit_end_with_their_program(number):
    process, *files = start(["-m", "helpers.long_fit"], devices=1)
    try:
        children = {}
        while process.poll() is None and sum(worked > 0 for worked in children.values()) < 2:
            children = fitting(process.pid)
            time.sleep(0.1)
        os.kill(process.pid, number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        deadline = time.monotonic() + 60  # a fit takes longer
        while (left := children.keys() & fitting(None).keys()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(children) == 2 and not left
    finally:
        process.kill()
        process.wait()
        for file in files:
            file.close()


def test_classes_are_fitted_as_scikit_learn_fits_them():
    rng = np.random.default_rng(0)
    draw = lambda n: (lambda y: probe.Examples((rng.normal(size=(n, 6)) + np.eye(6)[y] * 2).astype(np.float32), y))(
        rng.integers(0, 3, n)
    )
    train, dev, test = draw(200), draw(100), draw(150)
    direct = [
        OneVsRestClassifier(LogisticRegression(l1_ratio=1.0, solver="liblinear", C=c, random_state=42)).fit(*train)
        for c in probe.STRENGTHS
    ]
    scores = [model.score(*dev) for model in direct]
    best = direct[scores.index(max(scores))]
    probes = probe.fit_classes(train, dev)
    assert {one.c for one in probes} == {probe.STRENGTHS[scores.index(max(scores))]}
    for one, estimator in zip(probes, best.estimators_, strict=True):
        np.testing.assert_array_equal(one.coefficients, estimator.coef_[0])
    assert probe.right_class(probes, *test).mean() == best.score(*test) > 0.7
    with pytest.raises(UserError, match="every class"):
        probe.fit_classes(train._replace(y=np.minimum(train.y, 1)), dev)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=12), st.sampled_from([1, -1]))
def test_thresholds_by_f1_and_by_precision_equal_brute_force(points, sign):
    values, labels = np.array([v for v, _ in points], np.float32), np.array([label for _, label in points])
    at = lambda t: probe.retrieval(sign * values.astype(np.float64) > sign * t, labels)
    every = [at(t) for t in np.arange(-6, 6.5, 0.5)]
    if labels.any():
        assert at(probe.best_threshold(values, labels, sign, "f1")).f1 == pytest.approx(max(r.f1 for r in every))
    for least in (0.25, 0.5, 0.75, 1.0):
        enough = [r for r in every if r.precision >= least]
        aim = f"precision={least}"
        if enough:
            found = at(probe.best_threshold(values, labels, sign, aim))
            assert found.precision >= least and found.recall == max(r.recall for r in enough)
        else:
            with pytest.raises(UserError, match=f"no threshold of precision {least:g}: the highest"):
                probe.best_threshold(values, labels, sign, aim)


@pytest.mark.parametrize(
    "aim", ["", "F1", "precision", "precision=0", "precision=1.1", "precision=-1", "precision=nan"]
)
def test_an_aim_that_is_none_is_refused(aim):
    with pytest.raises(UserError, match="`threshold` is accuracy, f1, or precision=P"):
        probe.best_threshold(np.array([1.0]), np.array([1]), 1, aim)


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    called, labels = rng.random(50) < 0.4, rng.integers(0, 2, 50)
    expected = [score(labels, called) for score in (precision_score, recall_score, f1_score)]
    assert list(probe.retrieval(called, labels)) == pytest.approx(expected)
    assert probe.retrieval(np.zeros(3, bool), np.zeros(3, np.int64)) == (0, 0, 0)
