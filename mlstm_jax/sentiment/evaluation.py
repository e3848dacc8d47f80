"""A model evaluated on a task: features, the probe, the best unit, control experiments."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from mlstm_jax import progress, storage
from mlstm_jax.config import Precision
from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.inference.encode import Feature
from mlstm_jax.run import Run
from mlstm_jax.sentiment import probe
from mlstm_jax.sentiment.probe import Examples
from mlstm_jax.tasks import Folds, Task
from mlstm_jax.tasks.sets import FOLDS, Split
from mlstm_jax.text import frame
from mlstm_jax.training import checkpoint
from mlstm_jax.unit_record import UnitRecord

logger = logging.getLogger(__name__)


@runtime_checkable
class Model(Protocol):
    """What an evaluation needs of a LanguageModel."""

    path: Path
    hidden: int
    digest: str
    update: int | None
    validation_bits_per_byte: float | None
    precision: Precision

    @property
    def name(self) -> str:
        """What opens it."""
        ...

    @property
    def kept(self) -> Run:
        """The folder for what is kept of it."""
        ...

    def encode(
        self, texts: Sequence[str | bytes], feature: Feature = "cell", show_progress: bool = False
    ) -> Float[np.ndarray, "n hidden"]:
        """The feature after each text's last byte."""
        ...

    def trace_unit(
        self, texts: Sequence[str], unit: int, feature: Feature = "cell", show_progress: bool = False
    ) -> list[Float[np.ndarray, "_"]]:
        """One unit's feature after every byte of each text."""
        ...


class Found(NamedTuple):
    """The record of a unit, and what it was found in and tested on."""

    record: UnitRecord
    probe: probe.Probe
    train: Examples
    dev: Examples
    test: Examples
    right_all: Bool[np.ndarray, "n"]
    """Which test texts the probe labels rightly."""
    right_alone: Bool[np.ndarray, "n"]
    """Which the unit does."""


def find(model: Model, task: Task, feature: Feature, aim: str = "accuracy") -> Found:
    """The unit of a LanguageModel that tells a task's two classes apart; its record's threshold is the best by `aim`.

    How good the unit is, is said of its most accurate threshold. Every choice is made on train and dev; test labels
    enter what is right only.
    """
    train, dev, test = (
        Examples(features(model, split.texts, feature), split.labels) for split in (task.train, task.dev, task.test)
    )
    logger.info(f"fitting the probe on {len(train.y):,} texts")
    with progress.progress("fitting the probe", len(probe.STRENGTHS), counted=True) as done:
        tested = _test(train, dev, test, done=done)
    fitted, measure = tested.probe, tested.unit
    if not fitted.converged:
        logger.warning(f"the probe stopped before it converged (C = {fitted.c:g}): its weights are approximate")
    threshold = probe.best_threshold(train.x[:, measure.unit], train.y, measure.sign, aim)
    if not probe.units_used(fitted):
        logger.warning(
            f"the probe uses no unit: it calls every text {task.classes[int(fitted.intercept > 0)]}, the commoner class"
        )
    record = UnitRecord(
        digest=model.digest,
        update=model.update,
        task=task.name,
        note=task.note,
        feature=feature,
        **measure._replace(threshold=threshold)._asdict(),
        threshold_by=aim,
        c=fitted.c,
        coefficients=tuple(fitted.coefficients.tolist()),
        intercept=fitted.intercept,
        accuracy_all=float(tested.right_all.mean()),
        accuracy_alone=float(tested.right_alone.mean()),
        units_used=probe.units_used(fitted),
        negative=task.classes[0],
        positive=task.classes[1],
        interval_alone=probe.interval(tested.right_alone),
        accuracy_majority=probe.majority(train.y, test.y),
        scale=scale(model, task, measure.unit, feature),
    )
    return Found(record, fitted, train, dev, test, tested.right_all, tested.right_alone)


class Tested(NamedTuple):
    """The best unit alone and a probe on all units, and which test texts each labels rightly."""

    unit: probe.UnitMeasure
    probe: probe.Probe
    right_all: Bool[np.ndarray, "n"]
    right_alone: Bool[np.ndarray, "n"]


def _test(
    train: Examples, dev: Examples, test: Examples, *, done: Callable[[float], None] = lambda count: None
) -> Tested:
    """Probe and unit are found on train and dev; `done(1)` is called after each of the probe's fits."""
    fitted = probe.fit(*train, *dev, done)
    unit = probe.measure_unit(*train, probe.top_unit(*train))
    right_alone = probe.unit_right(test.x[:, unit.unit], test.y, unit.sign, unit.threshold)
    return Tested(unit, fitted, probe.right(fitted, *test), right_alone)


