"""The probe: an L1 logistic regression on a model's features, the units ranked, and one unit measured alone.

As in the release of Radford et al. 2017 (arXiv 1704.01444): the strength of the penalty is chosen on the dev split, and
everything else on the training split. Test labels enter accuracies only. numpy and scikit-learn, never jax.
"""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Integer

from mlstm_jax.errors import UserError

STRENGTHS = tuple(2.0**k for k in range(-8, 1))  # the paper release's values of C
BINS = 16  # of a unit's values, for its mutual information with the labels
MISSING = "the probe needs scikit-learn: pip install 'scikit-learn>=1.8'"
LARGE = 1_000_000  # features; fewer are fitted sooner than another process starts


class Examples(NamedTuple):
    """Features of texts, and the texts' labels: 0 (negative) and 1 (positive), or more."""

    x: Float[np.ndarray, "n hidden"]
    y: Integer[np.ndarray, "n"]


class Probe(NamedTuple):
    """A fitted probe: a text is positive where features @ coefficients + intercept > 0."""

    c: float  # inverse strength of the L1 penalty
    coefficients: Float[np.ndarray, "hidden"]
    intercept: float
    converged: bool = True


class UnitMeasure(NamedTuple):
    """What one unit alone says about sentiment, measured on training texts."""

    unit: int
    sign: int  # +1 where positive texts have the higher mean, else -1
    mean_negative: float
    mean_positive: float
    deviation: float  # standard deviation of the values around their class means
    threshold: float  # a text is positive where sign * value > sign * threshold
    a: float  # P(positive) = sigmoid(a * value + b)
    b: float


def fit(
    train_x: Float[np.ndarray, "n hidden"],
    train_y: Integer[np.ndarray, "n"],
    dev_x: Float[np.ndarray, "m hidden"],
    dev_y: Integer[np.ndarray, "m"],
    done: Callable[[float], None] = lambda count: None,
) -> Probe:
    """The probe with the best dev accuracy among `STRENGTHS`; the strongest penalty wins a tie.

    A probe that uses no unit answers the commoner class of the training texts, and competes with that dev accuracy: one
    that uses units is chosen only where it beats that. It is then what scikit-learn's default gives at its C.
    `done(1)` is called after each fit.

    Labels are 0 (negative) and 1 (positive). Raises UserError where a label is missing from the training texts, where
    features are not finite, and where scikit-learn is not installed. Source: the paper release's `train_with_reg_cv`.
    """
    if set(np.unique(train_y)) != {0, 1}:
        raise UserError("the training texts of a probe need both labels, 0 and 1, and no other")
    finite = np.isfinite(train_x).all() and np.isfinite(dev_x).all()
    if not finite:
        raise UserError("these features are not finite numbers: the weights are damaged, or their training diverged")
    # The weakest penalty takes the longest, so it starts first.
    fits = []
    for fitted in fit_each(Examples(train_x, train_y), [(None, c) for c in reversed(STRENGTHS)]):
        fits.insert(0, fitted)
        done(1)
    return max(fits, key=lambda fitted: accuracy(fitted, dev_x, dev_y))  # of equals, max takes the first


def fit_each(examples: Examples, wanted: Sequence[tuple[Integer[np.ndarray, "_"] | None, float]]) -> Iterator[Probe]:
    """Probes on some rows of the examples (None: all) at some C, in order; large ones are fitted on all cores.

    One that uses no unit answers the commoner class of all the examples.
    """
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise UserError(MISSING) from None
    # Processes, not threads: liblinear's random state is one for the whole process.
    jobs = -1 if examples.x.size * len(wanted) > LARGE else 1
    run = Parallel(jobs, return_as="generator", backend="loky", initializer=_end_with, initargs=(os.getpid(),))
    fits = run(delayed(_fit)(*examples, *one) for one in wanted)
    yield from cast(Iterator[Probe], fits)  # joblib has no types


def fit_classes(train: Examples, dev: Examples) -> list[Probe]:
    """A probe for every class against all others, at the C of best dev accuracy; for labels 0, 1, 2 ...

    The strongest penalty wins a tie; a probe that uses no unit answers by how common its class is. Raises UserError
    where train lacks a class.
    """
    classes = range(max(train.y.max(), dev.y.max()) + 1)
    if set(np.unique(train.y)) != set(classes):
        raise UserError("the training texts of a probe need a text of every class")
    each = [
        list(fit_each(Examples(train.x, (train.y == k).astype(np.int64)), [(None, c) for c in reversed(STRENGTHS)]))
        for k in classes
    ]
    return list(max(list(zip(*each, strict=True))[::-1], key=lambda probes: right_class(probes, *dev).mean()))


