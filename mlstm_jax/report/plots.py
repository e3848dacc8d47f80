"""Pictures of a unit, of the probe, of training and of what holding the unit does. matplotlib is imported when one is
drawn.

A file's ending says which form it has. PNG is black on white: it is for slides, letters and pages whose paper is not
known. SVG has no paper and `currentColor` as its ink, for light and dark pages; a page inlines it.
"""

import contextlib
import io
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Real

from mlstm_jax.disk import atomic
from mlstm_jax.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a grey; seen on white and on dark paper.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito's

# Test accuracies on binary SST, as fractions: figure 2 of Radford et al. 2017 draws such lines.
PUBLISHED = {
    "RNTN": 0.854,  # Socher et al. 2013, Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank
    "byte mLSTM": 0.918,  # Radford et al. 2017, all 4,096 units
}

# What guessing reaches where the two classes are equally common.
CHANCE = {"chance": 0.5}

# A mean, and the low and the high end of its interval, at each place.
Band = tuple[Real[np.ndarray, "n"], Real[np.ndarray, "n"], Real[np.ndarray, "n"]]


def attempt(draw: Callable[[], Path], name: str) -> Path | None:
    """The picture that `draw` draws. Where it cannot be, None, and a line that says so: no picture costs a result."""
    try:
        return draw()
    except Exception as error:  # matplotlib, its settings, fonts and files: many errors, one meaning
        logger.warning(f"picture left out: {name}: {reason(error)}")
        return None


def reason(error: Exception) -> str:
    """Why a picture cannot be drawn, in one line."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "matplotlib":
        return "matplotlib is not installed (pip install matplotlib)"
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def import_matplotlib() -> None:
    """Import matplotlib, whatever MPLBACKEND names: no window is opened here.

    A notebook sets it for all that its cells start, and matplotlib refuses a backend that is not installed.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # for pictures that a notebook draws itself


def histogram(
    values: Float[np.ndarray, "n"],
    labels: Integer[np.ndarray, "n"],
    path: Path,
    title: str,
    value_name: str = "value of the unit",
    threshold: float | None = None,
    sign: int = 1,
) -> Path:
    """Draw a unit's values by label, 0 negative and 1 positive, as in figure 3 of Radford et al. 2017.

    `sign` is +1 where high values are positive, else -1. The outer bars count what lies beyond the 1st and the 99th
    percentile: a few far values would squeeze all others.
    """
    sides = ("negative", "positive")[::sign]
    beyond = "the outer bars count the hundredth beyond them at each side"
    figure, (axes,) = _figure(title, f"\u2190 {sides[0]}      {value_name}      {sides[1]} \u2192\n({beyond})", "texts")
    values = np.clip(values, *np.percentile(values, [1, 99]))
    bins = np.histogram_bin_edges(values, min(60, max(10, round(2 * len(values) ** 0.5))))
    for label, name, colour in ((0, "negative", ORANGE), (1, "positive", BLUE)):
        of_label = values[labels == label]
        axes.hist(
            of_label,
            bins.tolist(),
            label=f"{name} ({len(of_label):,})",
            histtype="stepfilled",
            facecolor=(colour, 0.45),
            edgecolor=colour,  # outlines tell them apart
        )
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linestyle="--", label=f"threshold {threshold:.3g}")
    axes.locator_params(axis="y", integer=True)
    axes.legend(frameon=False)
    return _save(figure, path)


def distribution(
    edges: Float[np.ndarray, "n_plus_one"],
    counts: Integer[np.ndarray, "n"],
    path: Path,
    title: str,
    value_name: str,
    threshold: float,
    sign: int,
) -> Path:
    """Draw how many texts have which values, those on the positive side of the threshold in another colour."""
    figure, (axes,) = _figure(title, value_name, "texts")
    above = sign * (edges[:-1] + edges[1:]) / 2 > sign * threshold
    for side, name, colour in ((~above, "negative", ORANGE), (above, "positive", BLUE)):
        if side.any():
            axes.bar(edges[:-1][side], counts[side], np.diff(edges)[side], align="edge", color=colour, label=name)
    axes.axvline(threshold, color=GREY, linestyle="--", label=f"threshold {threshold:.3g}")
    if sign < 0:
        axes.invert_xaxis()
    axes.legend(frameon=False)
    return _save(figure, path)


