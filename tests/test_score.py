"""A scored file has a row for every row of its source, in order, with nothing lost, wherever the program was killed."""

import csv
import dataclasses
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.files import any_text, as_csv, as_parquet, put, unhurried
from helpers.programs import ROOT
from helpers.unit_records import RECORD
from mlstm_jax import unit_record
from mlstm_jax.cli import score
from mlstm_jax.cli.program import explain
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.model.parameters import init
from mlstm_jax.sentiment import scores, tally
from mlstm_jax.sentiment.scores import Review
from mlstm_jax.text import EMPTY, frame, to_bytes, to_text

TEXTS = ["I loved it", "a <br /> &amp; café", "bad", "x" * 700, "The worst."]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Saved weights of 8 units with a record, which are opened once."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    model = language_model.LanguageModel(init(ModelConfig(hidden=8, embed=4), 0), folder)
    model.save(folder)
    coefficients = (0.0,) * 8
    record = dataclasses.replace(RECORD, digest=model.digest, coefficients=coefficients, threshold=-0.01, a=-30.0)
    unit_record.save(record, folder / "units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "load", cache(language_model.load))
        yield folder


def scored(run, source, out, **options):
    """The rows of a source as dicts, as they are read back from what is written of it."""
    out.unlink(missing_ok=True)
    try:
        score.main(run, (str(source),), out=out, **{"columns": "text"} | options)
    except UserError as error:
        assert "no row could be scored" in str(error)
    return back(out.read_bytes(), out.suffix == ".jsonl" or options.get("json"))


def back(data, as_json=False):
    if as_json:
        return [json.loads(line) for line in data.split(b"\n")[:-1]]
    rows = csv.reader(io.StringIO(to_text(data), newline=""), strict=True)
    header = next(rows)
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    number = lambda row: {name: float(row[name]) if row[name] else None for name in ("value", "probability")}
    line = lambda row: {"line": int(row["line"])} if "line" in row else {}
    return [row | line(row) | number(row) for row in rows]


CLASSES = "positive = positive, negative = negative"  # of a record of version 0.1
UNIT = f"{CLASSES}\nsentiment unit 2: 85.0% alone on sst"


def texts_file(path, texts=TEXTS, labels=None):
    labels = [i % 2 for i in range(len(texts))] if labels is None else labels
    return put(path, as_csv([["label", "text"], *zip(labels, texts, strict=True)], quoting=csv.QUOTE_ALL))


# Rows


def test_labels_within_the_lines_of_a_text_file_are_no_part_of_its_texts(run, tmp_path, capsys):
    source = put(tmp_path / "a.txt", "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TEXTS * 3)))
    rows = scored(run, source, tmp_path / "b.csv")
    assert [row["text"] for row in rows] == TEXTS * 3 and [row["label"] for row in rows] == list("010101010101010")
    assert capsys.readouterr().err.count("its lines hold labels (a tab and a label at the end)") == 1


@pytest.mark.parametrize("feature", ["cell", "tanh_cell", "hidden"])
def test_values_are_those_of_each_text_alone_in_the_feature_of_the_record(run, tmp_path, feature):
    model = language_model.load(run)
    record = dataclasses.replace(
        unit_record.load(model.record_dirs, model.digest), feature=feature, task=f"task_{feature}"
    )
    unit_record.save(record, run / "units")
    rows = scored(run, texts_file(tmp_path / "a.csv"), tmp_path / "b.jsonl", task=record.task)
    alone = [float(model.encode([text], feature)[0, record.unit]) for text in TEXTS]
    np.testing.assert_allclose([row["value"] for row in rows], alone, rtol=1e-5, atol=1e-6)
    by_hand = [1 / (1 + np.exp(-(record.a * row["value"] + record.b))) for row in rows]
    np.testing.assert_allclose([row["probability"] for row in rows], by_hand, rtol=1e-12)
    above = [record.sign * row["value"] > record.sign * record.threshold for row in rows]
    assert [row["sentiment"] for row in rows] == ["positive" if x else "negative" for x in above]
    assert [row["label"] for row in rows] == list("01010") and [row["text"] for row in rows] == TEXTS
    (run / "units" / f"{record.task}.json").unlink()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_on_the_threshold_is_not_positive_and_float32_does_not_round_it_away(sign):
    record = dataclasses.replace(RECORD, sign=sign, threshold=0.1)  # float32(0.1) lies above 0.1
    values = np.array([0.1, np.float32(0.1), 0.2, 0.0, np.nan])
    expected = [False, True, True, False, False] if sign == 1 else [False, False, False, True, False]
    assert unit_record.positive(values, record).tolist() == expected


def test_probability_neither_overflows_nor_loses_small_ones():
    record = dataclasses.replace(RECORD, a=1.0, b=0.0)
    found = unit_record.probability(
        np.array([-1e9, -700.0, 0.0, 700.0, 1e308, np.nan]), dataclasses.replace(record, a=2.0)
    )
    assert found[[0, 2, 3, 4]].tolist() == [0, 0.5, 1, 1] and np.isnan(found[5])
    np.testing.assert_allclose(unit_record.probability(np.array([-700.0]), record), np.exp(-700.0), rtol=1e-12)


@unhurried
@given(texts=st.lists(any_text, min_size=1, max_size=8))
@example(texts=["\0", "a\rb", "c\nd", "e\r\n", '"', ",", "=1+1", "\ud800", "\udcff", "\u2028\x85", " ", "", "nan"])
def test_every_row_comes_out_once_in_order_with_its_whole_text(run, folder, texts):
    lines = [json.dumps({"text": text}) for text in texts]
    source = put(folder / "a.jsonl", "\n".join(lines))
    known = [json.loads(line)["text"] for line in lines]  # json joins surrogates that stand side by side
    as_json = scored(run, source, folder / "out.jsonl")
    assert [row["text"] for row in as_json] == known
    held = [to_text(to_bytes(text)) for text in known]  # all that UTF-8 can hold, and bytes that are none
    as_table = scored(run, source, folder / "out.csv")
    assert [row["text"] for row in as_table] == held
    from_table = scored(run, texts_file(folder / "a.csv", texts), folder / "out.jsonl")
    assert [row["text"] for row in from_table] == [to_text(to_bytes(text)) for text in texts]
    for rows in (as_json, as_table, from_table):
        empty = [frame(text) == EMPTY for text in known]
        assert [row["value"] is None for row in rows] == [bool(row["note"]) for row in rows] == empty
    assert [row["line"] for row in as_json] == [row["line"] for row in as_table] == list(range(1, len(texts) + 1))
    values = [[row["value"] for row in rows] for rows in (as_json, as_table)]
    assert values[0] == values[1]


def test_rows_without_a_value_are_kept_and_told_by_number(run, tmp_path, capsys):
    lines = ['{"text": "good", "label": 1}', "{broken", '{"text": NaN}', '{"text": null}', '{"text": " &nbsp; "}', "{}"]
    lines += ["", '{"text": "bad"}'] + ['{"text": ""}'] * 4
    rows = scored(run, put(tmp_path / "a.jsonl", "\n".join(lines)), tmp_path / "b.jsonl")
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [row["line"] for row in rows if row["value"] is not None] == [1, 8]
    assert rows[1]["text"] == "{broken" and rows[1]["note"].startswith("not readable: not JSON")
    assert rows[2]["note"] == "not readable: 'text' is not a text" and rows[3]["note"] == "empty"
    printed = capsys.readouterr().err.splitlines()
    assert "\n".join([printed.pop(0), printed.pop(0)]) == f"{run}: {UNIT}"
    assert printed[0].startswith("2 without a value, not readable (the first: not JSON") and printed[0].endswith(
        "lines 2, 3"
    )
    above = sum(row["sentiment"] == "positive" for row in rows)
    counts = f"11 rows, 2 scored, {above} ({above / 2:.1%}) positive, {2 - above} negative in {tmp_path / 'b.jsonl'}"
    assert printed[1:] == ["7 without a value, empty: lines 4, 5, 6, 9, 10 ...", counts]


def test_rows_of_a_table_that_have_too_many_columns_are_kept(run, tmp_path):
    source = put(tmp_path / "a.tsv", "text\tlabel\ngood\t1\na\tb\tc\nbad\t0\n")
    rows = scored(run, source, tmp_path / "b.csv")
    assert [(row["line"], row["text"], row["label"]) for row in rows] == [
        (2, "good", "1"),
        (3, "a\tb\tc", ""),
        (4, "bad", "0"),
    ]
    assert rows[1]["value"] is None and "3 columns" in rows[1]["note"]


def test_every_kind_of_file_and_a_folder_are_read(run, tmp_path):
    (folder := tmp_path / "in").mkdir()
    texts_file(folder / "a.csv.gz")
    as_parquet(folder / "b.parquet", review=TEXTS)
    put(folder / "c.txt.zst", "\n".join(TEXTS))
    rows = scored(run, folder, tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == TEXTS * 3 and len({row["source"] for row in rows}) == 3
    assert [row["label"] for row in rows] == list("01010") + [None] * 10
    for value in ("value", "sentiment"):
        assert [row[value] for row in rows[:5]] == [row[value] for row in rows[5:10]]
    unlabelled = scored(run, folder / "c.txt.zst", tmp_path / "out.csv")
    assert list(unlabelled[0]) == ["line", "text", "value", "probability", "sentiment", "note"]


def test_keys_are_named(run, tmp_path):
    source = put(tmp_path / "a.csv", as_csv([["text", "body", "stars"], ["no", "yes", "5.0"]]))
    (row,) = scored(run, source, tmp_path / "b.csv", text_key="body", label_key="stars")
    assert (row["text"], row["label"]) == ("yes", "5.0")


def test_a_long_text_among_short_ones_is_read_as_it_is(run, tmp_path):
    rows = scored(run, texts_file(tmp_path / "a.csv"), tmp_path / "b.jsonl")
    alone = language_model.load(run).encode(TEXTS)[:, 2]
    np.testing.assert_allclose([row["value"] for row in rows], alone, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(0, 30)), st.integers(1, 5), st.integers(1, 40))
def test_groups_are_bounded_and_hold_every_review_in_order(lengths, rows, size):
    reviews = [Review("a", n, "x" * k, None, None, b"x" * k, 0.0) for n, k in enumerate(lengths)]
    found = list(scores.groups(iter(reviews), rows, size))
    assert [review for group in found for review in group] == reviews
    assert all(1 <= len(group) <= rows for group in found)
    assert all(len(group) == 1 or sum(len(review.text) for review in group) <= size for group in found)


def test_no_value_depends_on_the_size_of_groups(run, tmp_path, monkeypatch):
    source = texts_file(tmp_path / "a.csv", TEXTS * 5)
    whole = scored(run, source, tmp_path / "b.jsonl")
    monkeypatch.setattr(score, "ROWS", 3)
    parts = scored(run, source, tmp_path / "c.jsonl")
    np.testing.assert_allclose(*([row.pop("value") for row in rows] for rows in (whole, parts)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*([row.pop("probability") for row in rows] for rows in (whole, parts)), rtol=1e-4)
    assert whole == parts


def test_progress_adds_up_to_the_bytes_of_the_input(run, tmp_path, monkeypatch):
    heard = []

    class Bar:
        def __init__(self, what, total, show):
            heard.append(total)

        __enter__ = lambda self: heard.append
        __exit__ = lambda *_: None

    monkeypatch.setattr(score, "progress", Bar)
    monkeypatch.setattr(score, "ROWS", 2)
    source = texts_file(tmp_path / "a.csv", [*TEXTS, "", "", "", ""])
    scored(run, source, tmp_path / "b.csv")
    assert heard[0] == source.stat().st_size == pytest.approx(sum(heard[1:]))


# Refusals


def refused(run, source, out, **options):
    with pytest.raises(UserError) as error:
        score.main(run, (str(source),), out=out, **{"columns": "text"} | options)
    assert "\n" not in str(error.value)
    return explain(error.value)


def test_what_cannot_be_done_is_one_line_before_anything_is_written(run, tmp_path):
    source, out = texts_file(tmp_path / "a.csv"), tmp_path / "b.csv"
    assert "no such file" in refused(run, tmp_path / "none.csv", out)
    assert "is empty" in refused(run, put(tmp_path / "empty.csv", b""), out)
    assert "no review" in refused(run, put(tmp_path / "header.csv", b"text,label\n"), out)
    assert "no review" in refused(run, put(tmp_path / "blank.txt", b"\n \n\n"), out)
    assert "--text-key" in refused(run, put(tmp_path / "c.csv", b"a,b\n1,2\n"), out)
    assert "no column 'x'" in refused(run, source, out, text_key="x")
    assert "no column 'x'" in refused(run, source, out, label_key="x")
    twice = put(tmp_path / "twice.csv", b"text,text\n1,2\n")
    assert "more than one column is named 'text'" in refused(run, twice, out)
    assert "make it first" in refused(run, source, tmp_path / "none" / "b.csv")
    assert "is an input" in refused(run, source, source)
    assert ".jsonl" in refused(run, source, tmp_path / "b.parquet")
    assert ".jsonl" in refused(run, source, tmp_path / "b.csv.gz")
    assert "--out" in refused(run, source, Path("-"), resume=True)
    assert "--resume takes files" in refused(run, "-", out, resume=True)
    assert "imdb" in (lacks := refused(run, source, out, task="imdb")) and "python eval_sst.py RUN" in lacks
    assert str(tmp_path / "none") in refused(tmp_path / "none", source, out)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("b.")]


def test_an_existing_file_is_left_as_it_is(run, tmp_path):
    source, out = texts_file(tmp_path / "a.csv"), put(tmp_path / "b.csv", b"mine")
    for resume in (False, True):
        assert "exists" in refused(run, source, out, resume=resume) and out.read_bytes() == b"mine"


def test_an_input_that_changes_meanwhile_is_noticed(run, tmp_path, monkeypatch):
    source, out = texts_file(tmp_path / "a.csv"), tmp_path / "b.csv"
    monkeypatch.setattr(score, "unchanged", lambda source: False)
    assert "has changed while it was read" in refused(run, source, out) and not out.exists()


def test_weights_that_are_not_finite_are_refused(run, tmp_path, monkeypatch):
    model = language_model.load(run, precision="auto")  # as score opens it
    monkeypatch.setitem(model.__dict__, "weights", model.weights._replace(x=model.weights.x * np.nan))
    assert "not finite" in refused(run, texts_file(tmp_path / "a.csv"), tmp_path / "b.csv")
    assert os.listdir(tmp_path) == ["a.csv"]


# Killed, and resumed


class Killed(BaseException):
    pass


def kill(run, source, out, monkeypatch, after=2, **options):
    """Leaves what a run leaves that is killed behind a group, in the midst of the next."""
    heard, as_rows = [], score.score_rows.as_rows

    def dying(*args):
        heard.append(1)
        if len(heard) > after:
            raise Killed
        return as_rows(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(score.score_rows, "as_rows", dying)
        score.main(run, (str(source),), out=out, **{"columns": "text"} | options)
    with open(f"{out}.part", "ab") as file:
        file.write(b"half a ro")


@pytest.mark.parametrize("name", ["b.csv", "b.jsonl"])
def test_a_resumed_file_is_the_same_to_the_byte(run, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(score, "ROWS", 3)
    source, out = texts_file(tmp_path / "a.csv", TEXTS * 5), tmp_path / name
    middle = np.median(language_model.load(run).encode(TEXTS)[:, 2])
    for module in (score.score_rows, tally):
        monkeypatch.setattr(module, "positive", lambda values, record: values > middle)
    rows = scored(run, source, whole := tmp_path / f"whole{out.suffix}")
    kill(run, source, out, monkeypatch)
    assert not out.exists()
    assert "--resume" in refused(run, source, out)
    kill(run, source, out, monkeypatch, resume=True)
    encoded = []
    monkeypatch.setattr(score, "read", lambda *args, read=scores.read: encoded.append(1) or read(*args))
    score.main(run, (str(source),), out=out, columns="text", resume=True)
    assert out.read_bytes() == whole.read_bytes() and len(encoded) == 9 - 4
    above = sum(row["sentiment"] == "positive" for row in rows)
    assert 0 < above < 25, "those of killed runs count, too"
    assert f"25 rows, 25 scored, {above} ({above / 25:.1%}) positive, {25 - above} negative in {out}\n" in (
        capsys.readouterr().err
    )
    done = [f".{out.name}.done", f".{whole.name}.done"]
    assert sorted(os.listdir(tmp_path)) == sorted([*done, "a.csv", out.name, whole.name])


def test_what_differs_from_the_killed_run_is_refused_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "ROWS", 3)
    source, out = texts_file(tmp_path / "a.csv", TEXTS * 5), tmp_path / "b.csv"
    kill(run, source, out, monkeypatch)
    part, state = tmp_path / "b.csv.part", tmp_path / "b.csv.part.state"
    before = part.read_bytes(), state.read_bytes()
    again = lambda **options: refused(run, source, out, resume=True, **options)
    assert "another keys" in again(text_key="text")
    assert "another format: 'CSV', now 'JSON lines'" in again(json=True)
    assert "another precision: 'float32', now 'bfloat16'" in again(precision="bfloat16")
    model = language_model.load(run)
    other = dataclasses.replace(unit_record.load(model.record_dirs, model.digest), task="other", unit=3)
    unit_record.save(other, run / "units")
    assert "another unit record" in again(task="other")
    (run / "units" / "other.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(score, "ROWS", 4)
        assert "another size of groups" in again()
    was = source.stat()
    os.utime(source, (1, 1))
    assert f"another {source} (kind, bytes, time)" in again()
    os.utime(source, ns=(was.st_atime_ns, was.st_mtime_ns))
    more = texts_file(tmp_path / "more.csv")
    with pytest.raises(UserError, match="another input: "):
        score.main(run, (str(source), str(more)), out=out, columns="text", resume=True)
    assert (part.read_bytes(), state.read_bytes()) == before
    for damage in (b"", b"{}", b"[]", b'{"groups": 1, "bytes": 1e9}', b'{"groups": 1, "bytes": 99999999}'):
        state.write_bytes(damage)
        assert "damaged" in again()
    state.unlink()
    assert "missing" in again() and part.read_bytes() == before[0]


def test_what_is_finished_is_said_to_be_so_by_the_same_command_alone(run, tmp_path, monkeypatch, capsys):
    source, out = texts_file(tmp_path / "a.csv"), tmp_path / "b.csv"
    rows = scored(run, source, out)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"{len(rows)} rows, {len(rows)} scored, ") and said.endswith(f" in {out}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(score, "read", None)  # nothing is read again
    for _ in range(2):
        score.main(run, (str(source),), out=out, columns="text", resume=True)
        assert capsys.readouterr().err.endswith(f"{said}, which is finished\n")
    assert "exists" in refused(run, source, out)
    assert "was made with another keys" in refused(run, source, out, resume=True, text_key="text")
    assert "another format: 'CSV', now 'CSV with safe cells'" in refused(run, source, out, resume=True, safe_cells=True)
    more = texts_file(tmp_path / "more.csv")
    assert "was made with another input" in refused(run, more, out, resume=True)
    more.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    out.write_bytes(before["b.csv"][:-9] + b"X" + before["b.csv"][-8:])
    assert "is not as it was written" in refused(run, source, out, resume=True)
    out.write_bytes(before["b.csv"])
    for damage in (b"", b"[" * 10**5, b"{}", before[".b.csv.done"].replace(b'"bytes": ', b'"bytes": 1')):
        (tmp_path / ".b.csv.done").write_bytes(damage)
        assert "exists; name another file" in refused(run, source, out, resume=True)


def test_where_no_row_can_be_scored_the_notes_are_kept_and_the_status_is_2(run, tmp_path, capsys):
    source, out = put(tmp_path / "a.jsonl", '{"text": ""}\n{broken\n'), tmp_path / "b.csv"
    for resume in (False, True):
        assert f"no row could be scored; the notes in {out} say why" in refused(run, source, out, resume=resume)
        assert [row["note"][:12] for row in back(out.read_bytes())] == ["empty", "not readable"]
    assert f"2 rows, 0 scored in {out}" in capsys.readouterr().err
    status, data, err = ended("-m", "mlstm_jax", "score", run, "-", data=b"&nbsp;\n")
    assert status == 2 and err.endswith("error: no row could be scored; the notes in the rows say why\n")
    assert [row["note"] for row in back(data)] == ["empty"]


def test_a_flipped_byte_of_what_is_done_is_noticed_when_it_is_resumed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "ROWS", 3)
    source, out = texts_file(tmp_path / "a.csv", TEXTS * 2), tmp_path / "b.csv"
    kill(run, source, out, monkeypatch)
    for path in (tmp_path / "b.csv.part", tmp_path / "b.csv.part.state"):
        whole = path.read_bytes()
        for place in range(0, len(whole) - len(b"half a ro"), 97):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            refused(run, source, out, resume=True)
        path.write_bytes(whole)
    score.main(run, (str(source),), out=out, columns="text", resume=True)


def test_a_state_of_version_0_1_without_digests_and_counts_goes_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score, "ROWS", 3)
    source, out = texts_file(tmp_path / "a.csv", TEXTS * 2), tmp_path / "b.csv"
    kill(run, source, out, monkeypatch)
    printed = json.loads((tmp_path / "b.csv.part.state").read_bytes())
    del printed["sha256"], printed["checksum"]
    (tmp_path / "b.csv.part.state").write_text(json.dumps(printed))
    for _ in range(2):
        score.main(run, (str(source),), out=out, columns="text", resume=True)
        assert "\n10 rows, 10 scored, " in (err := capsys.readouterr().err) and f" negative in {out}" in err
    scored(run, source, whole := tmp_path / "whole.csv")
    assert out.read_bytes() == whole.read_bytes()


def test_safe_cells_are_texts_to_a_spreadsheet_and_come_back(run, tmp_path):
    texts = ["=1+1", "+1", "-1", "@a", "\tb", "\r=c", "'=d", "'e", " =f", "＝g", "plain", "a,=h"]
    source = put(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text, "label": text}) for text in texts))
    plain, safe = (scored(run, source, tmp_path / "b.csv", safe_cells=safe) for safe in (False, True))
    assert [row["text"] for row in plain] == texts
    for before, row in zip(plain, safe, strict=True):
        touched = before["text"] not in ("'e", " =f", "plain", "a,=h")
        assert row["text"] == row["label"] == "'" * touched + before["text"]
        assert row == before | {"text": row["text"], "label": row["label"]}, "numbers stay, those below zero, too"
    assert any(row["value"] < 0 for row in safe)
    assert "--safe-cells goes with CSV" in refused(run, source, tmp_path / "c.jsonl", safe_cells=True)


