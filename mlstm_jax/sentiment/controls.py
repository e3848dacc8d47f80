"""Control experiments: probes without the unit, random units, other training texts, few labels. numpy, never jax."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from mlstm_jax.progress import progress
from mlstm_jax.sentiment import probe
from mlstm_jax.sentiment.probe import Examples

SAMPLES = 10  # of units, of training texts


def without(train: Examples, dev: Examples, test: Examples, unit: int) -> Bool[np.ndarray, "n"]:
    """Which test texts the probe on all other units labels rightly."""
    with progress("the probe without the unit", len(probe.STRENGTHS), counted=True) as done:
        return _right_on(train, dev, test, np.delete(np.arange(train.x.shape[1]), unit), done)


def random_units(
    train: Examples, dev: Examples, test: Examples, unit: int, k: int, samples: int = SAMPLES, seed: int = 0
) -> Float[np.ndarray, "samples"]:
    """Test accuracies of probes on k units drawn at random among all but `unit` (Donnelly and Roegiest 2019)."""
    others, rng = np.delete(np.arange(train.x.shape[1]), unit), np.random.default_rng((seed, k))
    drawn = (rng.choice(others, k, replace=False) for _ in range(samples))
    with progress(f"probes on {k} random units", samples * len(probe.STRENGTHS), counted=True) as done:
        return np.array([_right_on(train, dev, test, units, done).mean() for units in drawn])


def _right_on(
    train: Examples,
    dev: Examples,
    test: Examples,
    units: Integer[np.ndarray, "k"],
    done: Callable[[float], None],
) -> Bool[np.ndarray, "n"]:
    x, dev_x, test_x = (examples.x[:, units] for examples in (train, dev, test))
    return probe.right(probe.fit(x, train.y, dev_x, dev.y, done), test_x, test.y)


def stability(train: Examples, samples: int = SAMPLES, seed: int = 0) -> list[int]:
    """The top units of resampled training texts, each class as large as it is."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(train.y == label) for label in (0, 1)]
    tops = []
    with progress("units of resampled texts", samples, counted=True) as done:
        for _ in range(samples):
            rows = np.concatenate([rng.choice(rows, len(rows)) for rows in classes])
            tops.append(probe.top_unit(train.x[rows], train.y[rows]))
            done(1)
    return tops


class Learnt(NamedTuple):
    """Test accuracies after n labelled texts, their mean and standard deviation over samples of the texts."""

    n: int
    mean_all: float
    deviation_all: float
    mean_unit: float
    deviation_unit: float


def label_efficiency(
    train: Examples, test: Examples, c: float, unit: int, samples: int = SAMPLES, seed: int = 0
) -> list[Learnt]:
    """What the probe, and the unit with its sign and threshold, learn from 1, 2, 5, 10 ... labelled texts.

    A draw is an order of the training texts in which the classes take turns; n labelled texts are its first n. Where
    they teach nothing (one text, or a probe that uses no unit), every text is called by the commoner class of all
    training texts, so that both curves start at the majority's accuracy. The C of n texts
    is c * sqrt(all / n): L1 wants a penalty per text that falls as 1 / sqrt(n), and no labels are spent on choosing it.
    The paper's figure 2.
    """
    sizes, total = _sizes(len(train.y)), len(train.y)
    majority = probe.majority(train.y, test.y)
    orders = [_by_turns(train.y, np.random.default_rng((seed, draw))) for draw in range(samples)]
    drawn = [[order[:n] for order in (orders if n < total else orders[:1])] for n in sizes]
    both = [rows for of_size in drawn for rows in of_size if len(set(train.y[rows])) == 2]
    fits = probe.fit_each(train, [(rows, c * (total / len(rows)) ** 0.5) for rows in both])
    learnt = []
    with progress("label efficiency", len(both), counted=True) as done:
        for n, of_size in zip(sizes, drawn, strict=True):
            scores = []
            for rows in of_size:
                if len(set(train.y[rows])) == 1:
                    scores.append([majority] * 2)
                    continue
                measure = probe.measure_unit(train.x[rows], train.y[rows], unit)
                alone = probe.unit_right(test.x[:, unit], test.y, measure.sign, measure.threshold)
                scores.append([probe.accuracy(next(fits), *test), float(alone.mean())])
                done(1)
            (mean_all, mean_unit), (all_, unit_) = np.mean(scores, axis=0), np.std(scores, axis=0)
            learnt.append(Learnt(n, float(mean_all), float(all_), float(mean_unit), float(unit_)))
    return learnt


def _sizes(total: int) -> Sequence[int]:
    steps = [lead * 10**power for power in range(len(str(total))) for lead in (1, 2, 5)]
    return [n for n in steps if n < total] + [total]


def _by_turns(y: Integer[np.ndarray, "n"], rng: np.random.Generator) -> Integer[np.ndarray, "n"]:
    """All rows in a random order in which the classes take turns for as long as both last."""
    place = np.empty(len(y))
    for label, first in zip((0, 1), rng.permutation(2), strict=True):
        rows = np.flatnonzero(y == label)
        place[rng.permutation(rows)] = np.arange(len(rows)) + first / 2
    return np.argsort(place, kind="stable")
