"""The results of an evaluation as sections: a summary, a table, pictures; printed, or put into a report."""

import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from mlstm_jax import storage, unit_record
from mlstm_jax.disk import atomic
from mlstm_jax.inference.encode import Feature
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.progress import progress
from mlstm_jax.report import heatmap, html_page, plots
from mlstm_jax.sentiment import clamp_effect, controls, evaluation, probe
from mlstm_jax.sentiment.evaluation import Found, Model
from mlstm_jax.tasks import Folds, Task
from mlstm_jax.tasks.sets import BINARY
from mlstm_jax.text import printable, to_bytes
from mlstm_jax.text import show as show_text
from mlstm_jax.unit_record import UnitRecord, describe_classes, is_weak, verdict

NAMES: dict[Feature, str] = {"cell": "cell state", "tanh_cell": "tanh of the cell state", "hidden": "hidden state"}
SHORT = 1000  # characters of a text that is shown byte by byte
SAMPLES = 3  # of each value of the clamp that are shown side by side
INTERVAL = "In brackets: 95 % intervals (Wilson)."


class Picture(NamedTuple):
    """A picture that was drawn, and what draws it into another file, whose ending says in which form."""

    path: Path
    caption: str
    draw: Callable[[Path], Path]


class Section(NamedTuple):
    """A part of an evaluation: words, a table with or without a header, pictures, texts in columns, heat maps."""

    title: str
    words: str
    rows: list[tuple[str, ...]] = []
    header: tuple[str, ...] | None = None
    pictures: list[Picture] = []
    columns: list[tuple[str, list[str]]] = []
    heat: list[str] = []


def percent(right: Bool[np.ndarray, "n"]) -> str:
    """An accuracy with its interval."""
    low, high = probe.interval(right)
    return f"{right.mean():.2%} [{low:.1%}, {high:.1%}]"


def drawn(folder: Path, *pictures: tuple[str, str, Callable[[Path], Path]]) -> list[Picture]:
    """Draw pictures: names, captions, and what draws them. One that cannot be drawn is left out; a line says so."""
    attempts = [
        (plots.attempt(partial(draw, folder / f"{name}.png"), caption), caption, draw)
        for name, caption, draw in pictures
    ]
    return [Picture(path, caption, draw) for path, caption, draw in attempts if path]


def guessing(majority: float | None) -> dict[str, float]:
    """What a picture of accuracies shows beside them."""
    return plots.CHANCE | ({} if majority is None else {"majority": majority})


def the_unit(model: Model, found: Found, folder: Path) -> Section:
    """What was found in one table, a histogram of the unit by label (figure 3 of the paper), the probe's weights."""
    record, test = found.record, found.test
    update = "" if record.update is None else f", update {record.update:,}"
    called = probe.retrieval(unit_record.positive(test.x[:, record.unit], record), test.y)
    rows = [
        ("task", f"{record.task}: {record.note}"),
        ("classes", describe_classes(record.negative, record.positive)),
        ("weights", model.name),
        ("model", f"{model.hidden:,} units{update}"),
        *[("validation bits per byte", f"{bits:.4f}") for bits in [model.validation_bits_per_byte] if bits is not None],
        ("feature", NAMES[record.feature]),
        ("test accuracy, all units", f"{percent(found.right_all)} (L1 probe, C = {record.c:g})"),
        ("units the probe uses", f"{record.units_used:,} of {model.hidden:,}"),
        ("top unit", f"{record.unit}, sign {'+' if record.sign > 0 else '-'} (the most accurate alone in training)"),
        ("test accuracy, that unit alone", percent(found.right_alone)),
        ("test accuracy, majority class", f"{record.accuracy_majority:.2%}"),
        ("its threshold", f"{record.threshold:.4g}, the best on the training texts by {record.threshold_by}"),
        (
            f"test texts it calls {record.positive}",
            f"precision {called.precision:.1%}, recall {called.recall:.1%}, F1 {called.f1:.1%}",
        ),
    ]
    title = f"Unit {record.unit} ({record.sign:+d}) on the {len(test.y):,} test texts of {record.task}"
    used = f"L1 probe: {record.units_used:,} of {len(record.coefficients):,} units used, C = {record.c:g}"
    values = test.x[:, record.unit]
    name = NAMES[record.feature]
    pictures = drawn(
        folder,
        (
            "histogram",
            title,
            lambda path: plots.histogram(values, test.y, path, title, name, record.threshold, record.sign),
        ),
        ("weights", used, lambda path: plots.weights(np.array(record.coefficients), path, used)),
    )
    return Section("The unit", INTERVAL, rows, None, pictures)


