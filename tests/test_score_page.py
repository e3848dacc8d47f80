"""The page of scored reviews: what it counts, in how much memory, and what it shows."""

import dataclasses
import json
import re
import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import planted_model
from helpers.files import as_csv, put, unhurried
from helpers.pages import HOSTILE, Page, opened
from helpers.unit_records import RECORD
from mlstm_jax import unit_record
from mlstm_jax.cli import evaluate, score
from mlstm_jax.cli.program import explain
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.sentiment import probe, tally
from mlstm_jax.sentiment.scores import Review
from mlstm_jax.sentiment.tally import Column, Histogram, Tally, month
from mlstm_jax.text import frame

UP = dataclasses.replace(RECORD, sign=1, threshold=0.0)


def review(text, line=1, note=None, **cells):
    return Review("a.csv", line, text, None, note, frame(text), 0.0, cells)


# What is counted

number = st.floats(-1e6, 1e6).map(lambda x: float(np.float32(x)))


@unhurried
@given(values=st.lists(number, min_size=1, max_size=40), data=st.data())
def test_a_histogram_is_that_of_all_values_however_they_come(values, data):
    values = np.array(values)
    whole, parts = Histogram(), Histogram()
    whole.add(values)
    for part in np.array_split(values[data.draw(st.permutations(range(len(values))))], data.draw(st.integers(1, 5))):
        parts.add(part)
    assert (whole.width, whole.counts) == (parts.width, parts.counts) and len(whole.counts) <= tally.BINS
    assert whole.counts == {k: n for k in whole.counts if (n := int((np.floor(values / whole.width) == k).sum()))}
    edges, counts = whole.bars(outside=0.0, most=10)
    assert len(counts) == len(edges) - 1 <= 10 and counts.sum() == len(values)
    assert edges[0] <= values.min() and values.max() <= edges[-1]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert ((low <= values) & (values < high)).sum() == count


def test_the_outermost_values_leave_the_picture():
    histogram = Histogram()
    histogram.add(np.concatenate([np.linspace(0, 1, 1000), [500.0, -500.0]]))
    edges, counts = histogram.bars(outside=0.01)
    assert -1.1 < edges[0] and edges[-1] < 2.1 and counts.sum() >= 980


@pytest.mark.parametrize("sign", [1, -1])
def test_the_extremes_are_those_of_all_reviews_that_are_short_and_different(sign):
    draw = np.random.default_rng(0)
    counted, every = Tally(dataclasses.replace(UP, sign=sign)), []
    for start in range(0, 300, 60):
        group = [review(f"text {draw.integers(150)}" + "x" * 1000 * (i % 7 == 0), i) for i in range(start, start + 60)]
        values = np.array([float(np.float32(hash(r.text[:9]) % 1000)) for r in group])
        values[3] = np.nan
        group[3] = group[3]._replace(note="empty")
        counted.add(group, values)
        every += [(v, r) for v, r in zip(values, group, strict=True) if r.note is None and len(r.text) <= tally.LONGEST]
    for side in (1, -1):
        order = sorted(every, key=lambda pair: (-side * sign * pair[0], pair[1].line))
        first = {pair[1].framed: pair for pair in reversed(order)}
        expected = [pair for pair in order if first[pair[1].framed] is pair][: tally.EXTREMES]
        assert [(e.value, e.review.line) for e in counted.extremes(side)] == [(v, r.line) for v, r in expected]


def test_rows_are_counted_by_side_and_without_a_value_by_reason():
    counted = Tally(UP, several=True)
    group = [review("a"), review("", 2, "empty"), review("{", 3, "not readable: not JSON"), review("b", 4)]
    counted.add(group, np.array([1.0, np.nan, np.nan, -1.0]))
    counted.add([review("", 5, "empty")], np.array([np.nan]))
    assert (counted.rows, counted.scored, counted.positive) == (5, 2, 1)
    assert counted.without["empty"] == (2, ["a.csv:2", "a.csv:5"], "")
    assert counted.without["not readable"] == (1, ["a.csv:3"], "not JSON") and len(counted.unread) == 3


@pytest.mark.parametrize(
    "text, month_first, day_first",
    [
        ("2024-03-01", "2024-03", "2024-03"),
        ("2024-3", "2024-03", "2024-03"),
        ("2024/03/01 12:30", "2024-03", "2024-03"),
        ("2024-03-01T12:30:00Z", "2024-03", "2024-03"),
        ("3/14/2024", "2024-03", None),
        ("14.3.2024", None, "2024-03"),
        ("03 5, 2014", "2014-03", "2014-05"),
        ("March 5, 2024", "2024-03", "2024-03"),
        ("5 Sept 2024 at noon", "2024-09", "2024-09"),
        ("1588615855", "2020-05", "2020-05"),
        ("1588615855070", "2020-05", "2020-05"),
        ("2024-13-01", None, None),
        ("5", None, None),
        ("maybe", None, None),
        ("marching 12", None, None),
        ("", None, None),
    ],
)
def test_the_month_of_a_date(text, month_first, day_first):
    assert (month(text, False), month(text, True)) == (month_first, day_first)


