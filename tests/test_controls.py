"""What a unit is held against, on features with one planted unit and on noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstm_jax.sentiment import controls, probe
from mlstm_jax.sentiment.probe import Examples

PLANTED, HIDDEN = 7, 20


def examples(n, seed, strength=2.0):
    """Features of which one tells the label, with some 84 % accuracy at strength 2."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, HIDDEN)).astype(np.float32)
    x[:, PLANTED] += strength * (y - 0.5)
    return Examples(x, y)


TRAIN, DEV, TEST = examples(400, 0), examples(200, 1), examples(300, 2)


def test_without_the_unit_nothing_is_left_of_a_planted_one():
    fitted = probe.fit(*TRAIN, *DEV)
    assert probe.accuracy(fitted, *TEST) > 0.78
    low, high = probe.interval(controls.without(TRAIN, DEV, TEST, PLANTED))
    assert low < 0.5 < high
    other = controls.without(TRAIN, DEV, TEST, 3)
    assert other.mean() > 0.78


def test_random_units_never_hold_the_unit_and_know_nothing():
    for k in (1, 5, HIDDEN - 1):
        drawn = controls.random_units(TRAIN, DEV, TEST, PLANTED, k, samples=6)
        assert drawn.shape == (6,) and abs(drawn.mean() - 0.5) < 0.08
    np.testing.assert_array_equal(drawn, controls.without(TRAIN, DEV, TEST, PLANTED).mean())
    again = controls.random_units(TRAIN, DEV, TEST, PLANTED, 5, samples=6)
    np.testing.assert_array_equal(again, controls.random_units(TRAIN, DEV, TEST, PLANTED, 5, samples=6))
    assert (controls.random_units(TRAIN, DEV, TEST, 3, HIDDEN - 1, samples=2) > 0.78).all()


def test_the_planted_unit_is_on_top_of_every_resample_and_noise_is_not():
    assert controls.stability(TRAIN) == [PLANTED] * controls.SAMPLES
    noise = Examples(TRAIN.x, np.random.default_rng(5).integers(0, 2, len(TRAIN.y)))
    assert len(set(controls.stability(noise))) > 1


def test_a_resampled_class_is_as_large_as_it_is(monkeypatch):
    seen = []
    top_unit = probe.top_unit
    monkeypatch.setattr(probe, "top_unit", lambda x, y: (seen.append(y), top_unit(x, y))[1])
    rare = Examples(TRAIN.x, (np.arange(400) < 3).astype(np.int64))
    controls.stability(rare, samples=20)
    assert len(seen) == 20 and all(y.sum() == 3 and len(y) == 400 for y in seen)


def test_label_efficiency_ends_at_what_the_whole_probe_and_the_unit_reach():
    learnt = controls.label_efficiency(TRAIN, TEST, 0.5, PLANTED, samples=4)
    assert [row.n for row in learnt] == [1, 2, 5, 10, 20, 50, 100, 200, 400]
    (whole,) = probe.fit_each(TRAIN, [(None, 0.5)])
    unit = probe.measure_unit(*TRAIN, PLANTED)
    alone = probe.unit_right(TEST.x[:, PLANTED], TEST.y, unit.sign, unit.threshold).mean()
    # Rows in another order, so that liblinear ends elsewhere within its tolerance.
    assert learnt[-1].mean_all == pytest.approx(probe.accuracy(whole, *TEST), abs=0.01)
    assert learnt[-1].mean_unit == alone and learnt[-1].deviation_all == learnt[-1].deviation_unit == 0
    assert (
        learnt[0].mean_all == learnt[0].mean_unit == pytest.approx(0.5, abs=0.1)
    )  # one label: all texts are called so
    assert learnt[4].mean_unit > 0.75 and learnt[-1].mean_all > 0.78
    assert learnt[2].deviation_all > 0


def test_noise_is_not_learnt_from_any_number_of_labels():
    noise, test = examples(400, 3, strength=0), examples(600, 4, strength=0)
    learnt = controls.label_efficiency(noise, test, 0.5, PLANTED, samples=4)
    assert all(abs(row.mean_all - 0.5) < 0.07 and abs(row.mean_unit - 0.5) < 0.07 for row in learnt)


@pytest.mark.parametrize("commoner", [0, 1])
def test_few_labels_start_at_the_majority(commoner):
    rng = np.random.default_rng(5)
    draw = lambda n: Examples(
        rng.normal(size=(n, HIDDEN)).astype(np.float32), np.where(rng.random(n) < 0.7, commoner, 1 - commoner)
    )
    train, test = draw(400), draw(300)
    majority = float(np.mean(test.y == commoner))
    first, *_ = controls.label_efficiency(train, test, 0.5, PLANTED, samples=4)
    assert (first.n, first.mean_all, first.mean_unit) == (1, majority, majority)
    assert first.deviation_all == first.deviation_unit == 0
    # With a penalty that leaves no unit, no number of labels takes the probe below it.
    nothing = controls.label_efficiency(train, test, 1e-4, PLANTED, samples=4)
    assert [row.mean_all for row in nothing] == [pytest.approx(majority)] * len(nothing)


def test_test_labels_change_no_fit_of_label_efficiency(monkeypatch):
    flipped = TEST._replace(y=1 - TEST.y)
    one, other = (controls.label_efficiency(TRAIN, t, 0.5, PLANTED, samples=3) for t in (TEST, flipped))
    for a, b in zip(one, other, strict=True):
        assert (a.mean_all, a.mean_unit) == (pytest.approx(1 - b.mean_all), pytest.approx(1 - b.mean_unit))


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_in_a_draw_the_classes_take_turns(labels, seed):
    y = np.array(labels)
    order = controls._by_turns(y, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(y)))
    turns = 2 * min(np.sum(y == 0), np.sum(y == 1))
    taken = y[order][:turns]
    assert (taken[::2] != taken[1::2]).all()
