"""Count the texts of labelled sets that stand in a training text: a model is not to be tested on what it has read.

python examples/overlap.py reviews.jsonl --task imdb rotten_tomatoes sst amazon.jsonl --data SST_FOLDER

Of a set with a training split of its own, dev and test are looked for; of a file, all its texts. A text is found where
its words stand in a training text, one after the other, in any case and with any punctuation between: all words of a
text of up to 20, the first 20 of a longer one, which a training text may have cut short.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

from mlstm_jax import tasks
from mlstm_jax.cli import program
from mlstm_jax.corpus.readers import read_texts
from mlstm_jax.progress import progress

SHORTEST = 5  # words; shorter texts are commonplaces
LONGEST = 20  # words of a text that are compared

Words = tuple[str, ...]


class Match(NamedTuple):
    """A text of a labelled set, by its first words, and where in the training texts it was found first."""

    words: Words
    place: int  # of the training text, from 0


def words_of(text: str) -> Words:
    """The words of a text in lower case, without what stands between them."""
    return tuple(re.findall(r"\w+", text.lower()))


def matches(training: Iterable[str], texts: Iterable[str]) -> list[Match]:
    """The texts of at least `SHORTEST` words that stand in a training text, each once, in the order of being found."""
    wanted = defaultdict(set)  # by their first words
    for words in map(words_of, texts):
        if len(words) >= SHORTEST:
            wanted[words[:SHORTEST]].add(words[:LONGEST])
    found = []
    for place, text in enumerate(training):
        words = words_of(text)
        for start in range(len(words) - SHORTEST + 1):
            first = words[start : start + SHORTEST]
            for one in [one for one in wanted.get(first, ()) if words[start : start + len(one)] == one]:
                wanted[first].remove(one)
                found.append(Match(one, place))
    return found


def held_out(name: str, data: Path | None) -> list[str]:
    """The texts of a labelled set on which nothing may have been trained."""
    if name not in tasks.NAMES:
        return list(read_texts(Path(name)))
    task = tasks.load(name, data if name == "sst" else None)
    splits = (task.train, task.dev, task.test) if name == "sst" else (task.dev, task.test)
    return [text for split in splits for text in split.texts]


def main(
    training: Path, /, *, task: Sequence[str] = ("imdb", "rotten_tomatoes"), data: Path | None = None, show: int = 3
) -> None:
    """Count the texts of labelled sets that stand in a file of training texts.

    Args:
        training: A file of one review a line or row.
        task: Labelled sets by name, or files of texts.
        data: Folder of SST's three CSV files.
        show: How many of the longest that were found are shown of each set.
    """
    read = list(read_texts(training))
    for name in task:
        texts = held_out(name, data)
        with progress("training texts", len(read), counted=True) as done:
            found = matches(_counted(read, done), texts)
        long = [match for match in found if len(match.words) > SHORTEST]
        program.log(f"{name}: of {len(texts):,} texts, {len(found):,} found, {len(long):,} of 6 words or more")
        for match in sorted(long, key=lambda match: -len(match.words))[:show]:
            program.log(f"  text {match.place:,}: {' '.join(match.words)}")


def _counted(texts, done):
    for text in texts:
        done(1)
        yield text


if __name__ == "__main__":
    program.script(lambda: tyro.cli(main, args=sys.argv[1:]))
