"""What is scored keeps all columns of the input, in order, in whatever form people have it."""

import csv
import dataclasses
import io
import json
from datetime import date, datetime
from functools import cache

import numpy as np
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import any_text, as_csv, as_parquet, put, unhurried
from helpers.unit_records import RECORD
from mlstm_jax import unit_record
from mlstm_jax.cli import score
from mlstm_jax.cli.program import explain
from mlstm_jax.config import Config, ModelConfig
from mlstm_jax.corpus import workbooks
from mlstm_jax.corpus.build import build
from mlstm_jax.corpus.columns import Keys, distinct
from mlstm_jax.corpus.prepare import Options, prepare
from mlstm_jax.corpus.readers import chunks, parse, sources
from mlstm_jax.errors import UserError
from mlstm_jax.inference import language_model
from mlstm_jax.model.parameters import init
from mlstm_jax.sentiment import score_input, score_rows
from mlstm_jax.sentiment.scores import groups
from mlstm_jax.tasks import from_file
from mlstm_jax.text import to_bytes, to_text

ADDED = ["value", "probability", "sentiment", "note"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Saved weights of 8 units with a record, which are opened once."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    model = language_model.LanguageModel(init(ModelConfig(hidden=8, embed=4), 0), folder)
    model.save(folder)
    unit_record.save(dataclasses.replace(RECORD, digest=model.digest, coefficients=(0.0,) * 8), folder / "units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "load", cache(language_model.load))
        yield folder


def table(path):
    """Header and rows of a CSV file, which all have the header's width."""
    header, *rows = csv.reader(io.StringIO(to_text(path.read_bytes()), newline=""), strict=True)
    assert all(len(row) == len(header) for row in rows)
    return header, rows


def scored(run, source, out, **options):
    out.unlink(missing_ok=True)
    score.main(run, (str(source),), out=out, **options)
    return table(out) if out.suffix == ".csv" else [json.loads(line) for line in out.read_text().splitlines()]


def refused(run, *inputs, **options):
    with pytest.raises(UserError) as error:
        score.main(run, tuple(map(str, inputs)), **options)
    assert "\n" not in str(error.value)
    return explain(error.value)


def written(path, as_json=False, columns="all"):
    """The rows of a file as `score` writes them, with made values: what is kept is no matter of the model."""
    found = sources([str(path)])
    reading = score_input.begin(found, Keys(), whole=True)
    layout = score_rows.wide(reading.names, False, as_json, False)
    group = list(reading.reviews)
    values = np.array([np.nan if review.note else i / 7 for i, review in enumerate(group)])
    path = path.with_name("written")
    path.write_bytes(score_rows.header(layout) + score_rows.as_rows(group, values, RECORD, layout))
    np.testing.assert_array_equal(list(score_rows.values_of(path, layout)), values)
    return path


# CSV

cell = st.text(st.sampled_from("aé\"',;\t|= \n"), max_size=6) | st.sampled_from(["", "a\r\nb", "5", "-1", "NaN"])
names = st.lists(
    st.sampled_from(["a", "a", "b", "value", "note", "value_2", "Überschrift", ""]), min_size=1, max_size=4
)


@unhurried
@given(data=st.data(), others=names, delimiter=st.sampled_from(",;\t|"), end=st.sampled_from(["\n", "\r\n"]))
def test_whatever_csv_comes_in_its_cells_come_out_unchanged_and_in_order(folder, data, others, delimiter, end):
    place = data.draw(st.integers(0, len(others)))
    header = [*others[:place], "text", *others[place:]]
    row = st.lists(cell, min_size=len(header), max_size=len(header)).filter(any)
    rows = data.draw(st.lists(row, min_size=3, max_size=8))
    ragged = data.draw(st.lists(st.lists(cell, min_size=1, max_size=7).filter(any), max_size=1))
    ragged = [cells for cells in ragged if len(cells) != len(header)]
    file, quoting = io.StringIO(newline=""), data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([header, *rows, *ragged])
    now, back = table(written(put(folder / "a.csv", file.getvalue())))
    assert now[: len(header)] == distinct(header) and len({*now}) == len(now) == len(header) + len(ADDED)
    assert [each[: len(header)] for each in back[: len(rows)]] == rows
    for before, after in zip(ragged, back[len(rows) :], strict=True):  # its line stands in the text's column
        assert [i for i, text in enumerate(after) if text] == [place, len(now) - 1]
        assert next(csv.reader(io.StringIO(after[place], newline=""), delimiter=delimiter)) == before


@given(st.lists(st.sampled_from(["a", "a_2", "b", "", "value"])), st.sets(st.sampled_from(["a", "value", "b_2"])))
def test_distinct_names_are_distinct_and_the_first_of_a_name_keeps_it(names, taken):
    found = distinct(names, taken)
    assert len({*found}) == len(found) == len(names) and not {*found} & taken
    for i, name in enumerate(names):
        if name not in names[:i] and name not in taken:
            assert found[i] == name


def test_all_columns_come_first_and_the_narrow_form_is_named(run, tmp_path, capsys):
    source = put(tmp_path / "a.csv", as_csv([["id", "Review Text", "stars"], ["7", "good", "5"], ["8", "", "1"]]))
    header, rows = scored(run, source, tmp_path / "b.csv", text_key="review_text")
    assert header == ["id", "Review Text", "stars", *ADDED]
    assert [row[:3] for row in rows] == [["7", "good", "5"], ["8", "", "1"]] and rows[1][-1] == "empty"
    assert float(rows[0][3]) == float(language_model.load(run).encode(["good"])[0, RECORD.unit])
    header, rows = scored(run, source, tmp_path / "c.csv", text_key="review_text", columns="text")
    assert header == ["line", "text", "label", *ADDED] and rows[0][:3] == ["2", "good", "5"]
    assert "the added one" not in capsys.readouterr().err


def test_a_name_that_the_input_has_is_left_to_it_and_that_is_said(run, tmp_path, capsys):
    rows = [["text", "sentiment", "value", "value_2", "text_"], ["good", "glad", "3", "4", "5"]]
    header, found = scored(run, put(tmp_path / "a.csv", as_csv(rows)), tmp_path / "b.csv")
    assert header == [*rows[0], "value_3", "probability", "sentiment_2", "note"] and found[0][:5] == rows[1]
    said = capsys.readouterr().err
    assert "the input has a column 'value'; the added one is 'value_3'" in said and "'sentiment_2'" in said
    again, _ = scored(run, tmp_path / "b.csv", tmp_path / "c.csv")
    assert again[:9] == header and again[9:] == ["value_4", "probability_2", "sentiment_3", "note_2"]
    twice = put(tmp_path / "d.csv", as_csv([["a", "text", "a"], ["1", "good", "2"]]))
    assert scored(run, twice, tmp_path / "e.jsonl")[0] | dict.fromkeys(ADDED) == {
        "a": "1",
        "text": "good",
        "a_2": "2",
    } | dict.fromkeys(ADDED)
    assert "line 1: columns of the same name are renamed: 'a' is 'a_2'" in capsys.readouterr().err


def test_several_sources_have_the_columns_of_all_of_them_and_are_named(run, tmp_path):
    one = put(tmp_path / "one.csv", as_csv([["text", "a"], ["x", "1"]]))
    two = put(tmp_path / "two.csv", as_csv([["b", "review"], ["2", "y"]]))
    three = put(tmp_path / "three.txt", "z\n")
    score.main(run, tuple(map(str, (one, two, three))), out=tmp_path / "out.csv")
    header, rows = table(tmp_path / "out.csv")
    assert header == ["text", "a", "b", "review", "source", *ADDED]
    assert [row[:5] for row in rows] == [
        ["x", "1", "", "", str(one)],
        ["", "", "2", "y", str(two)],
        ["z", "", "", "", str(three)],
    ]


def test_large_cells_beside_the_text_bound_the_groups_and_the_chunks(tmp_path):
    rows = [["text", "html"], *[[f"text {i}", "x" * 100_000] for i in range(50)]]
    for name in ("a.csv", "a.jsonl"):
        lines = "".join(json.dumps(dict(zip(*rows[:1], row, strict=True))) + "\n" for row in rows[1:])
        source = put(tmp_path / name, as_csv(rows) if name == "a.csv" else lines)
        (found,) = sources([str(source)])
        parts = list(chunks(found, 0, Keys(), 1 << 20, whole=True))
        assert len(parts) >= 4 and sum(len(list(parse(part))) for part in parts) == 50
        reading = score_input.begin([found], Keys(), whole=True)
        assert [len(group) for group in groups(reading.reviews, 100, 1 << 20)] == [10] * 5
    put(tmp_path / "~$a.csv", "of a spreadsheet program that has a.csv open")
    assert len(sources([str(tmp_path)])) == 2


def test_cells_that_a_spreadsheet_computes_are_safe_in_all_columns(run, tmp_path):
    source = put(tmp_path / "a.csv", as_csv([["=a", "text"], ["=1+1", "-x"]]))
    header, rows = scored(run, source, tmp_path / "b.csv", safe_cells=True)
    assert header[:2] == ["'=a", "text"] and rows[0][:2] == ["'=1+1", "'-x"] and float(rows[0][2])


# JSON and Parquet

held = any_text.map(to_bytes).map(to_text)  # all that UTF-8 can hold, and bytes that are none
value = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | held
nested = value | st.lists(value, max_size=3) | st.dictionaries(held, value, max_size=2)
keys = st.sampled_from(["id", "value", "note", "a b", "é", ""])


@unhurried
@given(records=st.lists(st.dictionaries(keys, nested), min_size=1, max_size=6))
def test_records_keep_their_keys_whatever_each_has(folder, records):
    records = json.loads(json.dumps([record | {"text": f"text {i}"} for i, record in enumerate(records)]))
    source = put(folder / "a.jsonl", "\n".join(map(json.dumps, records)))
    every = list(dict.fromkeys(name for record in records for name in record))
    added = distinct(ADDED, every)
    back = [json.loads(line) for line in written(source, as_json=True).read_bytes().splitlines()]
    assert [list(row.items())[: -len(ADDED)] for row in back] == [list(record.items()) for record in records]
    assert all(list(row)[-len(ADDED) :] == added for row in back)
    header, rows = table(written(source))
    assert header == every + added
    plain = lambda cell: "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    assert [row[: len(every)] for row in rows] == [[plain(record.get(name)) for name in every] for record in records]


def test_long_numbers_nested_values_and_broken_lines_come_back(run, tmp_path):
    lines = ['{"text": "a", "id": 123456789012345678901234567890, "x": [1, {"b": null}], "y": 0.1, "z": true}']
    lines += ["{broken", '{"text": 3, "id": 1}', "{}", "{'text': 'b', 'id': (1, {2}), 3: b'x'}"]
    source = put(tmp_path / "a.jsonl", "\n".join(lines))
    rows = scored(run, source, tmp_path / "b.jsonl")
    assert [{k: v for k, v in row.items() if k not in ADDED} for row in rows] == [
        {"text": "a", "id": 123456789012345678901234567890, "x": [1, {"b": None}], "y": 0.1, "z": True},
        {"text": "{broken"},
        {"text": 3, "id": 1},
        {},
        {"text": "b", "id": [1, "{2}"], "3": "x"},
    ]
    header, cells = scored(run, source, tmp_path / "b.csv")
    assert header == ["text", "id", "x", "y", "z", "3", *ADDED]
    assert cells[0][:6] == ["a", "123456789012345678901234567890", '[1, {"b": null}]', "0.1", "true", ""]
    assert cells[1][:6] == ["{broken"] + [""] * 5 and "not JSON" in cells[1][-1]


def test_a_key_that_comes_too_late_on_standard_input_is_told_of(run, monkeypatch, capfdbinary):
    pad = "x" * 1000
    data = "".join(json.dumps({"text": pad}) + "\n" for _ in range(1100)) + '{"text": "b", "late": 1, "value": 2}\n'
    monkeypatch.setattr(score, "read", lambda model, group, *_: np.zeros(len(group)))
    for as_json in (False, True):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
        score.main(run, ("-",), json=as_json)
        out, err = capfdbinary.readouterr()
        assert err.count(b"line 1101 is the first with a key 'late', too late for a column of CSV; --json keeps") == 1
        if as_json:
            assert json.loads(out.splitlines()[-1]).items() >= {"late": 1, "value_2": 2, "value": 0.0}.items()


def test_all_columns_of_parquet_are_kept_dates_in_full(run, tmp_path):
    when = [datetime(2024, 3, 1, 12, 30), None]
    path = as_parquet(tmp_path / "a.parquet", id=[1, 2], text=["good", "bad"], when=when, tags=[["x", "é"], []])
    header, rows = scored(run, path, tmp_path / "b.csv")
    assert header == ["id", "text", "when", "tags", *ADDED]
    assert rows[0][:4] == ["1", "good", "2024-03-01 12:30:00.000000", '["x", "é"]'] and rows[1][2:4] == ["", "[]"]


# Encodings


def test_an_encoding_is_named_and_where_it_should_be_that_is_said(run, tmp_path, capsys):
    rows = [["text", "Größe"], ["schön", "5 €"]]
    source = put(tmp_path / "a.csv", as_csv(rows).decode().encode("windows-1252"))
    assert scored(run, source, tmp_path / "b.csv", encoding="windows-1252")[1][0][:2] == rows[1]
    assert "--encoding" not in capsys.readouterr().err
    header, found = scored(run, source, tmp_path / "c.csv")
    assert found[0][0] == "sch\udcf6n", "bytes that are not understood stay as they are"
    said = capsys.readouterr().err
    assert said.count("line 2: it holds bytes that are not UTF-8") == 1 and "name its --encoding, as windows" in said
    assert "no encoding 'klingon'; --encoding takes" in refused(run, source, encoding="klingon")
    for name in ("hex", "undefined", "a\0b"):
        assert "no encoding" in refused(run, source, encoding=name)
    marked = put(tmp_path / "d.csv", b"\xff\xfe" + as_csv(rows).decode().encode("utf-16-le"))
    assert scored(run, marked, tmp_path / "e.csv")[1][0][:2] == rows[1]
    odd = put(tmp_path / "f.csv", b"text\na\x81b\n")
    assert scored(run, odd, tmp_path / "g.csv", encoding="windows-1252")[1][0][0] == "a\udc81b"
    assert "not windows-1252" in capsys.readouterr().err
    cut = put(tmp_path / "h.csv", "text\na\n".encode("utf-16-le") + b"a")
    assert "it is not utf-16-le (truncated data); name another --encoding" in refused(run, cut, encoding="utf-16-le")


def test_an_encoding_goes_with_every_program_that_reads_files(tmp_path):
    texts = [f"schön {i}" for i in range(300)]
    rows = as_csv([["text", "label"], *[[text, i % 2] for i, text in enumerate(texts)]]).decode()
    plain, other = put(tmp_path / "a.csv", rows), put(tmp_path / "b.csv", rows.encode("windows-1252"))
    assert from_file(other, encoding="windows-1252").train.texts == from_file(plain).train.texts
    built = [build(Config(data=str(path), encoding=name)) for path, name in ((plain, None), (other, "windows-1252"))]
    assert built[0].digest == built[1].digest and not built[1].notes
    assert "`encoding`, as windows-1252" in build(Config(data=str(other))).notes[0]
    alone = lambda expand, do, items: (do(task) for item in items for task in expand(item))
    shards = []
    for path, name in ((plain, None), (other, "windows-1252")):
        prepare([str(path)], out := tmp_path / f"{path.stem}.out", Options(2), alone, encoding=name)
        shards.append((out / "train-00000.bin").read_bytes())
    assert shards[0] == shards[1] and "ö".encode() in shards[0]
    with pytest.raises(UserError, match="`encoding` goes with a file of your own"):
        build(Config(encoding="latin-1"))


# Workbooks


def workbook(path, rows, *others, formats=()):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for place, number_format in formats:
        book.active[place].number_format = number_format
    for title in others:
        book.create_sheet(title)
    book.save(path)
    return path


def test_the_first_sheet_of_a_workbook_is_read_as_people_see_it(run, tmp_path, capsys):
    rows = [
        [None, None],
        ["Id", "Review", "When", "Share", "Ok", None],
        [7.0, "good\nbook", date(2024, 3, 1), 0.256, True],
    ]
    rows += [[None], [8, None, datetime(2024, 3, 1, 12, 30), 0.1 + 0.2, False, None], ["a", "b", "c", "d", "e", "f"]]
    path = workbook(tmp_path / "a.xlsx", rows, "more", formats=[("D3", "0.0%")])
    header, found = scored(run, path, tmp_path / "b.csv")
    assert header == ["Id", "Review", "When", "Share", "Ok", *ADDED]
    assert found[0][:5] == ["7", "good\nbook", "2024-03-01", "25.6%", "TRUE"] and found[0][-1] == ""
    assert found[1][:5] == ["8", "", "2024-03-01 12:30:00", "0.3", "FALSE"] and found[1][-1] == "empty"
    assert found[2][:2] == ["", "a\tb\tc\td\te\tf"] and "6 columns, the header has 5" in found[2][-1]
    said = capsys.readouterr().err
    assert "only its first sheet is read, 'Sheet'; there are 2" in said and "line 6" in said
    assert scored(run, path, tmp_path / "c.csv", columns="text")[1][0][:2] == ["3", "good\nbook"]


def test_a_workbook_is_read_in_parts_and_its_rows_are_counted_however_many(tmp_path, monkeypatch):
    monkeypatch.setattr(workbooks, "ROWS", 3)
    for count in (0, 2, 3, 7):
        path = workbook(tmp_path / "a.xlsx", [["text"], *[[f"text {i}"] for i in range(count)]])
        reading = score_input.begin(sources([str(path)]), Keys(), whole=True)
        reviews = list(reading.reviews)
        assert [review.text for review in reviews] == [f"text {i}" for i in range(count)]
        assert sum(review.share for review in reviews) == pytest.approx(path.stat().st_size if count else 0)


def test_what_is_no_workbook_and_what_it_takes_is_one_line(run, tmp_path, monkeypatch):
    assert "not a whole .xlsx file" in refused(run, put(tmp_path / "a.xlsx", b"PK\x03\x04 nothing"))
    assert "name it .xlsx" in refused(run, put(tmp_path / "a.csv", b"PK\x03\x04 nothing"))
    assert "no column 'x'" in refused(run, workbook(tmp_path / "b.xlsx", [["text"], ["a"]]), text_key="x")
    assert "none of reviewText" in refused(run, workbook(tmp_path / "c.xlsx", []))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    assert "takes openpyxl; pip install 'mlstm-jax[xlsx]'" in refused(run, tmp_path / "b.xlsx")