def test_the_classes_of_the_record_are_named(run, tmp_path, capsys):
    model = language_model.load(run)
    record = dataclasses.replace(
        unit_record.load(model.record_dirs, model.digest), task="named", positive="Fresh\x1b[1m"
    )
    path = unit_record.save(dataclasses.replace(record, negative="Rotten"), run / "units")
    scored(run, texts_file(tmp_path / "a.csv"), tmp_path / "b.csv", task="named")
    path.unlink()
    assert "positive = Fresh\ufffd[1m, negative = Rotten\n" in capsys.readouterr().err


def test_the_unit_is_that_of_the_only_record_and_several_are_listed(run, tmp_path):
    model, source = language_model.load(run), texts_file(tmp_path / "a.csv")
    only = unit_record.load(model.record_dirs, model.digest)
    other = dataclasses.replace(only, task="other", unit=3, feature="hidden", accuracy_alone=0.5)
    elsewhere = unit_record.save(dataclasses.replace(other, task="elsewhere", digest="d2"), run / "units")
    before = scored(run, source, tmp_path / "b.csv")
    path = unit_record.save(other, run / "units")
    several = refused(run, source, tmp_path / "c.csv")
    assert (
        "several tasks: other (unit 3), sst (unit 2); name one with --task" in several
        and not (tmp_path / "c.csv").exists()
    )
    assert scored(run, source, tmp_path / "b.csv", task="sst") == before
    assert scored(run, source, tmp_path / "b.csv", task="other") != before
    path.unlink()
    elsewhere.unlink()