def rankings(found: Found, most: int = 5) -> Section:
    """The first units by each ranking; a unit without a coefficient has no place in that one."""
    ranked = probe.rank(found.probe, *found.train)
    show = lambda ranking, unit: f"{unit} ({'+' if ranking.sign[unit] > 0 else '-'}) {ranking.score[unit]:.3g}"
    columns = [
        [show(ranking, unit) for unit in ranking.order[:most].tolist() if ranking.score[unit] > 0]
        for ranking in ranked.values()
    ]
    words = "Unit, sign and score, all on the training texts; mutual information in bits. Scores of zero are left out."
    return Section("Three rankings", words, list(zip_longest(*columns, fillvalue="")), tuple(ranked))


def doubts(model: Model, task: Task, found: Found, folder: Path) -> list[Section]:
    """What speaks against the unit: random units, probes without it, other endings of a text, other features."""
    record, splits = found.record, (found.train, found.dev, found.test)
    others = len(record.coefficients) - 1
    probed = [("all units", others + 1, found.right_all), ("the unit alone", 1, found.right_alone)]
    if others:
        probed.append(("all without the unit", others, controls.without(*splits, record.unit)))
    rows = [(name, f"{units:,}", percent(right)) for name, units, right in probed]
    shown = [(name, float(right.mean()), *probe.interval(right)) for name, _, right in probed]
    for k in (k for k in (1, 10, 100) if k <= others):
        drawn_units = controls.random_units(*splits, record.unit, k)
        mean, deviation = float(drawn_units.mean()), float(drawn_units.std())
        rows.append(("random others", str(k), f"{mean:.2%} ± {deviation:.2%}"))
        shown.append((f"{k} random others", mean, mean - deviation, mean + deviation))
    tops = controls.stability(found.train)
    words = (
        f"Random units: mean and standard deviation over {controls.SAMPLES} samples. {INTERVAL} On {len(tops)} "
        f"resamples of the training texts, unit {record.unit} is {tops.count(record.unit)} times the most accurate."
    )
    title = f"Probes with and without unit {record.unit} on {record.task}"
    lines = guessing(record.accuracy_majority)
    pictures = drawn(folder, ("controls", title, lambda path: plots.accuracies(shown, path, title, lines)))
    ended = [
        (row.name, percent(row.right_all), percent(row.right_alone), f"{row.shift:+.2f}")
        for row in evaluation.endings(model, task, found)
    ]
    beside = []
    for feature, name in NAMES.items():
        other = found if feature == record.feature else evaluation.find(model, task, feature)
        units = (str(other.record.unit), str(other.record.units_used))
        beside.append((name, percent(other.right_all), percent(other.right_alone), *units))
    return [
        Section(
            "With and without the unit",
            words,
            rows,
            ("probe on", "units", "test accuracy"),
            pictures,
        ),
        Section(
            "Texts that end otherwise",
            "The unit's shift is the mean change of its value, in deviations within classes.",
            ended,
            ("ending", "all units", "unit alone", "shift"),
        ),
        Section(
            "What is read of the state",
            INTERVAL,
            beside,
            ("feature", "all units", "top unit alone", "top unit", "units used"),
        ),
    ]


