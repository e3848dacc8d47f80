"""Find the sentiment unit of a trained model: features, L1 probe, the unit; a table, pictures and the unit record.

python eval_sst.py                                   # the run with the newest checkpoint
python eval_sst.py runs/quickstart --task imdb
"""

import contextlib
import hashlib
import shlex
import sys
from json import dumps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from jaxtyping import Float

from mlstm_jax import plots, probe, units
from mlstm_jax.config import UserError, script
from mlstm_jax.disk import atomic
from mlstm_jax.text import frame
from mlstm_jax.units import UnitRecord

Feature = Literal["cell", "tanh_cell", "hidden"]
NAMES = {"cell": "cell state", "tanh_cell": "tanh of the cell state", "hidden": "hidden state"}
ENOUGH_UNITS = 1024  # below this, do not expect one unit to carry sentiment


def main(
    run: Path | None = None,
    /,
    *,
    task: Literal["sst", "imdb", "rotten_tomatoes"] = "sst",
    sst: Path | None = None,
    feature: Feature = "cell",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Find the unit that carries sentiment, by an L1 logistic regression on a model's features of labelled texts.

    Args:
        run: A run folder, or another program's weights; by default the run with the newest checkpoint.
        task: The labelled texts. SST is fetched once; the others come with the installed packages.
        sst: Folder with SST's three CSV files, instead of fetching them.
        feature: What is read of the state after a text's last byte. Only a unit of the cell can be held in sampling.
        json: Print one JSON object on stdout, and all else on stderr.
        out: Folder of the pictures; by default RUN/eval/TASK.
    """
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
        from mlstm_jax import lm, tasks  # late, because they import jax: --help stays quick

        model = lm.load(run)
        model.require_bytes()
        texts = tasks.load(task, sst)
        record, test_values = evaluate(model, texts, feature)
        saved = units.save(record, model.record_dir)
        pictures = draw(record, test_values, texts, out or model.work_dir / "eval" / task)
        # What calling every text by the commoner training label would reach.
        majority = float(np.mean(texts.test.labels == np.bincount(texts.train.labels).argmax()))
        report(model, record, majority, [saved, *pictures.values()])
    if json:
        found = units.summary(record)
        found |= {"weights": str(model.path), "hidden": model.hidden, "accuracy_majority": majority}
        found |= {"bits_per_byte_heldout": model.bits_per_byte_heldout, "record": str(saved)}
        print(dumps(found | {f"{name}_png": str(path) for name, path in pictures.items()}))


def evaluate(model: Any, task: Any, feature: Feature) -> tuple[UnitRecord, Float[np.ndarray, "n"]]:
    """The record of the unit found in a LanguageModel on a Task, and that unit's values on the test texts.

    Every choice is made on train and dev; test labels enter the two accuracies only.
    """
    train, dev, test = (features(model, split.texts, feature) for split in (task.train, task.dev, task.test))
    print(f"fitting the probe on {len(train):,} texts", file=sys.stderr)
    fitted = probe.fit(train, task.train.labels, dev, task.dev.labels)
    if not fitted.converged:
        print(f"the probe stopped before it converged (C = {fitted.c:g}): its weights are approximate", file=sys.stderr)
    unit = probe.top_unit(fitted, train, task.train.labels)
    measure = probe.measure_unit(train, task.train.labels, unit)
    record = UnitRecord(
        digest=model.digest,
        update=model.update,
        task=task.name,
        note=task.note,
        feature=feature,
        **measure._asdict(),
        c=fitted.c,
        coefficients=tuple(fitted.coefficients.tolist()),
        intercept=fitted.intercept,
        accuracy_all=probe.accuracy(fitted, test, task.test.labels),
        accuracy_alone=probe.unit_accuracy(test[:, unit], task.test.labels, measure.sign, measure.threshold),
        units_used=probe.units_used(fitted),
    )
    return record, test[:, unit]


def features(model: Any, texts: list[str], feature: Feature) -> Float[np.ndarray, "n hidden"]:
    """`model.encode(texts)`, kept on disk by the weights' digest, the precision, the feature and the framed texts."""
    key = hashlib.sha256()
    for part in (model.digest.encode(), model.precision.encode(), feature.encode(), *map(frame, texts)):
        key.update(len(part).to_bytes(8, "little") + part)
    path = model.work_dir / "features" / f"{key.hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged: encode again
        kept = np.load(path)
        if kept.shape == (len(texts), model.hidden) and kept.dtype == np.float32:
            return kept
    encoded = model.encode(texts, feature=feature, show_progress=True)
    with contextlib.suppress(UserError), atomic(path) as file:  # a folder that cannot be written has no cache
        np.save(file, encoded)
    return encoded


def draw(record: UnitRecord, test_values: Float[np.ndarray, "n"], task: Any, folder: Path) -> dict[str, Path]:
    """Draw histogram.png and weights.png; their paths by name, or none where matplotlib is missing."""
    found = f"Unit {record.unit} ({record.sign:+d}) on the {len(test_values):,} test texts of {record.task}"
    used = f"L1 probe: {record.units_used:,} of {len(record.coefficients):,} units used, C = {record.c:g}"
    histogram, weights = folder / "histogram.png", folder / "weights.png"
    try:
        plots.histogram(test_values, task.test.labels, histogram, found, NAMES[record.feature], record.threshold)
        plots.weights(np.array(record.coefficients), weights, used)
    except ImportError:
        print("matplotlib is not installed: pictures are left out", file=sys.stderr)
        return {}
    return {"histogram": histogram, "weights": weights}


def report(model: Any, record: UnitRecord, majority: float, files: list[Path]) -> None:
    """Print the table, what to make of it, and the command to try next."""
    from rich.console import Console
    from rich.table import Table

    percent = "{:.2%}".format
    update = "" if record.update is None else f", update {record.update:,}"
    table = Table(show_header=False)
    table.add_row("task", f"{record.task}: {record.note}")
    table.add_row("weights", str(model.path))
    table.add_row("model", f"{model.hidden:,} units{update}")
    if model.bits_per_byte_heldout is not None:
        table.add_row("held-out bits per byte", f"{model.bits_per_byte_heldout:.4f}")
    table.add_row("feature", NAMES[record.feature])
    table.add_row("test accuracy, all units", f"{percent(record.accuracy_all)} (L1 probe, C = {record.c:g})")
    table.add_row("units the probe uses", f"{record.units_used:,} of {model.hidden:,}")
    best = "the largest weight" if record.units_used else "the best alone on the training texts"
    table.add_row("top unit", f"{record.unit}, sign {'+' if record.sign > 0 else '-'} ({best})")
    table.add_row("test accuracy, that unit alone", percent(record.accuracy_alone))
    table.add_row("test accuracy, majority class", percent(majority))
    Console(markup=False, highlight=False).print(table)  # a path may hold what rich takes for markup
    for path in files:
        print(f"wrote {path}")
    if model.hidden < ENOUGH_UNITS:
        print(f"A model of {model.hidden} units is small: do not expect a sentiment unit below about {ENOUGH_UNITS}.")
    name = shlex.quote(str(model.path))
    if record.feature == "cell":
        print(f"Next: python sample.py {name} --sentiment +2")
    else:
        print(f"Next: python eval_sst.py {name} --task {record.task} --feature cell (only a cell state can be held)")


if __name__ == "__main__":
    script(lambda: tyro.cli(main))
