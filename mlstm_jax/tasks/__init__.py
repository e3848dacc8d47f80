"""Labelled sets to evaluate on: SST, the packaged reviews, the paper's sets in ten folds, and files of one's own."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mlstm_jax.config import UserError, require
from mlstm_jax.corpus import packaged
from mlstm_jax.tasks import published
from mlstm_jax.tasks.files import from_file
from mlstm_jax.tasks.published import NAMES
from mlstm_jax.tasks.sets import Folds, Split, Task

__all__ = ["NAMES", "Folds", "Split", "Task", "from_file", "load", "read_split"]

CHECKSUMS = Path(__file__).with_name("checksums.tsv")
FILES = {split: f"{split}_binary_sent.csv" for split in ("train", "dev", "test")}
BY_HAND = (
    f"put {FILES['train']}, {FILES['dev']} and {FILES['test']} (from the paper's code release, "
    "github.com/openai/generating-reviews-discovering-sentiment, folder data) in a folder and name it with --sst DIR"
)


def load(name: str, folder: Path | None = None, data_dir: Path | None = None) -> Task | Folds:
    """The task of this name, every split in its file's order.

    SST comes from the three CSV files in `folder`, else through tensorflow-datasets, which fetches it once into
    `data_dir` (None: its own default). MR, CR, SUBJ and MPQA come from files in `folder`, as Folds. "tfds:NAME" is a
    set of tensorflow-datasets, as `from_file` reads it; that and a file of one's own take keys there.
    Raises UserError for an unknown task, missing or malformed files, and an SST that cannot be fetched. Source: Radford
    et al. 2017, section 4; packaged reviews as in `corpus.packaged`.
    """
    known = f"{', '.join(NAMES)}, tfds:NAME"
    require(name in NAMES or name.startswith("tfds:"), f"unknown task {name!r}; there are: {known}")
    if name in published.PAIRS:
        return published.load(name, folder)
    require(folder is None or name == "sst", f"--sst DIR goes with the task sst, not with {name}")
    if name.startswith("tfds:"):
        require(data_dir is None, f"{name} is kept where TFDS_DATA_DIR says; leave data_dir out")
        return from_file(name)
    if name != "sst":
        return Task(name, "packaged split, not the paper's test set", **_packaged(name))
    if folder is not None:
        require(folder.is_dir(), f"no folder {folder}; {BY_HAND}")
        paths = {split: folder / file for split, file in FILES.items()}
        splits = {split: read_split(path) for split, path in paths.items()}
        source = "the paper's binary sentences" if _is_release(paths.values()) else "local files"
    else:
        splits = _fetched(data_dir)
        source = "the paper's binary sentences"
    return Task(name, f"{source}, {' / '.join(f'{len(split.texts):,}' for split in splits.values())}", **splits)


def read_split(path: Path) -> Split:
    """One split of SST: a CSV file with the columns label (0 or 1) and sentence.

    Raises UserError, naming file and line, for whatever cannot be read so, and for a file without both classes.
    """
    require(path.is_file(), f"no file {path}; {BY_HAND}")
    texts, labels = [], []
    # Invalid UTF-8 is kept, as everywhere; newline="" leaves the line ends inside quotes to csv.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, strict=True)  # strict: a quote that is never closed is an error
        try:
            header = rows.fieldnames or ()
            for column in ("label", "sentence"):
                require(column in header, f"{path}: no column {column!r}; its first line must be label,sentence")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                label = row["label"]
                require(label in ("0", "1"), f"{where}: the label is {label!r}; make it 0 (negative) or 1 (positive)")
                require(
                    None not in row and row["sentence"] is not None,
                    f"{where}: not as many columns as the first line; put a sentence with a comma in double quotes",
                )
                texts.append(row["sentence"])
                labels.append(int(label))
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num + 1}: {error}; save the file as CSV again") from None
    count = Counter(labels)
    require(len(count) == 2, f"{path}: {count[0]} negative and {count[1]} positive sentences; both classes are needed")
    return Split(texts, np.array(labels, np.int64))


def _packaged(source: str) -> dict[str, Split]:
    parts = {split: [] for split in FILES}
    for review in packaged.reviews(source):
        parts[packaged.split_of(review.text)].append(review)
    return {
        split: Split([review.text for review in part], np.array([review.label for review in part], np.int64))
        for split, part in parts.items()
    }


def _fetched(data_dir: Path | None) -> dict[str, Split]:
    try:
        from mlstm_jax.tasks import sst  # late: tensorflow-datasets takes a second, and only this task needs it

        return sst.load(data_dir)
    except ImportError as error:
        # Not only an incomplete installation: array_record is not built for every system.
        raise UserError(f"SST is fetched with tensorflow-datasets, which fails here ({error}); {BY_HAND}") from None


def _is_release(paths: Iterable[Path]) -> bool:
    known = CHECKSUMS.read_text(encoding="utf-8")
    return all(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\t{path.name}\n" in known for path in paths)