def label_efficiency(found: Found, folder: Path) -> Section:
    """Accuracy against the number of labelled texts (figure 2 of the paper)."""
    record = found.record
    learnt = controls.label_efficiency(found.train, found.test, record.c, record.unit)
    title = f"Unit {record.unit} and all units on {record.task}, by labelled texts"
    all_units, alone = ([(row.n, *row[first : first + 2]) for row in learnt] for first in (1, 3))
    published = plots.PUBLISHED if record.task == "sst" else {}
    lines = guessing(record.accuracy_majority)
    draw = lambda path: plots.label_efficiency(all_units, alone, path, title, published, lines)
    show = lambda mean, deviation: f"{mean:.2%} ± {deviation:.2%}"
    rows = [(f"{row.n:,}", show(*row[1:3]), show(*row[3:5])) for row in learnt]
    words = (
        f"Mean and standard deviation over {controls.SAMPLES} samples of the labelled texts, in which the classes take "
        "turns. One text, or a probe that uses no unit, answers the commoner class. The unit was found with all "
        "labels; its sign and threshold are learnt from these alone."
    )
    header = ("labelled texts", "all units", "unit alone")
    return Section("Label efficiency", words, rows, header, drawn(folder, ("label_efficiency", title, draw)))


def over_training(runs: Sequence[Path], task: Task, model: Model, feature: Feature, folder: Path) -> Section:
    """The best unit and all units at checkpoints of runs, each read in the model's precision."""
    curves, rows, names = {}, [], [path.name for path in runs]
    for path in runs:
        name = path.name if names.count(path.name) == 1 else storage.name(path)
        checkpoints = evaluation.over_training(path, task, feature, model.precision)
        curves[name] = plots.Curve(
            np.array([one.bytes_read for one in checkpoints]),
            np.array([one.bits_per_byte for one in checkpoints]),
            _accuracies([one.right_all for one in checkpoints]),
            _accuracies([one.right_alone for one in checkpoints]),
        )
        bits = lambda one: "" if np.isnan(one.bits_per_byte) else f"{one.bits_per_byte:.4f}"
        rows += [
            (name, f"{one.update:,}", f"{one.bytes_read / 1e6:,.1f}", bits(one))
            + (percent(one.right_all), percent(one.right_alone), str(one.unit))
            for one in checkpoints
        ]
    title = f"The best unit{f' of {names[0]}' if len(runs) == 1 else ''} on {task.name}, over training"
    majority = probe.majority(evaluation.thinned(task.train).labels, evaluation.thinned(task.test).labels)
    draw = partial(plots.over_training, curves, title=title, guessing=guessing(majority))
    words = (
        f"On {evaluation.MOST:,} texts of each split at most, at checkpoints a factor of about 1.5 apart. At each, "
        "the probe is fitted anew, and the best unit is the one most accurate alone on the training texts. Bits per "
        "byte are interpolated between two scorings."
    )
    header = ("run", "update", "MB read", "validation bits per byte", "all units", "best unit alone", "unit")
    return Section("The unit over training", words, rows, header, drawn(folder, ("over_training", title, draw)))


def _accuracies(rights: Sequence[Bool[np.ndarray, "texts"]]) -> plots.Band:
    """Accuracies with their intervals, for a picture."""
    mean, low, high = np.array([(right.mean(), *probe.interval(right)) for right in rights]).T
    return mean, low, high


def band(estimates: Sequence[clamp_effect.Estimate]) -> plots.Band:
    """Estimates as arrays, for a picture."""
    mean, low, high = (np.array(column) for column in zip(*estimates, strict=True))
    return mean, low, high


