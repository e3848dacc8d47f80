"""Any labelled file, a folder with one for each split, or a tensorflow-datasets set: texts of two classes or more."""

import logging
import re
import reprlib
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlstm_jax import storage
from mlstm_jax.corpus.columns import LABEL_KEYS, Keys
from mlstm_jax.corpus.packaged import split_of
from mlstm_jax.corpus.readers import (
    COMPRESSIONS,
    KINDS,
    Chunk,
    Source,
    cannot_be_read,
    chunks,
    left_out,
    parse,
    require_most_readable,
    sources,
)
from mlstm_jax.errors import UserError
from mlstm_jax.tasks.polarity import number, positive_of
from mlstm_jax.tasks.published import NAMES
from mlstm_jax.tasks.sets import Split, Task
from mlstm_jax.text import EMPTY, frame, to_bytes, to_text

logger = logging.getLogger(__name__)

SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}  # names of files
TRIPLE = "train.*, dev.* (or valid.*, validation.*) and test.*"
MOST_CLASSES = 100


class Labelled(NamedTuple):
    """A text that has a label, and its line or row."""

    line: int
    text: str
    label: str
    framed: bytes


class Read(NamedTuple):
    """What a source holds: its labelled rows, and the lines that are left out, by why they are."""

    source: Source
    rows: list[Labelled]
    left: dict[str, list[int]]


def from_file(
    path: Path | str,
    text_key: str | None = None,
    label_key: str | None = None,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    encoding: str | None = None,
) -> Task:
    """The labelled texts of a CSV, TSV, JSON lines or Parquet file, split 80 / 10 / 10 by a hash of the text.

    A folder with train.*, dev.* (or valid.*, validation.*) and test.* keeps its splits, as does "tfds:NAME[/CONFIG]"
    of tensorflow-datasets; where there is no dev, a tenth of train is. No two splits share a framed text. Classes are
    the labels as text, sorted, as numbers where all are; of two, the positive one is second, which is the higher number
    or what the usual words say (`polarity`). `positive` and `negative` name the labels of two classes, each one or
    several; rows of all others are left out, and where one is not named it is the only other label. `encoding` is that
    of files of text. One line on stderr counts what is left out: rows that are bad, without label or text, duplicates,
    and train texts that are in dev or test. Raises UserError for what cannot be read, for no label, one class, more
    than 100, two of which it is not known which is positive, and too few texts of a class.
    """
    keys, where = Keys(text_key, label_key), storage.fetched(str(path))
    if where.startswith("tfds:"):
        if where.count(":") != 1:
            raise UserError(f"{where}: name no split; train and test are taken")
        (train,), (test,) = (sources([f"{where}:{split}"]) for split in ("train", "test"))
        found = {"test": test, "train": train}
    elif Path(where).is_dir():
        found = _files_of(Path(where), encoding)
    else:
        files = sources([where], encoding)
        if len(files) != 1:
            raise UserError(f"{where} matches {len(files)} files; name one, or a folder with {TRIPLE}")
        found = {"all": files[0]}
    read = {split: _labelled(source, keys) for split, source in found.items()}
    sides = None
    if positive or negative:
        sides = _sides(where, [row.label for part in read.values() for row in part.rows], positive, negative)
        read = {split: _of_sides(part, sides) for split, part in read.items()}
    if "all" in read:
        parts, kind = _by_hash(_distinct(read["all"]), ("train", "dev", "test")), "split by a hash of the text"
    else:
        own = "its own splits" if "dev" in read else "its own test split, dev by a hash of the text"
        parts, kind = _fixed(read), own
    if sides:
        names = tuple(map(" or ".join, sides))
    else:
        names = _classes(where, [row.label for rows in parts.values() for row in rows])
    _require_enough(where, parts, names)
    place = {name: i for i, name in enumerate(names)}
    splits = {
        split: Split([row.text for row in rows], np.array([place[row.label] for row in rows], np.int64))
        for split, rows in parts.items()
    }
    sizes = " / ".join(f"{len(splits[split].texts):,}" for split in ("train", "dev", "test"))
    return Task(_name(where), f"{sizes}, {kind}", **splits, classes=names)


