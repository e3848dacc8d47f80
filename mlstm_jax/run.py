"""One run's folder: the path of everything in it, and its JSON files."""

import json
import logging
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlstm_jax import storage
from mlstm_jax.config import Config, from_dict, to_dict
from mlstm_jax.disk import atomic, is_sealed, locked, parse_json, read_json
from mlstm_jax.errors import Damaged, UserError

logger = logging.getLogger(__name__)

_OLD_METRICS = {"heldout_bits_per_byte": "validation_bits_per_byte"}  # names of version 0.1.0


class Line(NamedTuple):
    """A whole line of metrics.jsonl: what it says, and its bytes."""

    values: dict[str, Any]
    text: bytes


@dataclass(frozen=True)
class Run:
    """A run's folder, which need not exist yet."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """A folder for every checkpoint; absolute, as Orbax wants it."""
        return self.path.absolute() / "checkpoints"

    def checkpoint(self, update: int) -> Path:
        """The checkpoint of an update."""
        return self.checkpoints / str(update)

    @property
    def damaged(self) -> Path:
        """Where damaged checkpoints are moved."""
        return self.path / "damaged"

    @property
    def config_file(self) -> Path:
        """The config, so that a run resumes without the file that it was started with."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same metrics for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of updates."""
        return self.path / "profile"

    @property
    def loss_curve(self) -> Path:
        """The picture of a finished run."""
        return self.path / "loss_curve.png"

    @property
    def unit_records(self) -> Path:
        """The units found in its model, a file for each task."""
        return self.path / "units"

    @property
    def features(self) -> Path:
        """Features of texts, which can be made again."""
        return self.path / "features"

    def pictures(self, task: str) -> Path:
        """The pictures of an evaluation."""
        return self.path / "eval" / task

    def steps(self) -> list[int]:
        """The updates of which there are checkpoints, in order. Raises OSError where that cannot be known.

        Of a run in a bucket, those that are whole there.
        """
        if storage.is_remote(self.path):
            return storage.steps(self.checkpoints)
        return sorted(int(name) for name in storage.names(self.checkpoints) if re.fullmatch("0|[1-9][0-9]*", name))

    def fetch(self, update: int, parts: tuple[str, ...]) -> None:
        """Have these parts of a checkpoint, and its meta, on this machine. FileNotFoundError where it is gone."""
        if storage.is_remote(self.path):
            storage.fetch_step(self.checkpoints, update, (*parts, "meta"))

    def withdraw(self, update: int) -> None:
        """Remove from a bucket a checkpoint that was moved away here."""
        if storage.is_remote(self.path):
            storage.drop_step(self.checkpoints, update)

    def exists(self) -> bool:
        """Whether the folder is a run. Weights for a model hub have a config.json too, but no batch size in it."""
        if self.config_file.is_file():
            if self.checkpoints.is_dir():
                return True
            text = self.config_file.read_bytes()
            if b'"batch_size"' in text or b'"lanes"' in text:  # the name of version 0.1.0
                return True
        kept = storage.is_remote(self.path)  # then it is not on this machine yet
        return any(kept or (self.checkpoint(step) / "meta").is_dir() for step in self.steps())  # config.json is lost

    def is_free(self) -> bool:
        """Whether a new run may begin here: nothing is in the folder but an old lock."""
        if not storage.is_remote(self.path) and self.path.exists() and not self.path.is_dir():
            return False
        return all(name == ".lock" for name in storage.names(self.path))

    def lock(self, keep: int) -> AbstractContextManager[None]:
        """Hold the folder, which is made where it is missing. Raises UserError where another process trains in it.

        Of a run in a bucket, what is saved meanwhile is sent there, and the newest `keep` checkpoints stay.
        """
        if storage.is_remote(self.path):
            return storage.keeping(self.path, keep)
        self.path.mkdir(parents=True, exist_ok=True)
        return locked(self.path, "trained")

    def read_config(self) -> Config:
        """The config in config.json. Raises FileNotFoundError; ValueError, TypeError or KeyError for a damaged one."""
        return from_dict(read_json(self.config_file, {"model": dict}))

    def write_config(self, config: Config) -> None:
        """Keep a config as config.json."""
        with atomic(self.config_file) as file:
            file.write((json.dumps(to_dict(config), indent=2) + "\n").encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file.

        Lines that are not as they were written are left out, and counted on stderr: a crash may have cut one short.
        """
        return [line.values for line in self._lines()]

    def cut_metrics(self, update: int) -> None:
        """Drop the lines of metrics.jsonl beyond `update`, which will be done again, and damaged ones."""
        if self.metrics_file.exists():
            kept = [line.text + b"\n" for line in self._lines() if line.values["update"] <= update]
            with atomic(self.metrics_file) as file:
                file.write(b"".join(kept))

    def _lines(self) -> list[Line]:
        """The lines of metrics.jsonl that are as they were written."""
        path, found, damaged = self.metrics_file, [], 0
        if not path.exists():
            return []
        for text in filter(None, path.read_bytes().split(b"\n")):
            try:
                values = parse_json(text, str(path), {"update": int})
            except Damaged:
                damaged += 1
                continue
            intact = is_sealed(values)
            values.pop("checksum", None)  # lines of version 0.1.0 have none
            if intact and all(isinstance(value, int | float | None) for value in values.values()):
                found.append(Line({_OLD_METRICS.get(name, name): value for name, value in values.items()}, text))
            else:
                damaged += 1
        if damaged:
            logger.warning(f"{path}: {damaged} damaged line{'s are' if damaged > 1 else ' is'} left out")
        return found


def newest_run(runs: Path = Path("runs")) -> Run:
    """The run with the newest checkpoint. Raises UserError where there is none."""
    found = [Run(path.parent) for path in runs.glob("*/checkpoints")]
    newest = {run: max(run.checkpoint(step).stat().st_mtime for step in run.steps()) for run in found if run.steps()}
    if not newest:
        raise UserError(f"no run with a checkpoint in {runs}/; name a run's folder, or train one", "train")
    return max(newest, key=lambda run: newest[run])