def effect(model: LanguageModel, record: UnitRecord, folder: Path, num: int, length: int) -> Section:
    """What others think of what the model writes with the unit held."""
    measured = clamp_effect.measure(
        model, record, num=num, length=length, scorers=clamp_effect.available(), show_progress=True
    )
    names = list(measured[0].scores)
    title = f"Samples with unit {record.unit} held"
    ks = np.array([row.k for row in measured])
    scores = {name: band([row.scores[name] for row in measured]) for name in names}
    bits = band([row.bits_per_byte for row in measured])
    draw = lambda path: plots.clamp_effect(ks, scores, bits, path, title)
    show = lambda e: f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"
    rows = [
        (f"{row.k:+g}", f"{row.value:.3g}", *(show(row.scores[name]) for name in names), show(row.bits_per_byte))
        for row in measured
    ]
    ranks = ", ".join(f"{name} {value:+.2f}" for name, value in clamp_effect.monotone(measured).items())
    words = (
        f"{num} samples of {length} bytes for each value. Scorers that are not the model; rank correlation with the "
        f"clamp: {ranks}. Bits per byte under the model with no unit held: what the clamp costs in fluency."
    )
    header = ("deviations", "value", *names, "bits per byte")
    beside = [
        (f"{row.k:+g} deviations" if row.k else "neutral", row.texts[:SAMPLES])
        for row in measured
        if row.k in (-3, 0, 3)
    ]
    pictures = drawn(folder, ("clamp_effect", title, draw))
    return Section("Does the clamp work?", words, rows, header, pictures, beside)


def read(model: LanguageModel, task: Task, found: Found, most: int = 3) -> Section:
    """Test texts byte by byte, with their labels: those in which the unit is highest and lowest."""
    record, texts = found.record, task.test.texts
    order = np.argsort(record.sign * found.test.x[:, record.unit], kind="stable").tolist()
    short = [i for i in order if len(texts[i]) <= SHORT]
    shown = [*short[::-1][:most], *short[:most]]
    with progress("heat maps", 1, counted=True):
        coloured = model.heatmap([texts[i] for i in shown], task=record.task)
    right, wrong = "\u2713", "\u2717"  # a tick and a cross
    sides = [BINARY[label] for label in task.test.labels.tolist()]
    labels = [f"{right if found.right_alone[i] else wrong} {sides[i]}" for i in shown]
    words = (
        f"The {most} test texts of at most {SHORT:,} characters in which the unit ends most positive, and the {most} "
        f"in which most negative. Beside them their labels, {right} where the unit agrees and {wrong} where not."
    )
    return Section("The unit byte by byte", words, heat=[heatmap.html(*coloured, labels)])


