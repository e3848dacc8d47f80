"""A run's folder: its paths, and the JSON in it."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from mlstm_jax.config import Config, to_dict
from mlstm_jax.disk import atomic, is_sealed, parse_json
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.text import log


def steps(run_dir: Path) -> list[int]:
    """The updates of which a run has checkpoints, in order. Raises OSError where that cannot be known."""
    try:
        names = os.listdir(folder(run_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def folder(run_dir: Path) -> Path:
    """Where a run's checkpoints lie; absolute, as Orbax wants it."""
    return run_dir.absolute() / "checkpoints"


def is_run(path: Path) -> bool:
    """Whether a folder is a run of ours; weights for a model hub have a config.json too, but no batch size in it."""
    config = path / "config.json"
    if config.is_file() and (
        folder(path).is_dir() or any(name in config.read_bytes() for name in (b'"batch_size"', b'"lanes"'))
    ):
        return True
    return any((folder(path) / str(step) / "meta").is_dir() for step in steps(path))  # its config.json is lost


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run with the newest checkpoint. Raises UserError where there is none."""
    newest = {
        run: max((folder(run) / str(step)).stat().st_mtime for step in steps(run))
        for run in (path.parent for path in runs.glob("*/checkpoints"))
        if steps(run)
    }
    if not newest:
        raise UserError(f"no run with a checkpoint in {runs}/; python train.py makes one, or name a run's folder")
    return max(newest, key=newest.get)


def write_config(run_dir: Path, config: Config) -> None:
    """Keep the config beside the checkpoints, so that a run resumes without its config file."""
    with atomic(run_dir / "config.json") as file:
        file.write((json.dumps(to_dict(config), indent=2) + "\n").encode())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Those that are not as they were written are left out, and counted on stderr.

    A crash may have cut one short, or left zeros.
    """
    return [row for row, _ in _whole_lines(run_dir / "metrics.jsonl")]


def _whole_lines(path):
    """What each line says, and the line."""
    found, damaged = [], 0
    for line in filter(None, path.read_bytes().split(b"\n")):
        try:
            row = parse_json(line, str(path), {"update": int})
        except Damaged:
            row = {"checksum": ""}
        if not is_sealed(row):
            damaged += 1
            continue
        row.pop("checksum", None)  # lines of version 0.1 have none
        if "heldout_bits_per_byte" in row:  # as version 0.1.0 called it
            row["validation_bits_per_byte"] = row.pop("heldout_bits_per_byte")
        if all(isinstance(value, int | float | None) for value in row.values()):
            found.append((row, line))
        else:
            damaged += 1
    if damaged:
        lines = f"{damaged} damaged line{'s are' if damaged > 1 else ' is'}"
        log(f"{path}: {lines} left out", sys.stderr)
    return found


def cut_back(path: Path, update: int) -> None:
    """Drop the lines of metrics.jsonl beyond `update`, and those that are damaged."""
    if path.exists():
        kept = [line + b"\n" for row, line in _whole_lines(path) if row["update"] <= update]
        with atomic(path) as file:
            file.write(b"".join(kept))
