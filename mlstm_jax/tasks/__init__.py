"""Labelled sets to evaluate on: SST, the packaged reviews, the paper's sets in ten folds, and files of one's own."""

from pathlib import Path

import numpy as np

from mlstm_jax.corpus import packaged
from mlstm_jax.errors import UserError
from mlstm_jax.tasks import published
from mlstm_jax.tasks.files import from_file
from mlstm_jax.tasks.published import NAMES
from mlstm_jax.tasks.sets import Folds, Split, Task
from mlstm_jax.tasks.sst import BY_HAND, FILES, OTHERWISE, _is_release, read_split

__all__ = ["NAMES", "Folds", "Split", "Task", "from_file", "load", "packaged_task", "read_split"]


def load(name: str, data: Path | None = None, data_dir: Path | None = None) -> Task | Folds:
    """The task of this name, every split in its file's order.

    SST comes from the three CSV files in the folder `data`, else through tensorflow-datasets, which fetches it once
    into `data_dir` (None: its own default). MR, CR, SUBJ and MPQA come from files there, as Folds. "tfds:NAME" is a
    set of tensorflow-datasets, as `from_file` reads it; that and a file of one's own take keys there.
    Raises UserError for an unknown task, missing or malformed files, and an SST that cannot be fetched. Source: Radford
    et al. 2017, section 4; packaged reviews as in `corpus.packaged`.
    """
    known = f"{', '.join(NAMES)}, tfds:NAME"
    if name not in NAMES and not name.startswith("tfds:"):
        raise UserError(f"unknown task {name!r}; there are: {known}")
    if name in published.PAIRS:
        return published.load(name, data)
    if data is not None and name != "sst":
        raise UserError(f"`data` goes with sst, mr, cr, subj and mpqa, not with {name}")
    if name.startswith("tfds:"):
        if data_dir is not None:
            raise UserError(f"{name} is kept where TFDS_DATA_DIR says; leave data_dir out")
        return from_file(name)
    if name != "sst":
        return packaged_task(name)
    if data is not None:
        if not data.is_dir():
            raise UserError(f"no folder {data}; {BY_HAND}")
        paths = {split: data / file for split, file in FILES.items()}
        splits = {split: read_split(path) for split, path in paths.items()}
        source = "the paper's binary sentences" if _is_release(paths.values()) else "local files"
    else:
        splits = _fetched(data_dir)
        source = "the paper's binary sentences"
    note = f"{source}, {' / '.join(f'{len(split.texts):,}' for split in splits.values())}"
    return Task(name, note, splits["train"], splits["dev"], splits["test"])


def packaged_task(source: str) -> Task:
    """The packaged reviews of a source. Raises UserError as `packaged.rows` does."""
    parts: dict[str, list[packaged.Review]] = {split: [] for split in FILES}
    for review in packaged.reviews(source):
        parts[packaged.split_of(review.text)].append(review)
    train, dev, test = (
        Split([review.text for review in part], np.array([review.label for review in part], np.int64))
        for part in (parts[split] for split in ("train", "dev", "test"))
    )
    return Task(source, "packaged split, not the paper's test set", train, dev, test)


def _fetched(data_dir: Path | None) -> dict[str, Split]:
    try:
        from mlstm_jax.tasks import (
            sst_download,  # late: tensorflow-datasets takes a second, and only this task needs it
        )

        return sst_download.load(data_dir)
    except ImportError as error:
        # Not only an incomplete installation: array_record is not built for every system.
        message = f"SST is fetched with tensorflow-datasets, which fails here ({error}); {BY_HAND}"
        raise UserError(message, "eval", "RUN", **OTHERWISE) from None
