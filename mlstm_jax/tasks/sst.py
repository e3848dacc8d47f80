"""The Stanford Sentiment Treebank in the three CSV files of the paper."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mlstm_jax.errors import UserError
from mlstm_jax.tasks.sets import Split

CHECKSUMS = Path(__file__).with_name("checksums.tsv")
FILES = {split: f"{split}_binary_sent.csv" for split in ("train", "dev", "test")}
BY_HAND = (
    f"put {FILES['train']}, {FILES['dev']} and {FILES['test']} (from the paper's code release, "
    "github.com/openai/generating-reviews-discovering-sentiment, folder data) in a folder and name it with `data`"
)

OTHERWISE = {"task": "rotten_tomatoes"}  # what can be evaluated on without SST: it comes with the installed packages


def is_at_hand() -> bool:
    """Whether SST was fetched before, to where tensorflow-datasets keeps its sets, which is slow to import itself."""
    root = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(os.path.expanduser(root), "sst_binary", "1.0.0").is_dir()


def read_split(path: Path) -> Split:
    """One split of SST: a CSV file with the columns label (0 or 1) and sentence.

    Raises UserError, naming file and line, for whatever cannot be read so, and for a file without both classes.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; {BY_HAND}")
    texts, labels = [], []
    # Invalid UTF-8 is kept, as everywhere; newline="" leaves the line ends inside quotes to csv.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, strict=True)  # strict: a quote that is never closed is an error
        try:
            header = rows.fieldnames or ()
            for column in ("label", "sentence"):
                if column not in header:
                    raise UserError(f"{path}: no column {column!r}; its first line must be label,sentence")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                label = row["label"]
                if label not in ("0", "1"):
                    raise UserError(f"{where}: the label is {label!r}; make it 0 (negative) or 1 (positive)")
                if None in row or row["sentence"] is None:
                    raise UserError(
                        f"{where}: not as many columns as the first line; put a sentence with a comma in double quotes"
                    )
                texts.append(row["sentence"])
                labels.append(int(label))
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num + 1}: {error}; save the file as CSV again") from None
    count = Counter(labels)
    if len(count) != 2:
        raise UserError(f"{path}: {count[0]} negative and {count[1]} positive sentences; both classes are needed")
    return Split(texts, np.array(labels, np.int64))


def _is_release(paths: Iterable[Path]) -> bool:
    known = CHECKSUMS.read_text(encoding="utf-8")
    return all(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\t{path.name}\n" in known for path in paths)
