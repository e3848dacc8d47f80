"""Pictures are drawn whole, at their size, the same from the same data and different from different data."""

import os
import re
import subprocess
import sys
from ast import literal_eval
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pages import HOSTILE, Page
from mlstm_jax.report import html_page, plots

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 300)
VALUES = (LABELS + RNG.normal(size=300)).astype(np.float32)
METRICS = [{"update": u, "bits_per_byte": 8 / u**0.2} for u in range(1, 200)]
METRICS += [{"update": u, "validation_bits_per_byte": 8.1 / u**0.2} for u in range(50, 200, 50)]
ROWS = [(10, 0.6, 0.05), (100, 0.7, 0.03), (1000, 0.8, 0.01)]
KS = np.arange(-3, 4)
BAND = (KS / 10, KS / 10 - 0.05, KS / 10 + 0.05)


def draw_histogram(path, data=VALUES, threshold=0.5):
    return plots.histogram(data, LABELS[: len(data)], path, "Unit 3", "cell state", threshold)


def draw_weights(path, data=VALUES):
    return plots.weights(data, path, "Weights")


def draw_loss_curve(path, data=METRICS):
    return plots.loss_curve(data, path)


def draw_label_efficiency(path, data=ROWS, published=plots.PUBLISHED):
    return plots.label_efficiency(data, [(n, mean - 0.1, 0.01) for n, mean, _ in ROWS], path, "Labels", published)


def draw_accuracies(path, data=[("the unit", 0.8, 0.75, 0.85)], guessing={"chance": 0.5, "majority": 0.6}):  # noqa: B006
    return plots.accuracies(data, path, "Controls", guessing)


READ = 1e6 * 1.5 ** np.arange(7)


def draw_over_training(path, data=BAND):
    curve = plots.Curve(READ, 2 - KS / 10, BAND, data)
    return plots.over_training({"small": curve, "large": curve._replace(bytes_read=2 * READ)}, path, "Training")


def draw_clamp_effect(path, data=BAND):
    return plots.clamp_effect(KS, {"VADER": data, "bag of words": BAND}, BAND, path, "Held")


def pixels(path, height=675):
    from matplotlib.image import imread

    image = imread(path)
    assert image.shape == (height, 1200, 4)
    assert image[..., :3].std() > 0.01
    return image


@pytest.mark.parametrize(
    "draw, other",
    [
        (draw_histogram, VALUES + np.float32(3) * LABELS.astype(np.float32)),
        (draw_weights, VALUES[::-1]),
        (draw_loss_curve, METRICS[:150]),
        (draw_label_efficiency, [(n, mean + 0.05, 0.05) for n, mean, _ in ROWS]),
        (draw_accuracies, [("the unit", 0.8, 0.7, 0.85)]),
        (draw_over_training, (BAND[0], BAND[1] - 0.3, BAND[2])),
        (draw_clamp_effect, BAND[::-1]),
    ],
)
def test_pictures_depend_on_their_data_alone(tmp_path, draw, other):
    first, again, changed = draw(tmp_path / "new" / "a.png"), draw(tmp_path / "b.png"), draw(tmp_path / "c.png", other)
    assert first.read_bytes() == again.read_bytes()
    height = 810 if draw is draw_clamp_effect else 675  # it has three panels
    assert (pixels(first, height) != pixels(changed, height)).any()


DRAWN = [
    draw_histogram,
    draw_weights,
    draw_loss_curve,
    draw_label_efficiency,
    draw_accuracies,
    draw_over_training,
    draw_clamp_effect,
]


@pytest.mark.parametrize("draw", DRAWN)
def test_svg_has_no_paper_and_takes_the_ink_of_its_page(tmp_path, draw):
    path = draw(tmp_path / "a.svg")
    svg = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(svg)
    assert svg == draw(tmp_path / "new" / "a.svg").read_text(encoding="utf-8")
    painted = set(re.findall(r"(?:fill|stroke)[:=] ?\"?(#\w+|\w+)", svg))
    ours = {colour.lower() for colour in (plots.BLUE, plots.ORANGE, plots.GREY)}
    assert "currentColor" in painted <= ours | {"currentColor", "none", "#b0b0b0"}  # the last are the grid's lines
    assert svg.count("<style>") == 1 and "prefers-color-scheme: dark" in svg
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert names and all(name.startswith("a-") for name in names)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert {one or other for one, other in targets} <= set(names)


def test_several_svgs_in_a_page_share_no_name_and_no_style(tmp_path):
    pages = [html_page.picture(draw_histogram(tmp_path / f"{name}.svg"), f"{name} {HOSTILE}") for name in "ab"]
    names = [re.findall(r'id="([^"]+)"', page) for page in pages]
    assert not set(names[0]) & set(names[1])
    for page, name in zip(map(Page, pages), "ab", strict=True):
        assert "style" not in page.tags and "script" not in page.tags
        assert ("svg", "aria-label", f"{name} {HOSTILE}") in page.attributes
        assert page.parts["figcaption"] == [f"{name} {HOSTILE}"]