class Folded(NamedTuple):
    """Which texts are labelled rightly by the probe, and by the top unit, of the round that did not see them."""

    right_all: Bool[np.ndarray, "n"]
    right_alone: Bool[np.ndarray, "n"]
    probes: list[probe.Probe]
    units: list[int]


def cross_validate(model: Model, folds: Folds, feature: Feature) -> Folded:
    """Every fold tested once: C is chosen on the next fold, all else on the other eight (section 4.1 of the paper)."""
    x, y = features(model, folds.all.texts, feature), folds.all.labels
    done = Folded(np.zeros(len(y), bool), np.zeros(len(y), bool), [], [])
    with progress.progress("folds", FOLDS, counted=True) as advance:
        for k in range(FOLDS):
            parts = folds.parts(k)
            tested = _test(*(Examples(x[rows], y[rows]) for rows in parts))
            done.right_all[parts[2]], done.right_alone[parts[2]] = tested.right_all, tested.right_alone
            done.probes.append(tested.probe)
            done.units.append(tested.unit.unit)
            advance(1)
    return done


class Classified(NamedTuple):
    """Probes for each of several classes against the others, and which test texts get their own class."""

    probes: list[probe.Probe]
    right: Bool[np.ndarray, "n"]
    train: Examples


def classify(model: Model, task: Task, feature: Feature) -> Classified:
    """A task of more than two classes: no one unit is looked for, as a unit has two sides."""
    train, dev, test = (
        Examples(features(model, split.texts, feature), split.labels) for split in (task.train, task.dev, task.test)
    )
    probes = probe.fit_classes(train, dev)
    return Classified(probes, probe.right_class(probes, *test), train)


LONG = 1000  # characters


def scale(model: Model, task: Task, unit: int, feature: Feature, most: int = 200) -> tuple[float, float]:
    """The 1st and the 99th percentile of a unit's values after every byte of `most` training texts, evenly spread.

    Of each its first `LONG` characters: one long text should not take longer than all others.
    """
    places = np.linspace(0, len(task.train.texts) - 1, min(most, len(task.train.texts))).round().astype(int)
    texts = [task.train.texts[place][:LONG] for place in places]
    read = lambda: np.concatenate(model.trace_unit(texts, unit, feature, show_progress=True))
    values = _kept(model, ("trace", feature, str(unit), *map(frame, texts)), read)
    low, high = np.percentile(values.astype(np.float64), [1, 99]).tolist()
    return low, high


def features(model: Model, texts: Sequence[str | bytes], feature: Feature) -> Float[np.ndarray, "n hidden"]:
    """`model.encode(texts)`, kept on disk by the weights' digest, the precision, the feature and the bytes read."""
    read = [text if isinstance(text, bytes) else frame(text) for text in texts]
    return _kept(model, (feature, *read), lambda: model.encode(texts, feature=feature, show_progress=True))


def _kept(
    model: Model, what: Sequence[str | bytes], read: Callable[[], Float[np.ndarray, "..."]]
) -> Float[np.ndarray, "..."]:
    """What `read` gives, kept on disk by the weights' digest, the precision and `what` it is."""
    key = hashlib.sha256()
    for part in (model.digest, model.precision, *what):
        part = part.encode() if isinstance(part, str) else part
        key.update(len(part).to_bytes(8, "little") + part)
    path = model.kept.features / f"{key.hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError):  # missing or empty: read again
        kept = np.memmap(path, np.uint8, "r")
        if hashlib.sha256(kept[:-32].data).digest() == bytes(kept[-32:]):
            return np.load(path)
    values = read()
    with contextlib.suppress(UserError), atomic(path) as file:  # a folder that cannot be written has no cache
        np.save(whole := io.BytesIO(), values)
        file.write(whole.getbuffer())
        file.write(hashlib.sha256(whole.getbuffer()).digest())  # behind the array, where numpy does not look
    return values


# How a framed text, "\n TEXT ", may end. The unit is read after the last byte, so that this should not matter.
ENDINGS: dict[str, Callable[[bytes], bytes]] = {
    "as trained": lambda framed: framed,
    "a space less": lambda framed: framed[:-1],
    "a space more": lambda framed: framed + b" ",
    "a full stop more": lambda framed: framed[:-1] + b". ",
    "without full stops": lambda framed: framed.rstrip(b" .") + b" ",
}


