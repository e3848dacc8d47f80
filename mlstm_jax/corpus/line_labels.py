"""Labels within the lines of a text file: detected in its first lines, and split off the texts."""

import re
from collections import Counter

from mlstm_jax.text import to_text

LINES = 10  # a file has at least so many, and 95 of 100 alike, to be taken for labelled
VALUES = 10  # different labels at most, with five lines for each; __label__ alone says what it is

# How labels stand in a line, as people would say it; the groups are the text and the label.
LAYOUTS = {
    "__label__ in front": re.compile(rb"(?P<label>__label__\S+(?:\s++__label__\S+)*+)(?P<text>.*)", re.DOTALL),
    "__label__ at the end": re.compile(rb"(?P<text>.*)\s(?P<label>__label__\S+)\s*+", re.DOTALL),
    "a tab and a label at the end": re.compile(rb"(?P<text>.*)\t *+(?P<label>[^\t]{1,20}?)\s*+", re.DOTALL),
    "a label and a tab in front": re.compile(rb"(?P<label>[^\t]{1,20}?) *+\t(?P<text>.*)", re.DOTALL),
    "a number in front": re.compile(rb"(?P<label>[+-]?[0-9]) (?P<text>.*)", re.DOTALL),
}


def layout(head: bytes) -> str | None:
    """The layout of a file's labels by its first lines; None where they are plain texts."""
    lines = [line for line in head.split(b"\n")[:10_000] if line and not line.isspace()]
    if len(lines) < LINES:
        return None
    for name, pattern in LAYOUTS.items():
        found = Counter(match["label"] for line in lines if (match := pattern.fullmatch(line)))
        few = name.startswith("__label__") or len(found) <= min(VALUES, len(lines) // 5)
        if few and found.total() >= 0.95 * len(lines):
            return name
    return None


def split(line: bytes, name: str) -> tuple[str, str | None, None]:
    """Text and label of a line, and nothing wrong; a line that is not of this layout is a text without a label."""
    match = LAYOUTS[name].fullmatch(line)
    if match is None:
        return to_text(line.removesuffix(b"\r")), None, None
    return to_text(match["text"].strip()), to_text(match["label"]).replace("__label__", ""), None
