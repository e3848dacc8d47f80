"""What is counted of scored reviews: in bounded memory, however many there are."""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from mlstm_jax.sentiment.scores import Review
from mlstm_jax.tasks.polarity import number
from mlstm_jax.unit_record import UnitRecord, positive

FIRST = 5  # rows without a value whose places are named
UNREAD = 50  # that are kept
EXTREMES = 10  # reviews that are kept on either side
LONGEST = 1000  # characters of such a review
BINS = 1024  # of the histogram, at most
MOST = 1000  # different values of a column; reviews of further ones are counted together
DATES = 0.95  # of a column's cells that are dates, for it to be taken by month


class Without(NamedTuple):
    """Rows without a value for one reason: how many, where the first are, and what is wrong with the first."""

    rows: int
    first: list[str]
    why: str


class Extreme(NamedTuple):
    """A review and its value."""

    review: Review
    value: float


class Group(NamedTuple):
    """Reviews with one value of a column: how many, how many positive, the mean value and its 95 % interval."""

    name: str
    reviews: int
    positive: int
    mean: float
    low: float
    high: float


class Tally:
    """Counts of rows, a histogram of values, means by a column, the most extreme reviews, and what was not read."""

    def __init__(self, record: UnitRecord, several: bool = False, by: str | None = None):
        self.record, self.several, self.by = record, several, by
        self.rows = self.scored = self.positive = 0
        self.without: dict[str, Without] = {}
        self.unread: list[Review] = []
        self.histogram = Histogram()
        self.column = Column()
        self._extremes: dict[int, list[tuple[float, int, Extreme]]] = {1: [], -1: []}

    def add(self, group: Sequence[Review], values: Float[np.ndarray, "n"]) -> None:
        """Count a group of reviews; those without a value have NaN."""
        above = positive(values, self.record)
        known = ~np.isnan(values)
        self.rows += len(group)
        self.scored += int(known.sum())
        self.positive += int(above.sum())
        self.histogram.add(values[known])
        for review in group:
            if review.note:
                self._add_unread(review)
        if self.by is not None:
            cells = [review.cells.get(self.by) for review in group]
            self.column.add([cells[i] for i in np.flatnonzero(known).tolist()], values[known], above[known])
        self._add_extremes(group, values)

    def extremes(self, side: int) -> list[Extreme]:
        """The most positive reviews, or with side -1 the most negative ones, the most extreme first.

        Of at most `LONGEST` characters; of several that the model reads as the same, the first.
        """
        return [extreme for *_, extreme in sorted(self._extremes[side], reverse=True)]

    def place(self, review: Review) -> str:
        """Where a review stands in the input."""
        return f"{review.source}:{review.line}" if self.several else str(review.line)

    def _add_unread(self, review: Review) -> None:
        reason, _, why = (review.note or "").partition(": ")
        count, first, why = self.without.get(reason, Without(0, [], why))
        self.without[reason] = Without(count + 1, first + [self.place(review)] * (count < FIRST), why)
        if len(self.unread) < UNREAD:
            self.unread.append(review._replace(text=review.text[:LONGEST], framed=b"", cells={}))

    def _add_extremes(self, group: Sequence[Review], values: Float[np.ndarray, "n"]) -> None:
        for side, heap in self._extremes.items():
            towards = side * self.record.sign * values
            least = heap[0][0] if len(heap) == EXTREMES else -np.inf
            for i in np.flatnonzero(towards > least).tolist():  # NaN is not
                review = group[i]
                same = any(kept.review.framed == review.framed for *_, kept in heap)
                if len(review.text) > LONGEST or same:
                    continue
                order = self.rows - len(group) + i  # of equal ones the first is kept
                entry = (float(towards[i]), -order, Extreme(review._replace(cells={}), float(values[i])))
                (heapq.heappush if len(heap) < EXTREMES else heapq.heappushpop)(heap, entry)


