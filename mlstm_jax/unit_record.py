"""The unit record: the unit of the weights that carries sentiment. Evaluation writes it, sampling reads it."""

import contextlib
import dataclasses
import json
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from mlstm_jax.disk import atomic, is_sealed, read_json, seal
from mlstm_jax.errors import UserError
from mlstm_jax.text import printable


@dataclass(frozen=True)
class UnitRecord:
    """A found unit, all that was measured of it, and the probe on all units beside it."""

    digest: str
    """SHA-256 of the weights in which the unit was found."""
    update: int | None
    """The update of those weights; None where they do not say."""
    task: str
    note: str
    """What the task's split is."""
    feature: Literal["cell", "tanh_cell", "hidden"]
    """"cell", "tanh_cell" or "hidden"."""
    unit: int
    sign: int
    """+1 where positive texts have the higher mean, else -1."""
    mean_negative: float
    mean_positive: float
    deviation: float
    """Standard deviation of the values around their class means."""
    threshold: float
    """A text is positive where sign * value > sign * threshold."""
    a: float
    """P(positive) = sigmoid(a * value + b)."""
    b: float
    c: float
    """Inverse strength of the probe's L1 penalty."""
    coefficients: tuple[float, ...] = dataclasses.field(repr=False)
    """The probe: a text is positive where features @ coefficients + intercept > 0."""
    intercept: float
    accuracy_all: float
    """Of the probe on the test texts."""
    accuracy_alone: float
    """Of the unit alone on the test texts, with the threshold that is most accurate on the training texts."""
    units_used: int
    """Units whose coefficient is not zero."""
    negative: str = "negative"
    """The task's own name of the class."""
    positive: str = "positive"
    interval_alone: tuple[float, float] | None = None
    """95 % interval of `accuracy_alone`; None in older records."""
    accuracy_majority: float | None = None
    """Test accuracy of always guessing the commoner class of the training texts; None as above."""
    scale: tuple[float, float] | None = None
    """The 1st and the 99th percentile of the unit's values after each byte of training texts; None in older records."""
    threshold_by: str = "accuracy"
    """What the threshold is the best by, on the training texts: "accuracy", "f1" or "precision=0.9"."""

    def __post_init__(self):
        known = self.feature in ("cell", "tanh_cell", "hidden") and self.sign in (-1, 1)
        named = re.fullmatch(r"[\w-]+", self.task)  # it becomes a file's name
        if not known or not named or not 0 <= self.unit < len(self.coefficients):
            raise UserError("not a unit record")
        counts = [self.unit, self.units_used] + [self.update] * (self.update is not None)
        words = (self.note, self.negative, self.positive, self.threshold_by)
        if not all(type(n) is int for n in counts):
            raise UserError("not a unit record")
        if not all(isinstance(word, str) for word in words):
            raise UserError("not a unit record")
        numbers = (self.mean_negative, self.mean_positive, self.deviation, self.threshold, self.a, self.b)
        numbers += (self.c, self.intercept, self.accuracy_all, self.accuracy_alone, *self.coefficients)
        numbers += (*(self.interval_alone or ()), self.accuracy_majority or 0.0, *(self.scale or ()))
        if not all(map(math.isfinite, numbers)):
            raise UserError("a unit record holds finite numbers only")
        if self.scale and self.scale[0] > self.scale[1]:
            raise UserError("not a unit record")


def save(record: UnitRecord, folder: Path) -> Path:
    """Write the record to `folder/<task>.json`, whole or not at all, and return that path."""
    path = folder / f"{record.task}.json"
    with atomic(path) as file:
        file.write(json.dumps(seal(dataclasses.asdict(record)), indent=1).encode())
    return path