def right_class(
    probes: Sequence[Probe], x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Which texts get their own class, that of the probe with the highest value."""
    return np.argmax([x @ probe.coefficients + probe.intercept for probe in probes], axis=0) == y


def _fit(
    x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"], rows: Integer[np.ndarray, "_"] | None, c: float
) -> Probe:
    some_x, some_y = (x, y) if rows is None else (x[rows], y[rows])
    model = _regress(some_x, some_y, l1_ratio=1.0, solver="liblinear", C=c, random_state=42)
    # liblinear penalises the intercept, too: with no unit used it may be 0, which answers 0 whichever is commoner.
    intercept = float(model.intercept_[0]) if model.coef_.any() else _log_odds(y)
    return Probe(c, model.coef_[0], intercept, bool(model.n_iter_.max() < model.max_iter))


def _end_with(program: int) -> None:
    """In a process that the program started: end, in the midst of a fit, when the program has ended or was killed."""

    def watch() -> None:
        while os.getppid() == program:
            time.sleep(0.2)
        os._exit(1)

    Thread(target=watch, daemon=True).start()  # a fit lets other threads run


def right(probe: Probe, x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which texts the probe labels rightly."""
    return (x @ probe.coefficients + probe.intercept > 0) == (y == 1)


def majority(train_y: Integer[np.ndarray, "n"], test_y: Integer[np.ndarray, "m"]) -> float:
    """Fraction of test texts that are of the commonest class of the training texts: what always guessing it reaches."""
    return float(np.mean(test_y == np.bincount(train_y).argmax()))


def accuracy(probe: Probe, x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> float:
    """Fraction of texts that the probe labels rightly."""
    return float(np.mean(right(probe, x, y)))


def interval(right: Bool[np.ndarray, "n"], confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of an accuracy; also of a few texts, or where all are right, it is not too narrow."""
    return share_interval(int(right.sum()), len(right), confidence)


def share_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The same of any share: that of `count` in n."""
    from scipy.stats import binomtest

    low, high = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def units_used(probe: Probe) -> int:
    """Number of units with a coefficient other than zero."""
    return int(np.count_nonzero(probe.coefficients))


class Ranking(NamedTuple):
    """All units, the best first (of equals the lowest number), with the score and the sign of every unit."""

    order: Integer[np.ndarray, "hidden"]
    score: Float[np.ndarray, "hidden"]
    sign: Integer[np.ndarray, "hidden"]


def rank(probe: Probe, x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> dict[str, Ranking]:
    """The units in three orders, from training texts: by the probe's absolute coefficients, by the accuracy of each
    alone with its best threshold, and by their mutual information with the labels, in bits."""
    scores = {
        "coefficient": np.abs(probe.coefficients),
        "accuracy alone": accuracies_alone(x, y),
        "mutual information": mutual_information(x, y),
    }
    signs = _signs(x, y)
    return {name: Ranking(np.argsort(-score, kind="stable"), score, signs) for name, score in scores.items()}


def top_unit(train_x: Float[np.ndarray, "n hidden"], train_y: Integer[np.ndarray, "n"]) -> int:
    """The unit most accurate alone on the training texts; the lowest number wins a tie.

    Not the one with the largest coefficient: an L1 penalty gives units of small values large ones.
    """
    return int(np.argmax(accuracies_alone(train_x, train_y)))


def accuracies_alone(x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> Float[np.ndarray, "hidden"]:
    """The accuracy of every unit alone, with its own sign and best threshold, on these texts."""
    cuts = (_cuts(sign * values.astype(np.float64), y) for values, sign in zip(x.T, _signs(x, y), strict=True))
    return np.array([_right(cut).max() for cut in cuts]) / len(y)


def mutual_information(x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> Float[np.ndarray, "hidden"]:
    """Bits that every unit's value tells of the label, its values taken as one of `BINS` bins of equally many texts.

    Chance alone gives about (BINS - 1) (classes - 1) / 1.4 n bits. Labels are 0, 1 ...
    """
    share = lambda counts: counts / len(y)
    entropy = lambda p: -float(np.sum(p[p > 0] * np.log2(p[p > 0])))
    bits = np.zeros(x.shape[1])
    for unit, values in enumerate(x.T):
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
        both = share(
            np.histogram2d(np.searchsorted(edges, values, "right"), y, (range(BINS + 1), range(y.max() + 2)))[0]
        )
        bits[unit] = entropy(both.sum(0)) + entropy(both.sum(1)) - entropy(both)
    return bits


def measure_unit(x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"], unit: int) -> UnitMeasure:
    """One unit's class means, deviation, threshold and one-unit logistic, from training features and both labels."""
    values = x[:, unit].astype(np.float64)
    sign, means = int(_signs(x[:, [unit]], y)[0]), (values[y == 0].mean(), values[y == 1].mean())
    deviation = np.sqrt(np.mean((values - np.where(y == 1, means[1], means[0])) ** 2))
    a, b = _one_unit_logistic(values, y)
    return UnitMeasure(
        unit=unit,
        sign=sign,
        mean_negative=float(means[0]),
        mean_positive=float(means[1]),
        deviation=float(deviation),
        threshold=best_threshold(values, y, sign),
        a=a,
        b=b,
    )


AIMS = "accuracy, f1, or precision=P with P above 0 and at most 1"


def least_precision(aim: str) -> float | None:
    """The P of an aim "precision=P", None for "accuracy" and "f1". Raises UserError for any other aim."""
    if aim in ("accuracy", "f1"):
        return None
    found = re.fullmatch(r"precision=(0?\.\d+|1(?:\.0*)?)", aim)
    if not found or not float(found[1]):
        raise UserError(f"`threshold` is {AIMS}, not {aim!r}")
    return float(found[1])


def best_threshold(
    values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"], sign: int, aim: str = "accuracy"
) -> float:
    """The best threshold by `aim`: midway between two neighbouring values, or 1 beyond the outermost.

    "accuracy" and "f1" (of the positive class) take the highest; "precision=0.9" takes, of those at which at least that
    share of the texts called positive is positive, the one that finds the most positive texts. Where several are as
    good, the one that calls the most texts positive. Raises UserError for a precision that none reaches.
    """
    cuts = _cuts(sign * values.astype(np.float64), labels)
    called, least = np.arange(len(labels), -1, -1), least_precision(aim)
    if least is not None:
        precision = np.where(cuts.apart, cuts.hits / np.maximum(called, 1), 0)
        if precision.max() < least:
            most = f"the highest that its thresholds reach on the training texts is {precision.max():.3f}"
            raise UserError(f"the unit has no threshold of precision {least:g}: {most}; name a lower `threshold`")
        good = np.where(precision >= least, cuts.hits, -1)
    elif aim == "f1":
        good = np.where(cuts.apart, 2 * cuts.hits / (called + cuts.hits[0]), -1)
    else:
        good = _right(cuts)
    return float(sign * cuts.thresholds[np.argmax(good)])


class _Cuts(NamedTuple):
    """All thresholds that a unit might have; threshold k calls the k lowest texts negative."""

    thresholds: Float[np.ndarray, "n_plus_one"]
    hits: Integer[np.ndarray, "n_plus_one"]
    """Positive texts that it calls positive."""
    apart: Bool[np.ndarray, "n_plus_one"]
    """Whether it is one: it does not part equal values."""


def _cuts(v: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> _Cuts:
    order = np.argsort(v)
    v, positive = v[order], labels[order] == 1
    hits = positive.sum() - np.concatenate([[0], np.cumsum(positive)])
    thresholds = np.concatenate([v[:1] - 1, (v[:-1] + v[1:]) / 2, v[-1:] + 1])
    return _Cuts(thresholds, hits, np.concatenate([[True], v[:-1] < v[1:], [True]]))


def _right(cuts: _Cuts) -> Integer[np.ndarray, "n_plus_one"]:
    """How many texts each threshold labels rightly, -1 where it is none."""
    misses = cuts.hits[0] - cuts.hits
    return np.where(cuts.apart, cuts.hits + np.arange(len(misses)) - misses, -1)


class Retrieval(NamedTuple):
    """How well the positive class is found: fractions; 0 where nothing is called positive."""

    precision: float
    recall: float
    f1: float


def retrieval(called: Bool[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> Retrieval:
    """Precision, recall and F1 of the texts that are called positive."""
    hits, positive = int((called & (labels == 1)).sum()), int((labels == 1).sum())
    share = lambda part, of: part / of if of else 0.0
    return Retrieval(
        share(hits, int(called.sum())), share(hits, positive), share(2 * hits, int(called.sum()) + positive)
    )


def unit_right(
    values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"], sign: int, threshold: float
) -> Bool[np.ndarray, "n"]:
    """Which texts are labelled rightly by one unit's value and its threshold."""
    # In float64: numpy would round the threshold to the values' float32, and so move it onto a value.
    return (sign * values.astype(np.float64) > sign * threshold) == (labels == 1)


def _signs(x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "hidden"]:
    means = [x[y == label].mean(axis=0, dtype=np.float64) for label in (0, 1)]
    return np.where(means[1] >= means[0], 1, -1)


def _one_unit_logistic(values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> tuple[float, float]:
    """(a, b) of P(positive) = sigmoid(a * value + b)."""
    if values.min() == values.max():  # such a unit says nothing: the share of positive texts is left
        return 0.0, _log_odds(labels)
    mean, scale = values.mean(), values.std()
    # A trace of L2 penalty keeps the slope finite where the unit separates the classes.
    model = _regress(((values - mean) / scale)[:, None], labels, C=1e4)
    a = float(model.coef_[0, 0] / scale)
    return a, float(model.intercept_[0] - a * mean)


def _log_odds(labels: Integer[np.ndarray, "n"]) -> float:
    """Of a text's being positive, where nothing is known of it."""
    share = labels.mean()
    return float(np.log(share / (1 - share)))


def _regress(x: Float[np.ndarray, "n k"], y: Integer[np.ndarray, "n"], **options: Any) -> Any:
    """scikit-learn's logistic regression, without its warnings: `fit` reports convergence in the probe instead."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError(MISSING) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(**options).fit(x, y)