class Histogram:
    """Counts of values in bins of equal width, which doubles as the values spread. Their order does not matter."""

    def __init__(self):
        self.width, self.counts = 2.0**-40, Counter[int]()
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Float[np.ndarray, "n"]) -> None:
        """Count values, none of them NaN."""
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        width, far = self.width, max(-self.low, self.high)
        while (self.high - self.low) / width > BINS - 2 or far / width > 2**52:  # the latter for equal large ones
            width *= 2
        self._widen(width)
        bins, counts = np.unique(np.floor(values / width).astype(np.int64), return_counts=True)
        self.counts.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))

    def _widen(self, width: float) -> None:
        times = round(width / self.width)
        if times > 1:
            merged = Counter[int]()
            for i, count in self.counts.items():
                merged[i // times] += count
            self.width, self.counts = width, merged

    def bars(self, outside: float, most: int = 60) -> tuple[Float[np.ndarray, "n_plus_one"], Integer[np.ndarray, "n"]]:
        """Edges and counts of at most `most` bars; the share `outside` of the values at either end is left out."""
        places = np.array(sorted(self.counts))
        total = np.cumsum([self.counts[i] for i in places.tolist()])
        low, high = (int(places[np.searchsorted(total, share * total[-1])]) for share in (outside, 1 - outside))
        times = -(-(high - low + 1) // most)
        starts = range(low, high + 1, times)
        counts = [sum(self.counts[i] for i in range(start, min(start + times, high + 1))) for start in starts]
        return self.width * np.array([*starts, starts[-1] + times]), np.array(counts)


class Column:
    """Values of reviews by those of a column, which is read as text and as dates in two orders until all are known."""

    def __init__(self):
        self.cells = 0
        readings: dict[str, Callable[[str], str | None]] = {
            "by month, dates read as month/day": partial(month, day_first=False),
            "by month, dates read as day/month": partial(month, day_first=True),
            "": lambda text: text[:100],
        }
        self.readings = readings
        self.sums: dict[str, dict[str | None, list[float]]] = {name: {} for name in readings}

    def add(self, cells: Sequence[object], values: Float[np.ndarray, "n"], above: Bool[np.ndarray, "n"]) -> None:
        """Count values under the cells of the column, None or "" where there is none."""
        for cell, value, is_positive in zip(cells, values.tolist(), above.tolist(), strict=True):
            text = "" if cell is None else str(cell).strip()
            self.cells += text != ""
            for name, reading in self.readings.items():
                sums = self.sums[name]
                key = reading(text) if text else ""
                if key not in sums and len(sums) >= MOST:
                    key = None
                if key not in sums:
                    sums[key] = [0, 0, 0.0, 0.0]
                of_key = sums[key]
                of_key[0] += 1
                of_key[1] += is_positive
                of_key[2] += value
                of_key[3] += value * value

    def groups(self) -> tuple[str, list[Group]]:
        """How the column was read, and its groups: months in order, numbers in order, else the largest group first."""
        read = lambda sums: sum(of_key[0] for key, of_key in sums.items() if key)
        by_dates = [name for name in self.sums if name and read(self.sums[name]) >= DATES * max(1, self.cells)]
        name = next(iter(by_dates), "")
        sums = self.sums[name]
        named = {key: of_key for key, of_key in sums.items() if key}
        numbers = {key: value for key in named if (value := number(key)) is not None}
        if name:
            order = sorted(named)
        elif len(numbers) == len(named):
            order = sorted(numbers, key=numbers.__getitem__)
        else:
            order = sorted(named, key=lambda key: (-named[key][0], key))
        rest = {"": "(empty)", None: "(no date)" if name else "(other values)"}
        groups = [_group(key, *named[key]) for key in order]
        if len(by_dates) == 2 and self.sums[by_dates[0]] == self.sums[by_dates[1]]:
            name = "by month"
        return name, groups + [_group(shown, *sums[key]) for key, shown in rest.items() if key in sums]


def _group(name: str, count: float, above: float, total: float, squares: float) -> Group:
    mean = total / count
    half = 1.96 * np.sqrt(max(0.0, squares / count - mean * mean) / count)
    return Group(name, int(count), int(above), mean, mean - half, mean + half)


_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})(?:\2\d{1,2}(?:\D.*)?)?", re.DOTALL)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/. ])(\d{1,2}),?\2(\d{4})(?:\D.*)?", re.DOTALL)
_MONTHS: Sequence[str] = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_NAMED = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]*\b", re.IGNORECASE)
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def month(text: str, day_first: bool) -> str | None:
    """The month of a date, as 2024-03; None for what is no date. Also of a Unix time in seconds or milliseconds.

    `day_first` says which of two numbers before a year is the day.
    """
    if found := _YEAR_FIRST.fullmatch(text):
        year, place = int(found[1]), int(found[3])
    elif found := _YEAR_LAST.fullmatch(text):
        year, place, day = int(found[4]), *(int(found[i]) for i in ((3, 1) if day_first else (1, 3)))
        if not 1 <= day <= 31:
            return None
    elif text.isascii() and text.isdigit() and len(text) in (10, 13):
        time = datetime.fromtimestamp(int(text) // (1000 if len(text) > 10 else 1), UTC)
        year, place = time.year, time.month
    elif len(text) <= 40 and (name := _NAMED.search(text)) and (found := _YEAR.search(text)):
        year, place = int(found[0]), _MONTHS.index(name[1].lower()) + 1
    else:
        return None
    return f"{year:04}-{place:02}" if 1 <= place <= 12 else None
