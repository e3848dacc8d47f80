"""The probe: an L1 logistic regression on a model's features, the unit it leans on, and that unit measured alone.

As in the release of Radford et al. 2017 (arXiv 1704.01444): the strength of the penalty is chosen on the dev split, and
everything else on the training split. Test labels enter accuracies only. numpy and scikit-learn, never jax.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from mlstm_jax.config import UserError, require

STRENGTHS = tuple(2.0**k for k in range(-8, 1))  # the paper release's values of C


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
) -> Probe:
    """The probe with the best dev accuracy among `STRENGTHS`; the strongest penalty wins a tie.

    Labels are 0 (negative) and 1 (positive). Raises UserError where a label is missing from the training texts, where
    features are not finite, and where scikit-learn is not installed. Source: the paper release's `train_with_reg_cv`.
    """
    require(set(np.unique(train_y)) == {0, 1}, "the training texts of a probe need both labels, 0 and 1, and no other")
    finite = np.isfinite(train_x).all() and np.isfinite(dev_x).all()
    require(bool(finite), "these features are not finite numbers: the weights are damaged, or their training diverged")
    best, best_accuracy = None, -1.0
    for c in STRENGTHS:
        model = _regress(train_x, train_y, l1_ratio=1.0, solver="liblinear", C=c, random_state=42)
        converged = bool(model.n_iter_.max() < model.max_iter)
        candidate = Probe(c, model.coef_[0], float(model.intercept_[0]), converged)
        dev_accuracy = accuracy(candidate, dev_x, dev_y)
        if best is None or dev_accuracy > best_accuracy:
            best, best_accuracy = candidate, dev_accuracy
    return best


def accuracy(probe: Probe, x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"]) -> float:
    """Fraction of texts that the probe labels rightly."""
    return float(np.mean((x @ probe.coefficients + probe.intercept > 0) == (y == 1)))


def units_used(probe: Probe) -> int:
    """Number of units with a coefficient other than zero."""
    return int(np.count_nonzero(probe.coefficients))


def top_unit(probe: Probe, train_x: Float[np.ndarray, "n hidden"], train_y: Integer[np.ndarray, "n"]) -> int:
    """The unit with the largest absolute coefficient; where all are zero, the unit most accurate alone on train.

    The lowest number wins a tie.
    """
    if units_used(probe):
        return int(np.argmax(np.abs(probe.coefficients)))
    return int(np.argmax([_accuracy_alone(values, train_y) for values in train_x.T]))


def measure_unit(x: Float[np.ndarray, "n hidden"], y: Integer[np.ndarray, "n"], unit: int) -> UnitMeasure:
    """One unit's class means, deviation, threshold and one-unit logistic, from training features and both labels."""
    values = x[:, unit].astype(np.float64)
    sign, means = _sign(values, y), (values[y == 0].mean(), values[y == 1].mean())
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


def best_threshold(values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"], sign: int) -> float:
    """The threshold of highest accuracy: midway between two neighbouring values, or 1 beyond the outermost.

    Where several are as accurate, the one that calls the most texts positive.
    """
    v = sign * values.astype(np.float64)
    order = np.argsort(v)
    v, positive = v[order], labels[order] == 1
    # right[k]: texts labelled rightly when the k lowest are called negative and all others positive.
    right = positive.sum() + np.concatenate([[0], np.cumsum(np.where(positive, -1, 1))])
    thresholds = np.concatenate([v[:1] - 1, (v[:-1] + v[1:]) / 2, v[-1:] + 1])
    apart = np.concatenate([[True], v[:-1] < v[1:], [True]])  # no threshold parts equal values
    return float(sign * thresholds[np.argmax(np.where(apart, right, -1))])


def unit_accuracy(
    values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"], sign: int, threshold: float
) -> float:
    """Fraction of texts labelled rightly by one unit's value and its threshold."""
    # In float64: numpy would round the threshold to the values' float32, and so move it onto a value.
    return float(np.mean((sign * values.astype(np.float64) > sign * threshold) == (labels == 1)))


def _sign(values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> int:
    return 1 if values[labels == 1].mean() >= values[labels == 0].mean() else -1


def _accuracy_alone(values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> float:
    sign = _sign(values, labels)
    return unit_accuracy(values, labels, sign, best_threshold(values, labels, sign))


def _one_unit_logistic(values: Float[np.ndarray, "n"], labels: Integer[np.ndarray, "n"]) -> tuple[float, float]:
    """(a, b) of P(positive) = sigmoid(a * value + b)."""
    if values.min() == values.max():  # such a unit says nothing: the share of positive texts is left
        share = labels.mean()
        return 0.0, float(np.log(share / (1 - share)))
    mean, scale = values.mean(), values.std()
    # A trace of L2 penalty keeps the slope finite where the unit separates the classes.
    model = _regress(((values - mean) / scale)[:, None], labels, C=1e4)
    a = float(model.coef_[0, 0] / scale)
    return a, float(model.intercept_[0] - a * mean)


def _regress(x: Float[np.ndarray, "n k"], y: Integer[np.ndarray, "n"], **options: Any):
    """scikit-learn's logistic regression, without its warnings: `fit` reports convergence in the probe instead."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("the probe needs scikit-learn: pip install 'scikit-learn>=1.8'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(**options).fit(x, y)
