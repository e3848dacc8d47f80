"""Any labelled file, a folder with one for each split, or a tensorflow-datasets set: texts of two classes or more."""

import math
import re
import reprlib
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlstm_jax.config import UserError, require
from mlstm_jax.corpus.packaged import split_of
from mlstm_jax.corpus.readers import COMPRESSIONS, KINDS, Source, chunks, parse, sources
from mlstm_jax.corpus.records import LABEL_KEYS, Keys
from mlstm_jax.tasks.published import NAMES
from mlstm_jax.tasks.sets import Split, Task
from mlstm_jax.text import EMPTY, decode, encode, frame, printable

SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}  # names of files
TRIPLE = "train.*, dev.* (or valid.*, validation.*) and test.*"
MOST_CLASSES = 100


class Labelled(NamedTuple):
    """A text that has a label, and its line or row."""

    line: int
    text: str
    label: str
    framed: bytes


def from_file(path: Path | str, text_key: str | None = None, label_key: str | None = None) -> Task:
    """The labelled texts of a CSV, TSV, JSON lines or Parquet file, split 80 / 10 / 10 by a hash of the text.

    A folder with train.*, dev.* (or valid.*, validation.*) and test.* keeps its splits, as does "tfds:NAME[/CONFIG]"
    of tensorflow-datasets; where there is no dev, a tenth of train is. No two splits share a framed text. Classes are
    the labels as text, sorted, as numbers where all are. One line on stderr counts what is left out: rows that are bad,
    without label or text, duplicates, and train texts that are in dev or test.
    Raises UserError for what cannot be read, for no label, one class, more than 100, and too few texts of a class.
    """
    keys, where = Keys(text_key, label_key), str(path)
    if where.startswith("tfds:"):
        require(where.count(":") == 1, f"{where}: name no split; train and test are taken")
        (train,), (test,) = (sources([f"{where}:{split}"]) for split in ("train", "test"))
        parts, kind = _fixed({"train": train, "test": test}, keys), "its own test split, dev by a hash of the text"
    elif Path(path).is_dir():
        found = _files_of(Path(path))
        parts = _fixed(found, keys)
        kind = "its own splits" if "dev" in found else "its own test split, dev by a hash of the text"
    else:
        found = sources([where])
        require(len(found) == 1, f"{where} matches {len(found)} files; name one, or a folder with {TRIPLE}")
        parts, kind = _by_hash(_distinct(found[0], keys), ("train", "dev", "test")), "split by a hash of the text"
    classes = _classes(where, [row.label for rows in parts.values() for row in rows])
    _require_enough(where, parts, classes)
    place = {name: i for i, name in enumerate(classes)}
    splits = {
        split: Split([row.text for row in rows], np.array([place[row.label] for row in rows], np.int64))
        for split, rows in parts.items()
    }
    sizes = " / ".join(f"{len(splits[split].texts):,}" for split in ("train", "dev", "test"))
    return Task(_name(where), f"{sizes}, {kind}", **splits, classes=classes)


def _files_of(folder: Path) -> dict[str, Source]:
    found = {}
    for source in sources([str(folder)]):
        file = Path(source.name)
        split = SPLITS.get(file.name.partition(".")[0].lower())
        if split and file.parent == folder:
            other = found.setdefault(split, source)
            require(other is source, f"{other.name} and {file} are both the {split} split; take one away")
    lacks = " and ".join(f"{split}.*" for split in ("train", "test") if split not in found)
    require(not lacks, f"{folder}: no {lacks}; a folder of labelled texts holds {TRIPLE}; or name one file")
    return found


# Rows


def _labelled(source: Source, keys: Keys, left: dict[str, list[int]]) -> list[Labelled]:
    """The rows that have a text and a label; the lines of the others in `left`, by what is wrong with them."""
    require(source.size != 0, f"{source.name} is empty; it needs texts with labels")
    plain = f"{source.name}: plain text has no labels; give CSV, TSV, JSON lines or Parquet"
    nameless = f"{source.name}: none of {', '.join(LABEL_KEYS)} is here; name the label with --label-key"
    rows, bad = [], None
    for chunk in _headed(source, keys):
        require(chunk.kind != "lines", plain)
        for line, text, label, wrong in parse(chunk):
            if wrong:
                bad = bad or f"that cannot be read (the first: {printable(wrong)})"
                left.setdefault(bad, []).append(line)
                continue
            require(chunk.keys.label, nameless)
            label, framed = decode(encode(label or "")).strip(), frame(text)
            if not label:
                left.setdefault("without a label", []).append(line)
            elif framed == EMPTY:
                left.setdefault("without a text", []).append(line)
            else:
                rows.append(Labelled(line, text, label, framed))
    return rows