def means(names: Sequence[str], band: Band, path: Path, title: str, value_name: str) -> Path:
    """Draw the mean of each of several groups, one below the other, with its interval."""
    figure, (axes,) = _figure(title, value_name, "")
    figure.set_figheight(max(3.0, 1.6 + 0.28 * len(names)))
    mean, low, high = band
    rows = np.arange(len(names))
    axes.hlines(rows, low, high, color=BLUE, alpha=0.5, linewidth=2)
    axes.plot(mean, rows, "o", color=BLUE, markersize=5)
    axes.set_yticks(
        rows, [textwrap.shorten(printable(name), 40, placeholder="...") for name in names], parse_math=False
    )
    axes.set_ylim(len(names) - 0.4, -0.6)
    return _save(figure, path)


def weights(coefficients: Float[np.ndarray, "hidden"], path: Path, title: str) -> Path:
    """Draw the probe's absolute coefficients by unit, the largest marked with its number."""
    figure, (axes,) = _figure(title, "unit", "absolute weight in the probe")
    size = np.abs(coefficients)
    units = np.flatnonzero(size)
    axes.vlines(units, 0, size[units], color=BLUE, linewidth=1.2)
    axes.set_xlim(-0.02 * len(size), 1.02 * len(size))
    axes.set_ylim(0, 1.15 * size.max() or 1)
    if len(units):
        top = int(size.argmax())
        axes.plot(top, size[top], "o", color=ORANGE)
        axes.annotate(f"unit {top}", (top, size[top]), (0, 8), textcoords="offset points", ha="center")
    else:
        axes.text(0.5, 0.5, "the probe uses no unit", transform=axes.transAxes, ha="center", color=GREY)
    return _save(figure, path)


