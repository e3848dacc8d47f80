"""Scored reviews as one HTML page: the share that is positive, means by a column, extremes, what could not be read."""

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlstm_jax import unit_record
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.report import heatmap, plots
from mlstm_jax.sentiment import sections
from mlstm_jax.sentiment.probe import share_interval
from mlstm_jax.sentiment.sections import NAMES, Section, drawn
from mlstm_jax.sentiment.tally import LONGEST, Extreme, Group, Tally
from mlstm_jax.text import printable
from mlstm_jax.unit_record import describe_classes

GROUPS = 60  # of a column that are listed; of months, the last
DRAWN = 36  # that are in the picture


def html(model: LanguageModel, tally: Tally, sources: Sequence[str], command: str) -> str:
    """The page of what was counted, of texts from these sources."""
    title = f"{tally.rows:,} reviews of {_listed(sources)}"
    with tempfile.TemporaryDirectory() as folder:
        parts = [_share(model, tally, sources, Path(folder))]
        if tally.by is not None and tally.scored:
            parts.append(_by_column(tally, tally.by, Path(folder)))
        for side, name in ((1, "positive"), (-1, "negative")):
            if extremes := tally.extremes(side):
                parts.append(_extremes(model, tally, extremes, name))
        if tally.unread:
            parts.append(_unread(tally))
        parts.append(sections.reproduce(model, command))
        return sections.html(parts, title, tally.record)


def _listed(sources: Sequence[str]) -> str:
    names = [Path(name).name if name != "-" else "standard input" for name in sources]
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _percent(count: int, n: int) -> str:
    """A share with its interval."""
    low, high = share_interval(count, n)
    return f"{count / n:.1%} [{low:.1%}, {high:.1%}]"


def _value_name(tally: Tally) -> str:
    record = tally.record
    return (
        f"{NAMES[record.feature]} of unit {record.unit} ({'higher' if record.sign > 0 else 'lower'} is more positive)"
    )


def _share(model: LanguageModel, tally: Tally, sources: Sequence[str], folder: Path) -> Section:
    """How good the unit is, how many reviews are positive, and a histogram of their values."""
    record, scored = tally.record, tally.scored
    rows = [("scored", f"{scored:,} of {tally.rows:,} rows")]
    rows += [("classes", describe_classes(record.negative, record.positive))]
    rows += [("threshold", f"{record.threshold:.4g}, by {record.threshold_by} on the training texts")]
    rows += [("weights", model.name), ("input", _listed(sources))]
    words = "Whether a review is positive is the unit's guess."
    if unit_record.is_weak(record):
        words = f"{words} This unit hardly tells positive from negative: do not rely on these figures."
    if not scored:
        return Section("Share positive", words, rows)
    shares = [("positive", tally.positive), ("negative", scored - tally.positive)]
    rows = [(name, f"{count:,}, {_percent(count, scored)}") for name, count in shares] + rows
    words += " In brackets: 95 % intervals (Wilson) of the shares; the unit's own errors come on top."
    title = f"Values of {scored:,} reviews, from their 1st to their 99th percentile"
    edges, counts = tally.histogram.bars(outside=0.01)
    value_name = _value_name(tally)
    draw = lambda path: plots.distribution(edges, counts, path, title, value_name, record.threshold, record.sign)
    return Section("Share positive", words, rows, None, drawn(folder, ("histogram", title, draw)))


def _by_column(tally: Tally, by: str, folder: Path) -> Section:
    """The mean value and the share positive for each value of a column."""
    reading, groups = tally.column.groups()
    title = f"Mean value by {by}" + f" ({reading})" * bool(reading)
    show = lambda group: (
        group.name,
        f"{group.reviews:,}",
        f"{group.mean:.3g} [{group.low:.3g}, {group.high:.3g}]",
        _percent(group.positive, group.reviews),
    )
    words = "In brackets: 95 % intervals."
    shown = lambda most: groups[-most:] if reading else groups[:most]
    if len(groups) > GROUPS:
        words += f" The {'last' if reading else 'first'} {GROUPS} of {len(groups):,} are shown."
    draw = lambda path: _draw_means(shown(DRAWN), path, title, _value_name(tally))
    header = (by, "reviews", "mean value", "positive")
    return Section(f"By {by}", words, list(map(show, shown(GROUPS))), header, drawn(folder, ("by", title, draw)))


def _draw_means(groups: Sequence[Group], path: Path, title: str, value_name: str) -> Path:
    mean, low, high = (np.array([getattr(group, name) for group in groups]) for name in ("mean", "low", "high"))
    return plots.means([group.name for group in groups], (mean, low, high), path, title, value_name)


def _extremes(model: LanguageModel, tally: Tally, extremes: Sequence[Extreme], name: str) -> Section:
    """The reviews of one end, byte by byte."""
    shown = model.heatmap([extreme.review.text for extreme in extremes], task=tally.record.task)
    places = ", ".join(f"{tally.place(extreme.review)} ({extreme.value:.3g})" for extreme in extremes)
    words = (
        f"The {len(extremes)} reviews of at most {LONGEST:,} characters in which the unit ends most {name}, the most "
        f"{name} first. Their lines, and the unit's last values: {places}."
    )
    return Section(f"Most {name}", words, heat=[heatmap.html(*shown)])


def _unread(tally: Tally) -> Section:
    """Rows without a value: how many, why, and the first of them."""
    counts = ", ".join(f"{count:,} {reason}" for reason, (count, _, _) in tally.without.items())
    rows = [
        (tally.place(review), review.note or "", textwrap.shorten(printable(review.text), 100))
        for review in tally.unread
    ]
    words = f"Rows without a value: {counts}." + f" The first {len(rows)} are shown." * (
        len(rows) < tally.rows - tally.scored
    )
    return Section("Rows that could not be read", words, rows, ("line", "why", "text"))