def grouped(cells, values=None):
    column, values = Column(), np.arange(len(cells), dtype=float) if values is None else np.array(values)
    column.add(cells, values, values > 1)
    return column.groups()


def test_a_column_is_grouped_by_month_by_number_or_the_largest_first():
    reading, groups = grouped(["14.03.2024", "02.03.2024", "01.04.2023", "", None])
    assert reading == "by month, dates read as day/month"
    assert [(group.name, group.reviews) for group in groups] == [("2023-04", 1), ("2024-03", 2), ("(empty)", 2)]
    assert groups[1].mean == 0.5 and groups[1].positive == 0 and groups[2].positive == 2
    assert grouped(["2024-03-01"] * 30 + ["soon"])[0] == "by month"
    assert [group.name for group in grouped(["2024-03-01"] * 30 + ["soon"])[1]] == ["2024-03", "(no date)"]
    assert [group.name for group in grouped([10, "9", 2.5, "9"])[1]] == ["2.5", "9", "10"]
    reading, groups = grouped(["north", "south", "south", "5"])
    assert reading == "" and [group.name for group in groups] == ["south", "5", "north"]


def test_a_mean_has_the_interval_of_its_group():
    values = np.random.default_rng(0).normal(3, 2, 400)
    ((mean, low, high),) = [group[3:] for group in grouped(["a"] * 400, values)[1]]
    assert mean == pytest.approx(values.mean()) and (low + high) / 2 == pytest.approx(mean)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20)


def test_memory_does_not_grow_with_the_number_of_reviews():
    counted = Tally(UP, by="id")
    add = lambda start: counted.add(
        [
            review(f"{i} " + "x" * 500, i, None if i % 2 else "empty", id=f"{i:_<90}")
            for i in range(start, start + 1000)
        ],
        np.where(np.arange(start, start + 1000) % 2, np.sin(np.arange(start, start + 1000)), np.nan),
    )
    for start in range(0, 5000, 1000):
        add(start)
    tracemalloc.start()
    try:
        for start in range(5000, 25_000, 1000):
            add(start)
        assert tracemalloc.get_traced_memory()[0] < 1 << 19  # of 20 MB
    finally:
        tracemalloc.stop()
    assert counted.rows == 25_000 and counted.column.groups()[1][-1].name == "(other values)"


