"""Does holding the unit set the sentiment? Samples at several values, judged by scorers that are not the model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mlstm_jax import unit_record
from mlstm_jax.errors import UserError
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model.cell import State, Weights, scan, zero_state
from mlstm_jax.model.parameters import read_out
from mlstm_jax.progress import progress
from mlstm_jax.tasks import Task, packaged_task
from mlstm_jax.text import to_bytes
from mlstm_jax.training.updates import LOG2
from mlstm_jax.unit_record import UnitRecord

logger = logging.getLogger(__name__)

Scorer = Callable[[list[str]], Float[np.ndarray, "n"]]  # how positive each text is

BATCH = 64  # samples scored side by side
CHUNK = 64  # bytes of every sample in one compiled call
RESAMPLES = 2000  # of the bootstrap


class Estimate(NamedTuple):
    """A mean over samples and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """What was written with the unit held k deviations from neutral."""

    k: float
    value: float  # of the cell state, as `unit_record.clamp_value` has it
    scores: dict[str, Estimate]  # by scorer
    bits_per_byte: Estimate  # under the same model with no unit held: what the clamp costs in fluency
    texts: list[str]


def measure(
    model: LanguageModel,
    record: UnitRecord,
    deviations: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    num: int = 64,
    length: int = 200,
    prime: str = "",
    options: SamplingOptions = SamplingOptions(),
    scorers: Mapping[str, Scorer] | None = None,
    show_progress: bool = False,
) -> list[Row]:
    """A row for every k of `deviations`: `num` samples of `length` bytes with the record's unit held there, judged.

    `scorers` are `available()` by default. All rows draw with the same keys, so that they differ by the clamp alone.
    Raises UserError for a record of other weights or of another feature than the cell, and where `length` is 0.
    """
    if record.digest != model.digest:
        raise unit_record.other_weights(record, model.path)
    if length < 1:
        raise UserError("samples to judge need a length of at least 1 byte")
    values = [unit_record.clamp_value(record, k) for k in deviations]
    scorers = available() if scorers is None else scorers
    rows = []
    with progress("sampling with the unit held", len(deviations) * num * length, show_progress) as done:
        for k, value in zip(deviations, values, strict=True):
            written = [bytearray() for _ in range(num)]

            def on_bytes(sample: int, piece: bytes, written: list[bytearray] = written) -> None:
                written[sample].extend(piece)
                done(len(piece))

            texts = model.generate(prime, num, length, {record.unit: value}, on_bytes=on_bytes, **asdict(options))
            scores = {name: estimate(np.asarray(scorer(texts)), options.seed) for name, scorer in scorers.items()}
            bits = bits_per_byte(model, to_bytes("\n " + prime), list(map(bytes, written)))
            rows.append(Row(float(k), value, scores, estimate(bits, options.seed), texts))
    return rows


def estimate(values: Float[np.ndarray, "n"], seed: int = 0) -> Estimate:
    """The mean of the values, and the 2.5 and 97.5 percentiles of the means of samples drawn from them anew."""
    resampled = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[resampled].mean(axis=1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def monotone(rows: list[Row]) -> dict[str, float]:
    """Spearman's rank correlation of k with the mean score, by scorer: 1 where every step up makes it more positive.

    0 where the score, or k, is the same in all rows.
    """
    from scipy.stats import rankdata  # late: it is slow to import

    def correlation(scores: list[float]) -> float:
        a, b = (ranks - ranks.mean() for ranks in map(rankdata, ([row.k for row in rows], scores)))
        scale = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / scale) if scale else 0.0

    return {name: correlation([row.scores[name].mean for row in rows]) for name in rows[0].scores} if rows else {}


@jax.jit
def _bits(
    weights: Weights, data: UInt8[Array, "n bytes_and_one"], state: State
) -> tuple[Float[Array, "n bytes"], State]:
    """The bits that each byte but the first of every row costs, and the state before the last."""
    state, hidden = scan(weights, data[:, :-1], state, emit=lambda state: state[1])
    log_probs = jax.nn.log_softmax(read_out(weights, hidden))
    return -jnp.take_along_axis(log_probs, data[:, 1:, None].astype(jnp.int32), axis=2)[..., 0] / LOG2, state


def bits_per_byte(model: LanguageModel, start: bytes, texts: list[bytes]) -> Float[np.ndarray, "n"]:
    """Mean bits that the bytes of each text cost after `start`, with no unit held; any lengths, batched.

    Raises UserError for an empty start and an empty text.
    """
    if len(start) <= 0 or not all(texts):
        raise UserError("bits per byte need a byte to start from, and texts of at least 1 byte")
    means = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        longest = len(start) + max(map(len, batch)) - 1
        data = np.zeros((BATCH, -(-longest // CHUNK) * CHUNK + 1), np.uint8)
        for row, text in enumerate(batch):
            data[row, : len(start) + len(text)] = np.frombuffer(start + text, np.uint8)
        bits, state = [], zero_state(model.weights, BATCH)
        for place in range(0, data.shape[1] - 1, CHUNK):
            piece, state = _bits(model.weights, data[:, place : place + CHUNK + 1], state)
            bits.append(np.asarray(piece, np.float64))
        bits = np.concatenate(bits, axis=1)[:, len(start) - 1 :]
        means += [row[: len(text)].mean() for row, text in zip(bits, batch, strict=False)]
    return np.array(means)


def vader() -> Scorer:
    """VADER's compound score, -1 to 1 (Hutto & Gilbert 2014): a lexicon and rules, trained on nothing of ours.

    Raises UserError where vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError("VADER needs vaderSentiment: pip install vaderSentiment") from None
    score = SentimentIntensityAnalyzer().polarity_scores
    return lambda texts: np.array([score(text)["compound"] for text in texts], np.float64)


def bag_of_words(task: Task | None = None) -> tuple[Scorer, float]:
    """P(positive) of a logistic regression on words and pairs of words (TF-IDF), and its accuracy on the test texts.

    Trained on the training texts of `task` (by default the packaged IMDB reviews). Raises UserError where scikit-learn
    or the packaged reviews are not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("the bag-of-words scorer needs scikit-learn: pip install 'scikit-learn>=1.8'") from None
    task = packaged_task("imdb") if task is None else task
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min(5, 1 + len(task.train.texts) // 1000))
    regression = LogisticRegression(C=10, max_iter=1000).fit(words.fit_transform(task.train.texts), task.train.labels)
    scorer = lambda texts: regression.predict_proba(words.transform(texts))[:, 1]
    return scorer, float(np.mean((scorer(task.test.texts) > 0.5) == (task.test.labels == 1)))


def available() -> dict[str, Scorer]:
    """The scorers that can be had here, by name. One that lacks its package or its reviews is left out with a line."""
    found: dict[str, Scorer] = {}
    try:
        found["VADER"] = vader()
    except UserError as error:
        logger.warning(f"not judged by VADER: {error}")
    try:
        with progress("training the bag of words", 1, counted=True):
            found["bag of words"], accuracy = bag_of_words()
        logger.info(f"the bag of words labels {accuracy:.1%} of the IMDB test reviews rightly")
    except UserError as error:
        logger.warning(f"not judged by bag of words: {error}")
    return found
