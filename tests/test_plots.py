"""Pictures are drawn whole, at their size, the same from the same data and different from different data."""

import sys

import numpy as np
import pytest

from mlstm_jax import plots

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 300)
VALUES = (LABELS + RNG.normal(size=300)).astype(np.float32)
METRICS = [{"update": u, "bits_per_byte": 8 / u**0.2} for u in range(1, 200)]
METRICS += [{"update": u, "heldout_bits_per_byte": 8.1 / u**0.2} for u in range(50, 200, 50)]


def draw_histogram(path, data=VALUES, threshold=0.5):
    return plots.histogram(data, LABELS[: len(data)], path, "Unit 3", "cell state", threshold)


def draw_weights(path, data=VALUES):
    return plots.weights(data, path, "Weights")


def draw_loss_curve(path, data=METRICS):
    return plots.loss_curve(data, path)


def pixels(path):
    from matplotlib.image import imread

    image = imread(path)
    assert image.shape == (675, 1200, 4)
    assert image[..., :3].std() > 0.01
    return image


@pytest.mark.parametrize(
    "draw, other",
    [
        (draw_histogram, VALUES + np.float32(3) * LABELS.astype(np.float32)),
        (draw_weights, VALUES[::-1]),
        (draw_loss_curve, METRICS[:150]),
    ],
)
def test_pictures_depend_on_their_data_alone(tmp_path, draw, other):
    first, again, changed = draw(tmp_path / "new" / "a.png"), draw(tmp_path / "b.png"), draw(tmp_path / "c.png", other)
    assert first.read_bytes() == again.read_bytes()
    assert (pixels(first) != pixels(changed)).any()


def test_threshold_is_drawn(tmp_path):
    with_line, without = draw_histogram(tmp_path / "a.png"), draw_histogram(tmp_path / "b.png", threshold=None)
    assert (pixels(with_line) != pixels(without)).any()


def test_labels_are_told_apart(tmp_path):
    one = plots.histogram(VALUES, LABELS, tmp_path / "a.png", "Unit 3")
    other = plots.histogram(VALUES, 1 - LABELS, tmp_path / "b.png", "Unit 3")
    assert (pixels(one) != pixels(other)).any()


def test_empty_and_constant_data_are_drawn(tmp_path):
    pixels(draw_weights(tmp_path / "weights.png", np.zeros(16)))
    pixels(draw_weights(tmp_path / "one.png", np.ones(1)))
    pixels(draw_histogram(tmp_path / "histogram.png", np.zeros(4, np.float32), 0.0))
    pixels(draw_loss_curve(tmp_path / "empty.png", []))
    pixels(draw_loss_curve(tmp_path / "heldout.png", METRICS[-1:]))
    pixels(draw_loss_curve(tmp_path / "skipped.png", [{"update": 1, "bits_per_byte": None}, METRICS[1]]))


def test_smoothing_keeps_a_straight_line_and_the_first_updates():
    line = np.arange(100.0)
    assert plots._smooth(line)[:90] == pytest.approx(line[:90])
    noisy = RNG.normal(size=2000)
    assert plots._smooth(noisy)[1000:].std() < 0.3
    assert plots._smooth(noisy)[0] == noisy[0]


def test_pyplot_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    pixels(draw_histogram(tmp_path / "a.png"))