class Ending(NamedTuple):
    """Test accuracies of the probe and of the unit where texts end otherwise than those they were fitted on."""

    name: str
    right_all: Bool[np.ndarray, "n"]
    right_alone: Bool[np.ndarray, "n"]
    shift: float
    """Mean change of the unit's value, in its deviations."""


def endings(model: Model, task: Task, found: Found) -> list[Ending]:
    """The probe and the unit on the test texts, ended in other ways (Donnelly and Roegiest 2019)."""
    record, rows = found.record, []
    threshold = probe.best_threshold(found.train.x[:, record.unit], found.train.y, record.sign)
    before = found.test.x[:, record.unit].astype(np.float64).mean()
    for name, end in ENDINGS.items():
        x = features(model, [end(frame(text)) for text in task.test.texts], record.feature)
        values = x[:, record.unit]
        alone = probe.unit_right(values, found.test.y, record.sign, threshold)
        shift = (values.astype(np.float64).mean() - before) / (record.deviation or 1)
        rows.append(Ending(name, probe.right(found.probe, x, found.test.y), alone, float(shift)))
    return rows


class Checkpoint(NamedTuple):
    """What a run's model was at one checkpoint: how far it was trained, and which test texts were labelled rightly."""

    update: int
    bytes_read: int
    bits_per_byte: float
    """Validation; interpolated between two scorings, NaN before the first."""
    right_all: Bool[np.ndarray, "n"]
    """By a probe on all units."""
    unit: int
    """The unit most accurate alone on the training texts."""
    right_alone: Bool[np.ndarray, "n"]
    """By that unit."""


MOST = 1000  # texts of each split that every checkpoint reads


def over_training(
    path: Path, task: Task, feature: Feature, precision: Precision, checkpoints: int = 12
) -> list[Checkpoint]:
    """A run's model at `checkpoints` of those that it keeps, on the `thinned` splits of a task.

    The probe and the best unit are found anew at each. The checkpoints lie a factor of about 1.5 apart, the last
    included. Raises UserError where there is none.
    """
    run, found = Run(path), []
    storage.fetch(run.path, lambda name: name in (run.config_file.name, run.metrics_file.name))
    splits = [thinned(split) for split in (task.train, task.dev, task.test)]
    updates = spaced(run.steps(), checkpoints)
    if not updates:
        raise UserError(f"{run.path} is no run with checkpoints")
    meta, bits = checkpoint.saved_meta(run), _validation(run)
    if meta is None:
        raise UserError(f"{run.path} has no checkpoint that is whole")
    with progress.progress("checkpoints", len(updates), counted=True) as done:
        for update in updates:
            try:
                model = language_model.load(run.path, update, precision)
            except UserError:
                if update in run.steps():
                    raise
                continue  # the run is training, and this checkpoint has made way for a newer one
            examples = [Examples(features(model, split.texts, feature), split.labels) for split in splits]
            tested = _test(*examples)
            read = update * meta.config.batch_size * meta.config.seq_length
            found.append(Checkpoint(update, read, bits(update), tested.right_all, tested.unit.unit, tested.right_alone))
            done(1)
    if not found:
        raise UserError(f"{run.path} has given up every checkpoint for newer ones meanwhile; try again")
    return found


def thinned(split: Split, most: int = MOST) -> Split:
    """At most `most` texts, drawn, in their order: a task may have its texts in order of their class."""
    rows = np.sort(np.random.default_rng(0).permutation(len(split.texts))[:most])
    return Split([split.texts[row] for row in rows], split.labels[rows])


def spaced(updates: Sequence[int], most: int, factor: float = 1.5) -> list[int]:
    """At most `most` of rising updates: the last, and those nearest to the last / `factor`, / `factor` squared ..."""
    if len(updates) <= most:
        return list(updates)
    at = np.array(updates, np.float64)
    targets = at[-1] / factor ** np.arange(most)
    return sorted({updates[int(np.argmin(np.abs(np.log(np.maximum(at, 1) / target))))] for target in targets})


def _validation(run: Run) -> Callable[[int], float]:
    """Validation bits per byte by update, from the run's metrics; NaN before they were first scored."""
    key = "validation_bits_per_byte"
    scored = {row["update"]: float(row[key]) for row in run.read_metrics() if row.get(key) is not None}
    if not scored:
        return lambda update: float("nan")
    updates = np.array(sorted(scored), np.float64)
    bits = np.array([scored[update] for update in sorted(scored)], np.float64)
    return lambda update: float(np.interp(np.log1p(update), np.log1p(updates), bits, left=np.nan))