def test_a_title_of_others_is_no_markup_in_a_page(tmp_path):
    for hostile in (HOSTILE, f"--> {HOSTILE}", f']]>{HOSTILE} currentColor #000000 id="x'):
        page = Page(html_page.picture(plots.weights(VALUES, tmp_path / "a.svg", hostile), "calm"))
        assert {"script", "style", "iframe"}.isdisjoint(page.tags) and HOSTILE not in page.parts


def test_far_values_are_counted_in_the_outer_bins_and_squeeze_no_others(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr("matplotlib.axes.Axes.hist", lambda _, x, bins, **__: counted.append((x, bins)))
    values = np.linspace(-1, 1, 1000, dtype=np.float32)
    values[[3, 500]] = -1e6, 1e6
    plots.histogram(values, np.arange(1000) % 2, tmp_path / "a.png", "Unit 3", threshold=0.0)
    assert sum(len(x) for x, _ in counted) == 1000
    for x, bins in counted:
        assert -1 < bins[0] < -0.9 and 0.9 < bins[-1] < 1
        assert min(x) == pytest.approx(bins[0]) and max(x) == pytest.approx(bins[-1])


@pytest.mark.parametrize("sign, words", [(1, "\u2190 negative"), (-1, "\u2190 positive")])
def test_the_axis_says_which_side_is_which(tmp_path, monkeypatch, sign, words):
    said, figure = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda title, x, *ys: (said.append(x), figure(title, x, *ys))[1])
    plots.histogram(VALUES, LABELS, tmp_path / "a.png", "Unit 3", sign=sign)
    assert said[0].startswith(words)


@pytest.mark.parametrize("draw", [draw_label_efficiency, draw_accuracies, draw_over_training])
def test_pictures_of_accuracies_have_lines_of_guessing(tmp_path, monkeypatch, draw):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(tmp_path / "a.png")
    texts = [text.get_text() for text in drawn[0].findobj() if hasattr(text, "get_text")]
    assert any(text.startswith("chance 50") for text in texts)


def test_names_are_drawn_as_they_are(tmp_path):
    curve = plots.Curve(READ, 2 - KS / 10, BAND, BAND)
    path = plots.over_training({"$r_": curve}, tmp_path / "a.png", "Unit 3 on $x and 日本_$ " + "long " * 40)
    assert pixels(path)[:60, :, :3].min() < 0.5  # no warning, no formula, on several lines


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
    pixels(draw_label_efficiency(tmp_path / "none.png", [], {}))
    pixels(draw_label_efficiency(tmp_path / "one_row.png", ROWS[:1]))
    pixels(draw_accuracies(tmp_path / "none.png", [], {}))
    pixels(plots.over_training({}, tmp_path / "none.png", "None"))
    unknown = plots.Curve(READ, np.full(7, np.nan), BAND, BAND)
    pixels(plots.over_training({"a": unknown}, tmp_path / "unknown.png", "Unknown"))
    pixels(plots.clamp_effect(KS, {}, BAND, tmp_path / "no_scorer.png", "None"))
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


def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path, capsys):
    def broken(message):
        raise RuntimeError(message)

    (tmp_path / "file").write_bytes(b"")
    for draw, why in (
        (partial(broken, "no \x1b[31mfont\nand more"), "no \ufffd[31mfont"),
        (partial(broken, ""), "RuntimeError"),
        (partial(draw_histogram, tmp_path / "file" / "a.png"), "cannot write"),
    ):
        assert plots.attempt(draw, "loss curve") is None
        line = capsys.readouterr().err
        assert line.startswith("picture left out: loss curve: ") and why in line and line.count("\n") == 1
    assert plots.attempt(partial(draw_histogram, tmp_path / "a.png"), "histogram") == tmp_path / "a.png"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "svg", ""])
def test_the_backend_of_a_notebook_costs_no_picture(tmp_path, backend):
    code = """import os, pathlib, sys
from mlstm_jax.report import heatmap, plots
plots.weights(__import__("numpy").ones(3), pathlib.Path(sys.argv[1]), "Weights")
heatmap.png([[heatmap.Span("a", b"a", 0, 1.0)]], heatmap.Scale(-1, 0, 1), "about", pathlib.Path(sys.argv[2]))
print([os.environ["MPLBACKEND"], __import__("matplotlib").rcParams["backend"]])"""
    paths = tmp_path / "a.png", tmp_path / "b.png"
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after, used = literal_eval(done.stdout)
    assert after == backend and (used == "svg") == (backend == "svg")  # one that is there stays the user's choice
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted), st.floats(0.001, 0.2))
def test_labels_of_lines_do_not_overlap_and_stay_where_there_is_room(places, gap):
    moved = plots._apart(places, gap)
    assert all(b - a >= gap - 1e-9 for a, b in zip(moved, moved[1:], strict=False))
    if all(b - a >= gap for a, b in zip(places, places[1:], strict=False)):
        assert moved == pytest.approx(places)


def test_published_accuracies_are_drawn(tmp_path):
    with_lines, without = draw_label_efficiency(tmp_path / "a.png"), draw_label_efficiency(tmp_path / "b.png", ROWS, {})
    assert (pixels(with_lines) != pixels(without)).any()
    assert all(0.5 < accuracy < 1 for accuracy in plots.PUBLISHED.values())
