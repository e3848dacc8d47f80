"""Pictures: a unit's values by label, the probe's weights, the loss curve. matplotlib is imported when one is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"


def histogram(
    values: Float[np.ndarray, "n"],
    labels: Integer[np.ndarray, "n"],
    path: Path,
    title: str,
    value_name: str = "value of the unit",
    threshold: float | None = None,
) -> Path:
    """Draw a unit's values by label, 0 negative and 1 positive, as in figure 3 of Radford et al. 2017. PNG."""
    figure, axes = _figure(title, value_name, "texts")
    bins = np.histogram_bin_edges(values, min(60, max(10, round(2 * len(values) ** 0.5))))
    for label, name, colour in ((0, "negative", ORANGE), (1, "positive", BLUE)):
        of_label = values[labels == label]
        axes.hist(of_label, bins, color=colour, alpha=0.55, label=f"{name} ({len(of_label):,})")
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linestyle="--", label=f"threshold {threshold:.3g}")
    axes.legend(frameon=False)
    return _save(figure, path)


def weights(coefficients: Float[np.ndarray, "hidden"], path: Path, title: str) -> Path:
    """Draw the probe's absolute coefficients by unit, the largest marked with its number. PNG."""
    figure, axes = _figure(title, "unit", "absolute weight in the probe")
    size = np.abs(coefficients)
    units = np.flatnonzero(size)
    axes.vlines(units, 0, size[units], color=BLUE, linewidth=1.2)
    axes.set_xlim(-0.02 * len(size), 1.02 * len(size))
    axes.set_ylim(0, 1.15 * size.max() or 1)
    if len(units):
        top = int(size.argmax())
        axes.plot(top, size[top], "o", color=ORANGE)
        axes.annotate(f"unit {top}", (top, size[top]), (0, 8), textcoords="offset points", ha="center", color=ORANGE)
    else:
        axes.text(0.5, 0.5, "the probe uses no unit", transform=axes.transAxes, ha="center", color=GREY)
    return _save(figure, path)


def loss_curve(metrics: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw bits per byte by update: of training ("bits_per_byte"; light, smoothed dark), of held-out bytes
    ("heldout_bits_per_byte"; points). `metrics` are the lines of metrics.jsonl. PNG."""
    figure, axes = _figure("Bits per byte", "update", "bits per byte")
    updates, bits = _series(metrics, "bits_per_byte")
    axes.plot(updates, bits, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(updates, _smooth(bits), color=BLUE, linewidth=2, label="training")
    heldout_updates, heldout = _series(metrics, "heldout_bits_per_byte")
    if len(heldout):
        axes.plot(heldout_updates, heldout, "o", color=ORANGE, markersize=4, label=f"held out, last {heldout[-1]:.3f}")
    if len(bits):  # the fall of the first updates would flatten all that follows: its top leaves the picture
        shown = [*bits[len(bits) // 50 :], *heldout]
        axes.set_ylim(0.98 * min(shown), 1.02 * max(shown))
    axes.legend(frameon=False)
    return _save(figure, path)


def _series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    rows = [(row["update"], row[key]) for row in metrics if row.get(key) is not None]
    return tuple(np.array(rows, np.float64).reshape(-1, 2).T)


def _smooth(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Running mean; its width grows with the updates done, as the curve flattens."""
    at = np.arange(len(values))
    first, last = at - at // 20, np.minimum(at + at // 20 + 1, len(values))
    total = np.concatenate([[0], np.cumsum(values)])
    return (total[last] - total[first]) / (last - first)


def _figure(title: str, x: str, y: str):
    from matplotlib.figure import Figure  # not pyplot: no window, no state between pictures

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