def test_a_run_that_was_killed_before_its_first_group_starts_again(run, tmp_path):
    source, out = texts_file(tmp_path / "a.csv"), tmp_path / "b.csv"
    put(tmp_path / "b.csv.part", b"")
    score.main(run, (str(source),), out=out, columns="text", resume=True)
    assert len(back(out.read_bytes())) == 5 and sorted(os.listdir(tmp_path)) == [".b.csv.done", "a.csv", "b.csv"]


def test_a_file_that_another_process_writes_is_refused(run, tmp_path):
    import fcntl

    source, part = texts_file(tmp_path / "a.csv"), put(tmp_path / "b.csv.part", b"theirs")
    with open(part, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process" in refused(run, source, tmp_path / "b.csv", resume=True)
    assert part.read_bytes() == b"theirs"


# In a process of its own


SMALL = (
    "import sys; from mlstm_jax.cli import score; from mlstm_jax.cli.program import script; import tyro; score.ROWS "
    "= 20; "
)
SMALL += "script(lambda: tyro.cli(score.main))"
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start(*arguments, before=(), **more):
    command = [*before, sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def ended(*arguments, data=None, **more):
    process = start(*arguments, stdin=subprocess.PIPE, **more)
    out, err = process.communicate(data, timeout=60)
    return process.returncode, out, err.decode()


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(run, tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices("abc é\n,", k=draw.randrange(200))) for _ in range(2500)]
    source, whole, out = texts_file(tmp_path / "a.csv.gz", texts), tmp_path / "whole.csv", tmp_path / "b.csv"
    assert ended("-c", SMALL, run, source, "--out", whole)[0] == 0
    state, kills, groups = tmp_path / "b.csv.part.state", 0, 0
    while not out.exists():
        process = start("-c", SMALL, run, source, "--out", out, "--resume")
        until = groups + draw.randrange(1, 30)
        while process.poll() is None:
            try:
                groups = json.loads(state.read_bytes())["groups"]
            except (OSError, ValueError):
                pass
            if kills < 2 and groups >= until:
                time.sleep(draw.random() / 200)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
    assert kills and out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [".b.csv.done", ".whole.csv.done", "a.csv.gz", "b.csv", "whole.csv"]


def test_standard_input_to_standard_output(run, tmp_path):
    data = b'{"text": "good", "label": 1}\n{"text": "b\\u0000d"}\n'
    status, out, err = ended("-m", "mlstm_jax", "score", run, "-", data=data)
    above = sum(row["sentiment"] == "positive" for row in back(out))
    share = f"2 scored, {above} ({above / 2:.1%}) positive, {2 - above} negative"
    assert status == 0 and err == f"{run}: {UNIT}\n2 rows, {share}\n"
    assert [(row["text"], row["label"]) for row in back(out)] == [("good", "1"), ("b\0d", "")]
    status, out, _ = ended("-m", "mlstm_jax", "score", run, "-", "--json", data=b"good\nb\xffd\n")
    assert [row["text"] for row in back(out, True)] == ["good", "b\udcffd"] and status == 0


@pytest.mark.limited
def test_a_full_disk_is_one_line_and_what_is_done_is_kept(run, tmp_path):
    source, out = texts_file(tmp_path / "a.csv", TEXTS * 100), tmp_path / "b.csv"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); "
    status, _, err = ended("-c", limit + SMALL, run, source, "--out", out, "--quiet")
    assert status == 2 and err.count("\n") == 1 and err.startswith(f"error: cannot write {out}.part: File too large")
    assert "--resume" in err and not out.exists()
    status, _, err = ended("-c", SMALL, run, source, "--out", out, "--resume")
    assert status == 0 and len(back(out.read_bytes())) == 500
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mlstm_jax", "score", run, source, "--quiet"]
        process = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == 2 and process.stderr.startswith(b"error: cannot write to standard output: No space")
    assert process.stderr.count(b"\n") == 1


def test_a_damaged_input_is_one_line(run, tmp_path):
    data = gzip.compress(as_csv([["text"], *[[text] for text in TEXTS * 50]]))
    (source := tmp_path / "a.csv.gz").write_bytes(data[:-9])
    assert "not a whole gzip file" in refused(run, source, tmp_path / "b.csv")
    assert os.listdir(tmp_path) == ["a.csv.gz"]


def test_help_loads_no_large_library_and_says_what_to_expect():
    code = """import sys, tyro; from mlstm_jax.cli import score
try: tyro.cli(score.main, args=["--help"])
except SystemExit: print({"jax", "sklearn", "matplotlib"} & set(sys.modules))"""
    status, out, _ = ended("-c", code)
    assert status == 0 and out.endswith(b"set()\n") and b"600 bytes a second" in out and b"--resume" in out