def _files_of(folder: Path, encoding: str | None) -> dict[str, Source]:
    found = {}
    for source in sources([str(folder)], encoding):
        file = Path(source.name)
        split = SPLITS.get(file.name.partition(".")[0].lower())
        if split and file.parent == folder:
            other = found.setdefault(split, source)
            if other is not source:
                raise UserError(f"{other.name} and {file} are both the {split} split; take one away")
    lacks = " and ".join(f"{split}.*" for split in ("train", "test") if split not in found)
    if lacks:
        raise UserError(f"{folder}: no {lacks}; a folder of labelled texts holds {TRIPLE}; or name one file")
    return found


# Rows


def _labelled(source: Source, keys: Keys) -> Read:
    """The rows that have a text and a label, and the lines of the others by what is wrong with them."""
    if source.size == 0:
        raise UserError(f"{source.name} is empty; it needs texts with labels")
    plain = f"{source.name}: plain text has no labels; give CSV, TSV, JSON lines or Parquet"
    nameless = f"{source.name}: none of {', '.join(LABEL_KEYS)} is here; name the label with `label_key`"
    rows, left, bad, why, count = [], {}, [], "", 0
    for chunk in _headed(source, keys):
        if chunk.kind == "lines" and not chunk.keys.label:
            raise UserError(plain)
        for line, text, label, wrong, _ in parse(chunk):
            count += 1
            if wrong:
                why = why or wrong
                bad.append(line)
                continue
            if not chunk.keys.label:
                raise UserError(nameless)
            label, framed = to_text(to_bytes(label or "")).strip(), frame(text)
            if not label:
                left.setdefault("without a label", []).append(line)
            elif framed == EMPTY:
                left.setdefault("without a text", []).append(line)
            else:
                rows.append(Labelled(line, text, label, framed))
    require_most_readable(source, count, bad, why)
    if bad:
        left[cannot_be_read(why)] = bad
    return Read(source, rows, left)


def _headed(source: Source, keys: Keys) -> Iterator[Chunk]:
    """The chunks; of a CSV or TSV file whose first line does not fit it is said what such a line is for."""
    try:
        yield from chunks(source, 0, keys, log=logger.warning)
    except UserError as error:
        if source.kind in ("csv", "tsv") and str(error).startswith(f"{source.name}, line 1: "):
            raise UserError(f"{error}; a file's first line names its columns, as in text,label") from None
        raise


def _distinct(read: Read) -> list[Labelled]:
    """The first row of every framed text."""
    source, rows, left = read
    kept: dict[bytes, Labelled] = {}
    for row in rows:
        first = kept.setdefault(row.framed, row)
        if first is not row:
            same = "that repeat a text" if first.label == row.label else "that repeat a text with another label"
            left.setdefault(same, []).append(row.line)
    _report(source, left)
    if not kept:
        raise UserError(f"{source.name} holds no text with a label; a row needs both")
    return list(kept.values())


def _by_hash(rows: list[Labelled], names: Sequence[str]) -> dict[str, list[Labelled]]:
    """Splits by the rule of all splits; where `names` lacks one, its texts go to train."""
    parts = {name: [] for name in names}
    for row in rows:
        parts[split if (split := split_of(row.text)) in parts else "train"].append(row)
    return parts


def _fixed(read: Mapping[str, Read]) -> dict[str, list[Labelled]]:
    """Splits as they are given, the test whole; what dev or train share with a later one is left out there."""
    parts, later = {}, set()
    for split in ("test", "dev", "train"):
        if split in read:
            source, rows, left = read[split]
            parts[split] = [row for row in rows if row.framed not in later]
            if shared := [row.line for row in rows if row.framed in later]:
                left["whose text is in a later split"] = shared
            _report(source, left)
            if not parts[split]:
                raise UserError(f"{source.name} holds no text with a label that no later split holds")
            later.update(row.framed for row in parts[split])
    return parts if "dev" in parts else parts | _by_hash(parts["train"], ("train", "dev"))


def _report(source: Source, left: dict[str, list[int]]) -> None:
    if left:
        logger.warning(left_out(source, left))


# Classes