def load(folders: list[Path], digest: str, task: str | None = None) -> UnitRecord:
    """The record of these weights for a task; None takes the only one.

    Raises UserError, with what finds the unit again, where there is none, where the weights are others
    (`digest` differs), and where the file is damaged; and, with their names, where there are several and no task.
    """
    named = task is None or re.fullmatch(r"[\w-]+", task)
    if not named:
        raise UserError(
            f"{task!r} names no unit record; that of a file of texts has the file's name without its ending"
        )
    several = found(folders, digest) if task is None else []
    if len(several) > 1:
        names = ", ".join(f"{record.task} (unit {record.unit})" for record in several)
        raise UserError(f"units of these weights were found on several tasks: {names}; name one with `task`")
    paths = [path for folder in folders for path in folder.glob(f"{task or '*'}.json")]
    paths = sorted(filter(Path.is_file, paths), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for path in paths:
        record = _read(path)
        if record.digest == digest:
            return record
    problem = f"{paths[0]} is of other weights" if paths else f"no unit record {folders[0] / (task or '*')}.json"
    raise UserError(f"{problem}; find the unit of these weights", *FIND, **_of(task))


def found(folders: list[Path], digest: str) -> list[UnitRecord]:
    """All records of these weights, one a task, by task; the first folder's come first."""
    records = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.json")) if path.is_file()):
        with contextlib.suppress(UserError):
            record = _read(path)
            if record.digest == digest:
                records.setdefault(record.task, record)
    return [records[task] for task in sorted(records)]


def summary(record: UnitRecord) -> dict[str, Any]:
    """A record's fields but for the coefficients, one number for every unit."""
    fields = dataclasses.asdict(record)
    del fields["coefficients"]
    return fields


def describe_classes(negative: str, positive: str) -> str:
    """What the two classes of a task are called, for people."""
    negative, positive = (textwrap.shorten(printable(name), 100, placeholder=" ...") for name in (negative, positive))
    return f"positive = {positive}, negative = {negative}"


CLEAR = 0.03  # the lower end of a unit's interval is this far above always guessing, or the unit is weak


def is_weak(record: UnitRecord) -> bool:
    """Whether the unit alone is not clearly better than guessing: its interval starts below majority + `CLEAR`.

    An older record does not say, and is not called weak.
    """
    if record.interval_alone is None or record.accuracy_majority is None:
        return False
    return record.interval_alone[0] < record.accuracy_majority + CLEAR


def verdict(record: UnitRecord) -> str:
    """How good the unit alone is, beside always guessing the commoner class, in one line."""
    alone, task = f"{record.accuracy_alone:.1%}", record.task
    name = f"unit {record.unit}" + f" ({record.feature})" * (record.feature != "cell")
    if record.interval_alone is None or record.accuracy_majority is None:
        return f"sentiment {name}: {alone} alone on {task}"
    low, high = record.interval_alone
    measured, guessing = f"{alone} [{low:.1%}, {high:.1%}]", f"{record.accuracy_majority:.1%}"
    found = "no sentiment unit; " if is_weak(record) else "sentiment "
    return f"{found}{name}: {measured} alone on {task}; always guessing the commoner class: {guessing}"


def clamp_value(record: UnitRecord, k: float) -> float:
    """The cell state at which to hold the unit: the midpoint of the class means + k * sign * deviation.

    k above 0 is positive whichever way the unit points. Raises UserError for a record of another feature: only the
    cell state can be held.
    """
    if record.feature != "cell":
        found = f"this unit was found in the feature {record.feature}, and only a cell state can be held; find it there"
        raise UserError(found, *FIND, **_of(record.task), feature="cell")
    return (record.mean_negative + record.mean_positive) / 2 + k * record.sign * record.deviation


def probability(values: Float[np.ndarray, "n"], record: UnitRecord) -> Float[np.ndarray, "n"]:
    """P(positive) = sigmoid(a * value + b), float64, without overflow and without loss of small ones."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN stays NaN
        return np.exp(-np.logaddexp(0.0, -(record.a * values.astype(np.float64) + record.b)))


def positive(values: Float[np.ndarray, "n"], record: UnitRecord) -> Bool[np.ndarray, "n"]:
    """Which values lie on the threshold's positive side, as `probe.unit_accuracy` has it, in float64."""
    return record.sign * values.astype(np.float64) > record.sign * record.threshold


FIND = ("eval", "RUN")  # the command that finds a unit


def other_weights(record: UnitRecord, path: Path) -> UserError:
    """The error that a record is not of the weights at `path`."""
    return UserError(f"this unit was found in other weights; find that of {path}", *FIND, **_of(record.task))


def _of(task):
    return {} if task in (None, "sst") else {"task": task}


def _read(path: Path) -> UnitRecord:
    try:
        fields = read_json(path, {"coefficients": list})
        if not is_sealed(fields):
            raise UserError(f"{path} does not fit its checksum")
        fields.pop("checksum", None)
        fields["coefficients"] = tuple(fields["coefficients"])
        for name in ("interval_alone", "scale"):
            if fields.get(name) is not None:
                low, high = fields[name]
                fields[name] = (low, high)
        return UnitRecord(**fields)
    except (UserError, TypeError, ValueError):
        raise UserError(f"{path} is damaged; find the unit again", *FIND, **_of(path.stem)) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
