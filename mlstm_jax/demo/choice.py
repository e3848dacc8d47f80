"""What a page shows: a model, a task that it was evaluated on, a unit; and what is known of that unit."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlstm_jax import unit_record
from mlstm_jax.demo.reading import Reader
from mlstm_jax.demo.writing import Writer
from mlstm_jax.inference import language_model
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model.cell import Held
from mlstm_jax.report import heatmap
from mlstm_jax.run import Run
from mlstm_jax.unit_record import UnitRecord


class Choice(NamedTuple):
    """`record` is that of the task, None where the model has none; `known` is it where it is of this very unit."""

    name: str
    model: LanguageModel
    tasks: list[str]
    unit: int
    record: UnitRecord | None
    known: UnitRecord | None


def offered(named: Path, runs: Path = Path("runs")) -> dict[str, Path]:
    """The models to choose from, by their names: the one that was named, every run with a checkpoint in `runs`, and
    the one that comes with the package.
    """
    others = [path.parent for path in sorted(runs.glob("*/checkpoints")) if Run(path.parent).steps()]
    packaged = language_model.PRETRAINED
    if packaged.exists() and not Path("pretrained").exists():
        others.append(packaged)
    found = [named, *(path for path in others if path.resolve() != named.resolve())]
    return {language_model.name_of(path): path for path in found}


@lru_cache(maxsize=2)
def opened(path: Path) -> LanguageModel:
    """A model that is ready: what reads and writes is compiled. Raises UserError where it cannot be."""
    model = language_model.load(path)
    model.require_bytes()
    reader = Reader(model, 0)
    reader.edit(b"\n")
    reader.advance()
    Writer(model.weights, reader.state).write(model.held({0: 0.0}))
    return model


def choose(name: str, path: Path, task: str | None = None, unit: int | None = None) -> Choice:
    """A unit of a model, by default that of the task's record; by default the task whose unit alone is most accurate.

    Raises UserError where there is no such unit.
    """
    model = opened(path)
    records = {record.task: record for record in unit_record.found(model.record_dirs, model.digest)}
    best = max(records.values(), key=lambda record: record.accuracy_alone, default=None)
    record = records.get(task or "", best)
    if unit is None:
        unit = record.unit if record else 0
    model.require_unit(unit)
    return Choice(name, model, list(records), unit, record, record if record and record.unit == unit else None)


def reader(choice: Choice) -> Reader:
    """What reads a text as it is typed."""
    return Reader(choice.model, choice.unit, choice.known.feature if choice.known else "cell")


def held_at(choice: Choice, k: float) -> Held:
    """The unit held `k` deviations from neutral, above 0 is positive; without a record, at the cell state `k`."""
    value = unit_record.clamp_value(choice.known, k) if choice.known else k
    return choice.model.held({choice.unit: value})


def described(choice: Choice) -> dict[str, Any]:
    """The choice for the page. A unit without a record has no scale but that of what it reads."""
    known, record = choice.known, choice.record
    shown = heatmap.draw([""], [np.zeros(3, np.float32)], choice.unit, known)
    return {
        "model": choice.name,
        "units": choice.model.hidden,
        "tasks": choice.tasks,
        "task": record.task if record else None,
        "unit": choice.unit,
        "known": known is not None,
        "verdict": unit_record.verdict(record) if record else None,
        "weak": unit_record.is_weak(record) if record else False,
        "classes": unit_record.describe_classes(known.negative, known.positive) if known else None,
        "scale": shown.scale._asdict() if known else None,
        "colours": shown.about.partition(": ")[2].removesuffix(f"; {unit_record.verdict(known)}") if known else None,
        "a": known.a if known else None,
        "b": known.b if known else None,
    }


def judged(choice: Choice, value: float) -> dict[str, Any]:
    """What a value says of the text that ends there; nothing without a record."""
    if choice.known is None:
        return {"value": value, "probability": None, "sentiment": None}
    values = np.array([value], np.float64)
    return {
        "value": value,
        "probability": float(unit_record.probability(values, choice.known)[0]),
        "sentiment": "positive" if unit_record.positive(values, choice.known)[0] else "negative",
    }