def _headed(source, keys):
    """The chunks; of a CSV or TSV file whose first line does not fit it is said what such a line is for."""
    try:
        yield from chunks(source, 0, keys)
    except UserError as error:
        if source.kind in ("csv", "tsv") and str(error).startswith(f"{source.name}, line 1: "):
            raise UserError(f"{error}; a file's first line names its columns, as in text,label") from None
        raise


def _distinct(source, keys):
    """The first row of every framed text."""
    left, kept = {}, {}
    for row in _labelled(source, keys, left):
        first = kept.setdefault(row.framed, row)
        if first is not row:
            same = "that repeat a text" if first.label == row.label else "that repeat a text with another label"
            left.setdefault(same, []).append(row.line)
    _report(source, left)
    require(kept, f"{source.name} holds no text with a label; a row needs both")
    return list(kept.values())


def _by_hash(rows, names):
    """Splits by the rule of all splits; where `names` lacks one, its texts go to train."""
    parts = {name: [] for name in names}
    for row in rows:
        parts[split if (split := split_of(row.text)) in parts else "train"].append(row)
    return parts


def _fixed(found, keys):
    """Splits as they are given, the test whole; what dev or train share with a later one is left out there."""
    parts, later = {}, set()
    for split in ("test", "dev", "train"):
        if split in found:
            left, parts[split] = {}, []
            for row in _labelled(found[split], keys, left):
                if row.framed in later:
                    left.setdefault("whose text is in a later split", []).append(row.line)
                else:
                    parts[split].append(row)
            _report(found[split], left)
            require(parts[split], f"{found[split].name} holds no text with a label that no later split holds")
            later.update(row.framed for row in parts[split])
    return parts if "dev" in parts else parts | _by_hash(parts["train"], ("train", "dev"))


def _report(source, left):
    if left:
        said = (f"{len(lines):,} {what}, line{_lines(lines)}" for what, lines in left.items())
        print(f"{printable(source.name)}: rows left out: {'; '.join(said)}", file=sys.stderr)


def _lines(lines):
    return "s" * (len(lines) > 1) + " " + ", ".join(map(str, lines[:3])) + " ..." * (len(lines) > 3)


# Classes


def _classes(where, labels):
    count = Counter(labels)
    one = f"all texts have the label {_shown(labels[0])}"
    require(len(count) > 1, f"{where}: {one}; two classes or more are needed, or another --label-key")
    most = f"{len(count):,} different labels in {len(labels):,} texts, at most {MOST_CLASSES} are taken"
    require(len(count) <= MOST_CLASSES, f"{where}: {most}; this looks like no label column: name one with --label-key")
    values = {label: _number(label) for label in count}
    if None in values.values():
        return tuple(sorted(count))
    names = sorted(count, key=values.get)
    for one, other in zip(names, names[1:], strict=False):
        same = f"{where}: the labels {_shown(one)} and {_shown(other)} are the same number; write them alike"
        require(values[one] != values[other], same)
    return tuple(names)


def _require_enough(where, parts, classes):
    train, test = (Counter(row.label for row in parts[split]) for split in ("train", "test"))
    advice = f"add texts, or give a folder with {TRIPLE}"
    for name in classes:
        few = f"the class {_shown(name)} has too few texts: {train[name]:,} to train on and {test[name]:,} to test on"
        require(train[name] > 1 and test[name], f"{where}: {few}, where 2 and 1 are needed: {advice}")
    require(parts["dev"], f"{where}: no text falls into dev: {advice}")


def _number(label):
    try:
        return value if math.isfinite(value := float(label)) else None
    except ValueError:
        return None


def _shown(label):
    return reprlib.repr(label)


def _name(where):
    """The task's name, which names its unit's record: of a file without what says its kind, and of no other set."""
    name = where.removeprefix("tfds:") if where.startswith("tfds:") else Path(where).resolve().name
    for suffixes in (COMPRESSIONS, KINDS):
        suffix = Path(name).suffix
        name = name.removesuffix(suffix) if suffix.lower() in suffixes else name
    name = re.sub(r"[^\w-]+", "_", name)[:100].strip("_") or "labelled"
    return f"{name}_file" if name in NAMES else name