# The page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved model whose unit 7 copies the last smiley, evaluated on stars: 4 and 5 against 1 and 2."""
    folder = tmp_path_factory.mktemp("planted")
    planted_model.smileys().save(folder / "run")
    rng, rows = np.random.default_rng(0), [["stars", "text"]]
    for i in range(300):
        stars = int(rng.integers(1, 6))
        wrong = bool(rng.random() < 0.1)
        rows.append([stars, f"{':)' if (stars > 3) != wrong else ':('} {i} {rng.bytes(6).hex()}"])
    stars = put(folder / "stars.csv", as_csv(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "load", cache(language_model.load))
        evaluate.main(folder / "run", task=str(stars), positive="4,5", negative="1,2", threshold="f1")
        yield folder / "run"


REVIEWS = [["when", "text"], ["2024-03-02", ":) yes <b>"], ["2024-03-09", f":) {HOSTILE}"], ["2024-04-01", ":( no"]]
REVIEWS += [["2024-04-02", ""], ["2024-04-03", ":( 3"], ["2024-05-03", ":) 4 \x1b[1m"]]


def page_of(run, tmp_path, rows=REVIEWS, **options):
    source = put(tmp_path / "a.csv", as_csv(rows) + b"only one\n")
    score.main(run, (str(source),), out=tmp_path / "b.csv", report=tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def rows_of(html):
    """The rows of all tables, as texts."""
    rows = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    return {row[0]: row[1:] for row in rows}


def test_the_page_says_what_was_counted_and_shows_the_extremes(run, tmp_path, capsys):
    html = page_of(run, tmp_path, by="When")
    page, rows = Page(html), rows_of(html)
    record = language_model.load(run, precision="auto").unit
    assert page.parts["h1"] == ["7 reviews of a.csv"]
    assert page.parts["h2"][:5] == [
        "Share positive",
        "By when",
        "Most positive",
        "Most negative",
        "Rows that could not be read",
    ]
    assert page.parts["p"][0] == unit_record.verdict(record)
    low, high = probe.share_interval(3, 5)
    assert rows["positive"] == [f"3, 60.0% [{low:.1%}, {high:.1%}]"] and rows["scored"] == ["5 of 7 rows"]
    assert rows["classes"] == ["positive = 4 or 5, negative = 1 or 2"] and "by f1" in rows["threshold"][0]
    assert [rows[name][0] for name in ("2024-03", "2024-04", "2024-05")] == ["2", "2", "1"]
    assert (
        rows["5"] == ["empty", ""] and rows["8"][0].startswith("not readable: 1 columns") and rows["8"][1] == "only one"
    )
    anchors = [f"#{value}" for tag, name, value in page.attributes if (tag, name) == ("h2", "id")]
    assert page.tags.count("svg") == 2 and page.addresses == anchors  # it loads nothing
    assert HOSTILE not in html and "<script" not in html and "\x1b" not in html and "<b>" not in html
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().err


def test_a_browser_shows_the_page_and_runs_nothing(run, tmp_path):
    page_of(run, tmp_path, by="text")
    (tmp_path / "chrome").mkdir()
    shown, console = opened(tmp_path / "page.html", tmp_path / "chrome")
    assert "<title>7 reviews of a.csv</title>" in shown and not console


def test_a_page_is_not_overwritten_and_comes_from_a_finished_file_too(run, tmp_path, monkeypatch):
    html = page_of(run, tmp_path, by="when")
    with pytest.raises(UserError, match="page.html is there already"):
        score.main(run, (str(tmp_path / "a.csv"),), out=tmp_path / "c.csv", report=tmp_path / "page.html")
    assert not (tmp_path / "c.csv").exists()
    (tmp_path / "page.html").unlink()
    monkeypatch.setattr(score, "read", None)  # nothing is computed again
    again = dict(out=tmp_path / "b.csv", report=tmp_path / "page.html", by="when", resume=True)
    score.main(run, (str(tmp_path / "a.csv"),), **again)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize("name", ["b.csv", "b.jsonl"])
def test_a_resumed_run_has_the_page_and_the_file_of_an_uninterrupted_one(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(score, "ROWS", 2)
    source = put(tmp_path / "a.csv", as_csv(REVIEWS))
    whole, out = tmp_path / f"whole_{name}", tmp_path / name
    main = lambda out, **more: score.main(run, (str(source),), out=out, report=tmp_path / f"{out.name}.html", **more)
    main(whole, by="when")
    read, count = score.read, []

    def dying(*args):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return read(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(score, "read", dying)
        main(out, by="when")
    assert not (tmp_path / f"{out.name}.html").exists()
    main(out, by="when", resume=True)
    assert out.read_bytes() == whole.read_bytes()
    pages = [(tmp_path / f"{path.name}.html").read_text(encoding="utf-8") for path in (whole, out)]
    assert pages[0] == pages[1]


def test_a_page_of_nothing_scored_says_why(run, tmp_path):
    with pytest.raises(UserError, match="no row could be scored"):
        page_of(run, tmp_path, rows=[["id", "text"], ["1", ""], ["2", " "]], by="id")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.parts["h2"][:2] == ["Share positive", "Rows that could not be read"]


def test_options_of_the_page_that_contradict_are_refused(run, tmp_path):
    source, page = put(tmp_path / "a.csv", as_csv(REVIEWS)), tmp_path / "page.html"

    def refused(**options):
        with pytest.raises(UserError) as error:
            score.main(run, (str(source),), out=tmp_path / "b.csv", **options)
        assert not (tmp_path / "b.csv").exists()
        return explain(error.value)

    assert "--by goes with --report" in refused(by="when")
    assert "no column 'wen'; there are: when, text; did you mean 'when'?" in refused(by="wen", report=page)
    assert "leave --columns text out" in refused(by="when", report=page, columns="text")
    assert "a file .html" in refused(report=tmp_path / "page.pdf")
    with pytest.raises(UserError, match="is the page, too"):
        score.main(run, (str(source),), out=page, report=page)
    assert "make it first" in refused(report=tmp_path / "none" / "page.html")


def test_a_record_of_stars_is_used_by_score_and_sample(run, tmp_path, run_here):
    record = language_model.load(run, precision="auto").unit
    assert (record.positive, record.negative, record.threshold_by) == ("4 or 5", "1 or 2", "f1")
    source = put(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in (":) a", ":( b")))
    ended = run_here("mlstm score", run, source, "--out", tmp_path / "b.jsonl")
    assert ended.status == 0 and "positive = 4 or 5, negative = 1 or 2; threshold by f1" in ended.err
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["sentiment"] for row in rows] == ["positive", "negative"]
    for sentiment, smiley in (("+2", ":)"), ("-2", ":(")):
        ended = run_here("mlstm sample", run, f"--sentiment={sentiment}", "--length", 30, "--num", 1, "--prime", "x ")
        assert ended.status == 0 and ended.out.count(smiley) >= 8, ended