def reproduce(model: Model, command: str) -> Section:
    """How to come by all this again."""
    packages = ("jax", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    rows = [
        ("command", command),
        ("weights, SHA-256", model.digest),
        ("precision", model.precision),
        ("versions", f"Python {platform.python_version()}, {versions}"),
    ]
    return Section("How to reproduce", "", rows)


def in_folds(model: Model, folds: Folds, feature: Feature) -> tuple[Section, dict[str, Any]]:
    """A cross-validation as a table, and as numbers."""
    done = evaluation.cross_validate(model, folds, feature)
    units = ", ".join(f"{unit} ({times} of {len(done.units)})" for unit, times in Counter(done.units).most_common(5))
    rows = [
        ("task", f"{folds.name}: {folds.note}"),
        ("classes", describe_classes(*folds.classes)),
        ("weights", model.name),
        ("feature", NAMES[feature]),
        ("accuracy, all units", percent(done.right_all)),
        ("accuracy, top unit alone", percent(done.right_alone)),
        ("top units", units),
        ("accuracy, majority class", f"{np.bincount(folds.all.labels).max() / len(folds.all.labels):.2%}"),
    ]
    words = f"Each fold has its own probe and its own top unit, so that no unit is recorded. {INTERVAL}"
    if empty := sum(not probe.units_used(fitted) for fitted in done.probes):
        words += f" {empty} of the probes use no unit."
    numbers = {
        "negative": folds.classes[0],
        "positive": folds.classes[1],
        "accuracy_all": float(done.right_all.mean()),
        "interval_all": probe.interval(done.right_all),
        "accuracy_alone": float(done.right_alone.mean()),
        "interval_alone": probe.interval(done.right_alone),
        "units": done.units,
        "c": [fitted.c for fitted in done.probes],
    }
    return Section("Ten folds", words, rows), {"task": folds.name, "note": folds.note, "feature": feature} | numbers


def of_classes(model: Model, task: Task, feature: Feature) -> tuple[Section, dict[str, Any]]:
    """A task of more than two classes as a table, and as numbers."""
    done = evaluation.classify(model, task, feature)
    bits = probe.mutual_information(*done.train)
    tops = np.argsort(-bits, kind="stable")[:5].tolist()
    majority = probe.majority(task.train.labels, task.test.labels)
    top = [probe.top_unit(done.train.x, (done.train.y == k).astype(np.int64)) for k in range(len(done.probes))]
    shown = lambda name: printable(show_text(to_bytes(name)))
    note = lambda p: "" if probe.units_used(p) else " (the probe uses no unit)"
    rows = [
        ("task", f"{task.name}: {task.note}"),
        ("weights", model.name),
        ("feature", NAMES[feature]),
        ("test accuracy, all units", f"{percent(done.right)} (L1 probes, C = {done.probes[0].c:g})"),
        ("test accuracy, majority class", f"{majority:.2%}"),
        *(
            (f"top unit, {shown(name)} or not", f"{unit}{note(p)}")
            for name, unit, p in zip(task.classes, top, done.probes, strict=True)
        ),
        ("most mutual information", ", ".join(f"{unit} ({bits[unit]:.3f} bits)" for unit in tops)),
    ]
    words = f"Each of the {len(task.classes)} classes has a probe against all others; no unit is recorded. {INTERVAL}"
    numbers = {
        "accuracy_all": float(done.right.mean()),
        "interval_all": probe.interval(done.right),
        "accuracy_majority": majority,
        "c": done.probes[0].c,
        "classes": task.classes,
        "top_units": top,
    }
    about = {"task": task.name, "note": task.note, "feature": feature}
    return Section(f"{len(task.classes)} classes", words, rows), about | numbers


def write(parts: list[Section], title: str, record: UnitRecord, path: Path) -> Path:
    """Write all sections as one HTML page, and its pictures as SVG beside it."""
    page = html(parts, title, record)
    with atomic(path) as file:
        file.write(page.encode())
    return path


def html(sections: list[Section], title: str, record: UnitRecord) -> str:
    """All sections as one page; the verdict and the contents come first."""
    anchors = [(part.title, re.sub(r"\W+", "-", part.title.lower()).strip("-")) for part in sections]
    blocks = [html_page.verdict(verdict(record), is_weak(record)), html_page.contents(anchors)]
    for part, (_, anchor) in zip(sections, anchors, strict=True):
        blocks.append(html_page.heading(part.title, anchor))
        blocks += [html_page.paragraph(part.words)] * bool(part.words)
        blocks += [html_page.table(part.rows, part.header or ())] * bool(part.rows)
        for path, caption, draw in part.pictures:
            svg = plots.attempt(partial(draw, path.with_suffix(".svg")), caption)
            blocks += [html_page.picture(svg, caption)] if svg else []
        blocks += [html_page.columns(part.columns)] * bool(part.columns)
        blocks += part.heat
    return html_page.page(title, blocks)


def show(part: Section) -> None:
    """Print a section's table and words, and where its pictures are."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)  # a path may hold what rich takes for markup
    table = Table(*(part.header or ()), title=printable(part.title), show_header=part.header is not None)
    for row in part.rows:
        table.add_row(*map(printable, row))
    console.print(table)
    if part.words:
        console.print(printable(part.words))
    for picture in part.pictures:
        print(printable(f"wrote {picture.path}"))