def _classes(where: str, labels: list[str]) -> tuple[str, ...]:
    count = Counter(labels)
    one = f"all texts have the label {_shown(labels[0])}"
    if len(count) <= 1:
        raise UserError(f"{where}: {one}; two classes or more are needed, or another `label_key`")
    most = f"{len(count):,} different labels in {len(labels):,} texts, at most {MOST_CLASSES} are taken"
    if len(count) > MOST_CLASSES:
        raise UserError(f"{where}: {most}; this looks like no label column: name one with `label_key`")
    values = {label: value for label in count if (value := number(label)) is not None}
    numbered = len(values) == len(count)
    names = sorted(count, key=values.__getitem__) if numbered else sorted(count)
    for one, other in zip(names, names[1:], strict=False):
        same = f"{where}: the labels {_shown(one)} and {_shown(other)} are the same number; write them alike"
        if numbered and values[one] == values[other]:
            raise UserError(same)
    if len(names) == 2:
        best = positive_of(*names)
        which = f"which of the labels {_shown(names[0])} and {_shown(names[1])} is the positive class"
        if best is None:
            raise UserError(f"{where}: {which}? Name it with `positive`")
        names.sort(key=best.__eq__)
    return tuple(names)


def _sides(where: str, labels: list[str], positive: Sequence[str], negative: Sequence[str]) -> list[list[str]]:
    """The labels of the negative and of the positive class, of those that are there."""
    there = list(dict.fromkeys(labels))
    listed = textwrap.shorten(", ".join(map(_shown, sorted(there))) or "none", 300, placeholder=" ...")
    sides = []
    for option, names in (("`negative`", negative), ("`positive`", positive)):
        found = [(name, [label for label in there if _same(label, name)]) for name in dict.fromkeys(names)]
        for name, same in found:
            if not same:
                raise UserError(f"{where}: no text has the label {_shown(name)} of {option}; there are: {listed}")
        sides.append(list(dict.fromkeys(label for _, same in found for label in same)))
    both = set(sides[0]) & set(sides[1])
    if both:
        raise UserError(f"{where}: {', '.join(map(_shown, sorted(both)))} cannot be both positive and negative")
    others = [label for label in there if label not in sides[0] + sides[1]]
    lacking = "`positive`" if sides[0] else "`negative`"
    known = all(sides) or len(others) == 1
    if not known:
        raise UserError(f"{where}: name the labels of the other class, too, with {lacking}; there are: {listed}")
    return [side or others for side in sides]


def _of_sides(read: Read, sides: list[list[str]]) -> Read:
    """The rows of two classes, each with its class for a label."""
    name = {label: " or ".join(side) for side in sides for label in side}
    if other := [row.line for row in read.rows if row.label not in name]:
        read.left["of neither class"] = other
    return read._replace(rows=[row._replace(label=name[row.label]) for row in read.rows if row.label in name])


def _same(label: str, name: str) -> bool:
    """Whether a label is meant by a name: 5.0 by 5."""
    return label == name or number(label) is not None and number(label) == number(name)


def _require_enough(where: str, parts: Mapping[str, list[Labelled]], classes: Sequence[str]) -> None:
    train, test = (Counter(row.label for row in parts[split]) for split in ("train", "test"))
    advice = f"add texts, or give a folder with {TRIPLE}"
    for name in classes:
        few = f"the class {_shown(name)} has too few texts: {train[name]:,} to train on and {test[name]:,} to test on"
        if train[name] <= 1 or not test[name]:
            raise UserError(f"{where}: {few}, where 2 and 1 are needed: {advice}")
    if not parts["dev"]:
        raise UserError(f"{where}: no text falls into dev: {advice}")


def _shown(label: str) -> str:
    return reprlib.repr(label)


def _name(where: str) -> str:
    """The task's name, which names its unit's record: of a file without what says its kind, and of no other set."""
    name = where.removeprefix("tfds:") if where.startswith("tfds:") else Path(where).resolve().name
    for suffixes in (COMPRESSIONS, KINDS):
        suffix = Path(name).suffix
        name = name.removesuffix(suffix) if suffix.lower() in suffixes else name
    name = re.sub(r"[^\w-]+", "_", name)[:100].strip("_") or "labelled"
    return f"{name}_file" if name in NAMES else name