def loss_curve(metrics: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw bits per byte by update: of training ("bits_per_byte"; light, smoothed dark), of held-out bytes
    ("validation_bits_per_byte"; points). `metrics` are the lines of metrics.jsonl."""
    figure, (axes,) = _figure("Bits per byte", "update", "bits per byte")
    _whole(axes)
    updates, bits = _series(metrics, "bits_per_byte")
    axes.plot(updates, bits, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(updates, _smooth(bits), color=BLUE, linewidth=2, label="training, running mean")
    validation_updates, validation = _series(metrics, "validation_bits_per_byte")
    if len(validation):
        axes.plot(
            validation_updates,
            validation,
            "o",
            color=ORANGE,
            markersize=4,
            label=f"held out, last {validation[-1]:.3f}",
        )
    if len(bits):  # the fall of the first updates would flatten all that follows: its top leaves the picture
        shown = [*bits[len(bits) // 50 :], *validation]
        axes.set_ylim(0.98 * min(shown), 1.02 * max(shown))
    axes.legend(frameon=False)
    return _save(figure, path)


def accuracies(
    rows: Sequence[tuple[str, float, float, float]], path: Path, title: str, guessing: Mapping[str, float] = CHANCE
) -> Path:
    """Draw test accuracies with their intervals, one below the other. Rows are (name, accuracy, low, high), fractions.

    `guessing` are accuracies of guessing by name, dotted lines.
    """
    figure, (axes,) = _figure(title, "test accuracy (lines: intervals; of random units, ± one deviation)", "")
    for place, (_, accuracy, low, high) in enumerate(rows):
        axes.hlines(place, low, high, color=BLUE, linewidth=2)
        axes.plot(accuracy, place, "o", color=BLUE)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_as_percent)
    for (name, accuracy), style in zip(guessing.items(), (":", "--"), strict=False):
        axes.axvline(accuracy, color=GREY, linestyle=style, linewidth=1, label=f"{name} {accuracy:.1%}")
    if guessing:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=2)
    return _save(figure, path)


def label_efficiency(
    rows_all: Sequence[Sequence[float]],
    rows_unit: Sequence[Sequence[float]],
    path: Path,
    title: str,
    published: Mapping[str, float] = PUBLISHED,
    guessing: Mapping[str, float] = CHANCE,
) -> Path:
    """Draw test accuracy by the number of training labels, as in figure 2 of Radford et al. 2017.

    Rows are (labels, mean accuracy, deviation), of the probe on all units and of the one unit; the deviation is shaded.
    `published` are others' accuracies by name, dashed lines, `guessing` those of guessing, dotted ones. Names stand
    beside the lines' ends. Accuracies are fractions.
    """
    figure, (axes,) = _figure(title, "labelled texts, log scale (shaded: ± one deviation)", "test accuracy")
    ends = []
    for name, rows, colour, marker in (("all units", rows_all, BLUE, "o"), ("the unit", rows_unit, ORANGE, "s")):
        labels, mean, deviation = np.array(sorted(rows, key=tuple), np.float64).reshape(-1, 3).T
        _band(axes, labels, (mean, mean - deviation, mean + deviation), colour, marker)
        ends += [(float(last), name, colour) for last in mean[-1:]]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(_as_percent)
    _name_ends(axes, ends + _lines(axes, published, "--") + _lines(axes, guessing, ":"))
    return _save(figure, path)


class Curve(NamedTuple):
    """A run's checkpoints: how far it was trained, and test accuracies as fractions with their 95 % intervals."""

    bytes_read: Real[np.ndarray, "n"]
    bits_per_byte: Real[np.ndarray, "n"]  # validation; NaN where not known
    all_units: Band
    best_unit: Band


def over_training(runs: Mapping[str, Curve], path: Path, title: str, guessing: Mapping[str, float] = CHANCE) -> Path:
    """Draw test accuracies by bytes read, and below by validation bits per byte, a colour for each named run.

    Lines are of the best unit alone, dashed ones of all units. `guessing` are accuracies of guessing by name, dotted
    lines.
    """
    accuracy = "test accuracy\n(dashed: all units)"
    figure, (above, below) = _figure(title, "validation bits per byte", accuracy, accuracy, same_x=False)
    above.set_xlabel("text read (shaded: 95 % intervals of the best unit alone)")
    above.set_xscale("log")
    above.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} MB")
    below.invert_xaxis()
    for number, (name, curve) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        known = ~np.isnan(curve.bits_per_byte)
        for axes, x, at in ((above, curve.bytes_read, slice(None)), (below, curve.bits_per_byte, known)):
            mean, low, high = (part[at] for part in curve.best_unit)
            _band(axes, x[at], (mean, low, high), colour)
            axes.plot(x[at], curve.all_units[0][at], "--", color=colour, linewidth=1, label=name)
    for axes in (above, below):
        axes.yaxis.set_major_formatter(_as_percent)
        _name_ends(axes, _lines(axes, guessing, ":"), share=0.12)
    if len(runs) > 1:
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=3)
    return _save(figure, path)


def clamp_effect(ks: Real[np.ndarray, "n"], scores: Mapping[str, Band], bits: Band, path: Path, title: str) -> Path:
    """Draw each scorer's mean by the deviations at which the unit was held; last, bits per byte of the samples.

    Intervals of 95 % are shaded. Every scorer has its own axis, as VADER's 0.5 is not the 0.5 of a probability.
    """
    x = "deviations from neutral at which the unit is held (shaded: 95 % intervals)"
    figure, panels = _figure(title, x, *(f"score by\n{name}" for name in scores), "bits per byte\nof the samples")
    for panel, band in zip(panels, [*scores.values(), bits], strict=True):
        _band(panel, ks, band, GREY if band is bits else BLUE)
    panels[-1].set_xticks(ks)
    return _save(figure, path)


def _band(axes: "Axes", x: Real[np.ndarray, "n"], band: Band, colour: str, marker: str = "o") -> None:
    """A line with points; its intervals are shaded, and drawn at every point: one alone has no area."""
    mean, low, high = band
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.vlines(x, low, high, color=colour, alpha=0.5, linewidth=1)
    axes.plot(x, mean, marker=marker, color=colour, markersize=4)


