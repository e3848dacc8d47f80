"""MR, CR, SUBJ and MPQA, which the paper evaluates in ten folds: pairs of files, one a class, one text a line."""

import hashlib
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mlstm_jax.corpus import packaged
from mlstm_jax.errors import UserError
from mlstm_jax.tasks.sets import BINARY, FOLDS, Folds, Split
from mlstm_jax.text import EMPTY, frame

logger = logging.getLogger(__name__)

# The pairs of file names that are known of each, and whence they come. The class of a pair's first file is 0.
PAIRS = {
    "mr": [("rt-polarity.neg", "rt-polarity.pos")],
    "cr": [("custrev.neg", "custrev.pos")],
    "subj": [("subj.objective", "subj.subjective"), ("plot.tok.gt9.5000", "quote.tok.gt9.5000")],
    "mpqa": [("mpqa.neg", "mpqa.pos")],
}
CORNELL = "cs.cornell.edu/people/pabo/movie-review-data"
ORIGINS = {
    "mr": f"the sentence polarity dataset, {CORNELL}",
    "cr": "the customer reviews of Hu and Liu 2004, cs.uic.edu/~liub/FBS",
    "subj": f"the subjectivity dataset, {CORNELL}",
    "mpqa": "the MPQA opinion corpus, mpqa.cs.pitt.edu",
}
CLASSES = dict.fromkeys(PAIRS, BINARY) | {"subj": ("objective", "subjective")}
NAMES = ("sst", *packaged.SOURCES, *PAIRS)  # of all sets that go by a name


def load(name: str, folder: Path | None) -> Folds:
    """The set of this name, from the pair of files in `folder` or its subfolder NAME; nothing but empty lines left out.

    Files that are no UTF-8 are read as latin-1, as they are published. Raises UserError for missing files, and for
    fewer than ten different texts of a class. Source: Radford et al. 2017, section 4.1.
    """
    pairs = PAIRS[name]
    either = ", or ".join(" and ".join(pair) for pair in pairs)
    # SentEval's script fetches and converts them all.
    by_hand = (
        f"put {either} (from {ORIGINS[name]}; in this form also in the data of github.com/facebookresearch/SentEval) "
        "in a folder and name it with `data`"
    )
    if folder is None:
        raise UserError(f"the task {name} is read from local files; {by_hand}")
    places = ([place / file for file in pair] for place in (folder, folder / name.upper()) for pair in pairs)
    paths = next((paths for paths in places if all(path.is_file() for path in paths)), None)
    if not paths:
        raise UserError(f"{folder} does not hold the task {name}; {by_hand}")
    texts, labels = [], []
    for label, path in enumerate(paths):
        read = read_lines(path)
        count = len({frame(text) for text in read})
        if count < FOLDS:
            raise UserError(f"{path}: {count} different texts; {FOLDS} of each class are needed for {FOLDS} folds")
        texts += read
        labels += [label] * len(read)
    split = Split(texts, np.array(labels, np.int64))
    note = f"{len(texts):,} texts, {FOLDS}-fold cross-validation, folds by a hash of the text"
    return Folds(name, note, split, folds(split), CLASSES[name])


def read_lines(path: Path) -> list[str]:
    """The lines of a file that are not empty, those left out are counted on stderr; UTF-8, else latin-1.

    Raises UserError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        content = data.decode("latin-1")
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    texts = [line for line in lines if frame(line) != EMPTY]
    if empty := len(lines) - len(texts):
        logger.warning(f"{path}: left out {empty:,} empty line{'s' * (empty > 1)}")
    return texts


def folds(split: Split) -> Int[np.ndarray, "n"]:
    """A fold for every text, as many of each class as of any other; the order of the texts does not matter.

    The different texts of a class are dealt out in the order of their hashes. A text of several classes counts as one
    of the lowest, so that equal texts share a fold.
    """
    framed = [frame(text) for text in split.texts]
    lowest: dict[bytes, int] = {}
    for text, label in zip(framed, split.labels.tolist(), strict=True):
        lowest[text] = min(label, lowest.get(text, label))
    fold = {}
    for label in set(lowest.values()):
        of_class = sorted((t for t in lowest if lowest[t] == label), key=lambda text: hashlib.sha256(text).digest())
        fold |= {text: place % FOLDS for place, text in enumerate(of_class)}
    return np.array([fold[text] for text in framed], np.int64)
