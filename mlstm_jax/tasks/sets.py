"""What a labelled set is: three splits of texts with their classes, or one set of texts in ten folds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

FOLDS = 10
BINARY = ("negative", "positive")


class Split(NamedTuple):
    """Texts with their labels, which are places in the set's `classes`: of two, 0 is negative, 1 positive."""

    texts: list[str]
    labels: Int[np.ndarray, "n"]


class Task(NamedTuple):
    """A labelled set; `note` says for tables which texts these are."""

    name: str
    note: str
    train: Split
    dev: Split
    test: Split
    classes: tuple[str, ...] = BINARY


class Folds(NamedTuple):
    """A labelled set without splits of its own, for ten-fold cross-validation."""

    name: str
    note: str
    all: Split
    fold: Int[np.ndarray, "n"]
    """The fold of every text, 0 to 9; equal texts share one."""
    classes: tuple[str, ...] = BINARY

    def parts(self, k: int) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "dev"], Int[np.ndarray, "test"]]:
        """Places of the train, dev and test texts of round k: fold k is the test, the next one dev.

        Features of all texts are formed once, and taken apart by these.
        """
        test, dev = self.fold == k, self.fold == (k + 1) % FOLDS
        return np.flatnonzero(~test & ~dev), np.flatnonzero(dev), np.flatnonzero(test)