def _lines(axes: "Axes", accuracies: Mapping[str, float], style: str) -> list[tuple[float, str, str]]:
    """A line at each accuracy; gives what `_name_ends` takes."""
    for accuracy in accuracies.values():
        axes.axhline(accuracy, color=GREY, linestyle=style, linewidth=1)
    return [(accuracy, name, GREY) for name, accuracy in accuracies.items()]


def _name_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]], share: float = 0.055) -> None:
    """Write names and accuracies beside the right ends of lines, at least this share of the axis apart."""
    ends = sorted(ends)
    low, high = axes.get_ylim()
    places = _apart([accuracy for accuracy, _, _ in ends], share * (high - low))
    across = axes.get_yaxis_transform()
    for (accuracy, name, colour), place in zip(ends, places, strict=True):
        line = dict(arrowstyle="-", color=colour, linewidth=0.8, shrinkA=2, shrinkB=0, relpos=(0, 0.5))
        axes.annotate(
            f"{name} {accuracy:.1%}",
            (1, accuracy),
            (1.03, place),
            xycoords=across,
            textcoords=across,
            arrowprops=line,
            fontsize=9,
            va="center",
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising places moved up and down to lie at least `gap` apart."""

    def pushed(places: Sequence[float]) -> list[float]:
        moved = []
        for place in places:
            moved.append(max(place, moved[-1] + gap) if moved else place)
        return moved

    # All the way up, all the way down: in between, the gaps are as wide, and a crowd stays around its middle.
    up, down = pushed(places), [-place for place in pushed([-place for place in places[::-1]])[::-1]]
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]


def _series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    rows = [(row["update"], row[key]) for row in metrics if row.get(key) is not None]
    updates, values = np.array(rows, np.float64).reshape(-1, 2).T
    return updates, values


def _smooth(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Running mean; its width grows with the updates done, as the curve flattens."""
    at = np.arange(len(values))
    first, last = at - at // 20, np.minimum(at + at // 20 + 1, len(values))
    total = np.concatenate([[0], np.cumsum(values)])
    return (total[last] - total[first]) / (last - first)


def _figure(title: str, x: str, *ys: str, same_x: bool = True) -> tuple["Figure", list["Axes"]]:
    """A figure, and a panel for every y, one below the other; x is the last one's, and by default the same for all."""
    import_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window, no state between pictures
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(8, max(4.5, 1.8 * len(ys))), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    panels = figure.subplots(len(ys), sharex=same_x, squeeze=False)[:, 0]
    for panel, y in zip(panels, ys, strict=True):
        panel.set_ylabel(y, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
    panels[0].set_title(textwrap.fill(title, 80), parse_math=False)  # a name may be long, and hold a $
    panels[-1].set_xlabel(x)
    figure.align_ylabels(panels)
    return figure, list(panels)


def _whole(axes: "Axes") -> None:
    """Whole numbers along x, in full."""
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _as_percent(fraction: float, _: float) -> str:
    """A tick's label."""
    return f"{100 * fraction:.4g}%"


def _save(figure: "Figure", path: Path) -> Path:
    with atomic(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box in a name is no reason for a warning
        if path.suffix == ".svg":
            file.write(_svg(figure, path.stem).encode())
        else:
            figure.savefig(file, format="png")
    return path


def _svg(figure: "Figure", name: str) -> str:
    """SVG whose ink is `currentColor`; alone in a window or in an image, dark ink on light and light on dark.

    Its identifiers begin with its name, so that several can stand in one page.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):  # drawn letters need no font
        figure.savefig(drawn := io.BytesIO(), format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue().decode()
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg).replace("#000000", "currentColor")
    # What matplotlib says in a style sheet that a page would take for its own, and the ink where no page gives one.
    ink = "<style>svg { color: #1a1a1a } @media (prefers-color-scheme: dark) { svg { color: #e6e6e3 } }</style>"
    return re.sub("<svg [^>]*>", rf'\g<0>{ink}<g fill="currentColor" stroke-linejoin="round">', svg, count=1).replace(
        "</svg>", "</g></svg>"
    )
