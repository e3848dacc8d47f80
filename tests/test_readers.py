"""Laws of the readers: no byte is changed, no line lost, no error hidden, whatever the file and however it is cut."""

import ast
import bz2
import csv
import gzip
import io
import json
import pickle
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlstm_jax.config import UserError
from mlstm_jax.corpus import readers
from mlstm_jax.corpus.readers import TEXT_KEYS, Chunk, Keys, chunks, parse, read_texts, sources
from mlstm_jax.text import decode, encode, frame

unhurried = settings(deadline=None, max_examples=50)
BOM = b"\xef\xbb\xbf"
DEFAULT = Keys()
COMPRESS = {
    ".gz": lambda data: gzip.compress(data, 1),
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose files the examples of a law overwrite."""
    return tmp_path_factory.mktemp("files")


def put(path, data):
    """Writes a file, compressed where its name says so."""
    data = data if isinstance(data, bytes) else encode(data)
    path.write_bytes(COMPRESS.get(path.suffix.lower(), bytes)(data))
    return path


def rows_of(path, keys=DEFAULT, size=16 << 20):
    """All that is read of a file, and the error after it, if there is one."""
    rows = []
    try:
        for chunk in chunks(*sources([str(path)]), 0, keys, size):
            rows += parse(chunk)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return rows, str(error)
    return rows, None


def complaint(path, key=None):
    """What a file is refused with: one line that names it."""
    with pytest.raises(UserError) as error:
        list(read_texts(path, key))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def as_csv(rows, **dialect):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", **dialect).writerows(rows)
    return encode(text.getvalue())


def as_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


# Texts

packed = pytest.mark.parametrize("packing", ["", *COMPRESS])
json_suffix = pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
one_line = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ").strip(b"\r").removeprefix(BOM))
any_text = st.text(st.characters())  # lone surrogates, too


@packed
@unhurried
@given(lines=st.lists(one_line, min_size=1))
@example(lines=["a\u0085b\u2028c\x0bd\x1ce\rf".encode(), b"\xff\xfe\x00"])
def test_a_txt_file_is_split_at_newlines_alone_and_keeps_every_byte(folder, packing, lines):
    path = put(folder / f"a.txt{packing}", b"\n".join(lines) + b"\n")
    assert [encode(text) for text in read_texts(path)] == [line for line in lines if line.strip()]


def test_line_ends_are_no_part_of_a_text_and_blank_lines_are_none(tmp_path):
    assert list(read_texts(put(tmp_path / "a.txt", b"one\r\ntwo\n\n \r\nfour"))) == ["one", "two", "four"]


@json_suffix
@packed
def test_json_lines_are_read_in_order(tmp_path, suffix, packing):
    texts = ["one", "two\nlines", "", "ünï\u2028cödé \u0085 \U0001f642"]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    assert list(read_texts(put(tmp_path / f"a{suffix}{packing}", "\n".join(lines)))) == texts


@unhurried
@given(texts=st.lists(any_text, min_size=1), escaped=st.booleans())
def test_json_gives_back_any_text(folder, texts, escaped):
    lines = [json.dumps({"text": text}, ensure_ascii=escaped) for text in texts]
    path = put(folder / "a.json", b"\n\n".join(encode(line) for line in lines))
    assert [encode(text) for text in read_texts(path)] == [encode(text) for text in texts]


@unhurried
@given(texts=st.lists(any_text, min_size=1))
def test_printed_dicts_give_back_any_text(folder, texts):
    path = put(folder / "loose.json", "\n".join(repr({"id": 1, "text": text, "rating": 5.0}) for text in texts))
    assert list(read_texts(path)) == texts


@packed
@pytest.mark.parametrize("suffix, delimiter", [("csv", ","), ("tsv", "\t")])
@unhurried
@given(texts=st.lists(st.text(st.characters(exclude_characters="\r")), min_size=1))
@example(texts=["a,b", "a\tb", '"', "two\nlines", "", "\x00", "a\u0085b\u2028c"])
def test_tables_give_back_any_text(folder, packing, suffix, delimiter, texts):
    table = as_csv([["label", "text"], *([i, text] for i, text in enumerate(texts))], delimiter=delimiter)
    path = put(folder / f"a.{suffix}{packing}", table)
    assert [encode(text) for text in read_texts(path)] == [encode(text) for text in texts]
    assert [row[2] for row in rows_of(path)[0]] == [str(i) for i in range(len(texts))]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), "str")])
@unhurried
@given(texts=st.lists(st.text(), min_size=1))
def test_parquet_gives_back_any_text(folder, kind, texts):
    path = as_parquet(
        folder / "a.parquet", text=pyarrow.array(texts, kind), rating=[float(i) for i in range(len(texts))]
    )
    assert rows_of(path) == ([(i, text, f"{i - 1}.0", None) for i, text in enumerate(texts, 1)], None)


@unhurried
@given(texts=st.lists(st.text(st.characters(exclude_characters="\r", codec="utf-8")), min_size=1))
def test_what_is_read_is_framed_as_what_was_written(folder, texts):
    records = [{"text": text, "rating": 1.0} for text in texts]
    table = [["rating", "text"], *([1, text] for text in texts)]
    for path in (
        put(folder / "f.jsonl", "\n".join(map(json.dumps, records))),
        put(folder / "g.jsonl.zst", "\n".join(map(repr, records))),
        put(folder / "f.csv.gz", as_csv(table)),
        put(folder / "f.tsv.bz2", as_csv(table, delimiter="\t")),
        as_parquet(folder / "f.parquet", text=texts),
    ):
        assert list(map(frame, read_texts(path))) == list(map(frame, texts))


@unhurried
@given(data=st.binary())
@example(data=b"caf\xe9 \xff \xed\xa0\x80")
def test_invalid_utf8_is_kept_byte_for_byte(folder, data):
    data = bytes(b for b in data if b >= 32 and b not in b'"\\')
    as_json = put(folder / "b.json", b'{"text": "' + data + b'"}')
    assert [encode(text) for text in read_texts(as_json)] == [data]
    loose = put(folder / "c.json", b"{'text': \"" + data + b'"}\n' + b"{'text': \"\\N{DIGIT ONE}\\\\" + data + b'"}')
    assert [encode(text) for text in read_texts(loose)] == [data, b"1\\" + data]
    in_csv = put(folder / "b.csv", b'text\n"' + data + b'"\n')
    assert [encode(text) for text in read_texts(in_csv)] == [data]
    column = pyarrow.array([data], pyarrow.binary()).view(pyarrow.string())
    assert [encode(text) for text in read_texts(as_parquet(folder / "b.parquet", text=column))] == [data]


def test_invalid_utf8_is_kept_across_the_pieces_of_a_large_csv(tmp_path):
    text = b"caf\xe9 \xff\xf0\x9f " * 200_000
    assert encode(*read_texts(put(tmp_path / "a.csv", b"text\n" + text))) == text


def test_csv_rows_end_as_csv_says_and_blank_ones_do_not_count(tmp_path):
    path = put(tmp_path / "a.csv", b'label,text\r\n1,one\r\n\r\n0,"two\r\nlines"\r\n,four\r\n')
    assert rows_of(path)[0] == [(2, "one", "1", None), (4, "two\r\nlines", "0", None), (6, "four", None, None)]


def test_a_csv_field_may_be_long(tmp_path):
    assert list(read_texts(put(tmp_path / "a.csv", "text\n" + "x" * 200_000))) == ["x" * 200_000]


def test_amazons_own_tsv_quotes_nothing(tmp_path):
    data = 'marketplace\tcustomer_id\treview_body\tstar_rating\nUS\t1\t"Great\t5\nUS\t2\tit "is"\t1\n'
    assert rows_of(put(tmp_path / "a.tsv", data))[0] == [(2, '"Great', "5", None), (3, 'it "is"', "1", None)]


@packed
@pytest.mark.parametrize(
    "name, data",
    [
        ("a.txt", b"one\ntwo"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}'),
        ("b.json", b"{'text': 'one'}\n{'text': 'two'}"),
        ("a.csv", b"text,label\none,1\ntwo,0"),
        ("b.csv", b'"text","label"\n"one",1\n"two",0'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, packing, name, data):
    assert list(read_texts(put(tmp_path / (name + packing), BOM + data))) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("data", [b"", b"x", b"\xef", b"\xef\xbb", b"\xef\xbbx"])
def test_a_file_shorter_than_a_byte_order_mark_is_kept(tmp_path, name, data):
    assert [encode(text) for text in read_texts(put(tmp_path / name, data))] == ([data] if data else [])


# Keys


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_the_usual_names_of_the_text_are_found(tmp_path, key):
    assert list(read_texts(put(tmp_path / "a.json", json.dumps({"id": "3", key: "one"})))) == ["one"]
    assert list(read_texts(put(tmp_path / "b.json", repr({"id": "3", key: "one"})))) == ["one"]
    assert list(read_texts(put(tmp_path / "a.csv", as_csv([["id", key], [3, "one"]])))) == ["one"]
    assert list(read_texts(as_parquet(tmp_path / "a.parquet", id=[3], **{key: ["one"]}))) == ["one"]


def test_the_first_of_the_usual_names_is_taken_and_a_named_one_before_it(tmp_path):
    record = {"content": "4", "title": "3", "text": "2", "reviewText": "1"}
    for name, data in [("a.json", json.dumps(record)), ("a.csv", as_csv([record, record.values()]))]:
        path = put(tmp_path / name, data)
        assert [list(read_texts(path, key)) for key in (None, "title", "text")] == [["1"], ["3"], ["2"]]


AMAZON = {
    "2014": [
        b"{'reviewerID': 'A1', 'helpful': [0, 0], 'reviewText': 'It\\'s \"fine\".\\tIt is.', 'overall': 5.0}",
        b"{'reviewerID': 'A2', 'helpful': [2, 3], 'reviewText': \"It's\", 'overall': 1.0}",
    ],
    "2018": [
        b'{"overall": 5.0, "vote": "12", "style": {"Size:": " L"}, "reviewerID": "A0"}',
        b'{"overall": 5.0, "reviewText": "It\'s \\"fine\\".\\tIt is.", "image": ["https://x"]}',
        b'{"overall": 1.0, "reviewText": "It\'s", "unixReviewTime": 1423612800}',
    ],
    "2023": [
        b'{"rating": 5.0, "title": "x", "text": "It\'s \\"fine\\".\\tIt is.", "images": [], "helpful_vote": 0}',
        b'{"rating": 1.0, "title": "x", "text": "It\'s", "images": [{"small_image_url": "y"}], "timestamp": 158}',
    ],
}


@pytest.mark.parametrize("year", AMAZON)
@packed
def test_the_dumps_of_amazons_reviews_work_without_options(tmp_path, year, packing):
    rows, error = rows_of(put(tmp_path / f"a.json{packing}", b"\n".join(AMAZON[year])))
    without = [("", "5.0")] if year == "2018" else []  # a record without a text has an empty one
    assert error is None and [wrong for *_, wrong in rows] == [None] * len(rows)
    assert [row[1:3] for row in rows] == [*without, ('It\'s "fine".\tIt is.', "5.0"), ("It's", "1.0")]


def test_labels_are_texts_or_none(tmp_path):
    labels = [
        "5.0",
        "5",
        '"good"',
        "null",
        "true",
        "-0.0",
        "1e5",
        "[1]",
        "{}",
        "NaN",
        "1e400",
        "1" + "0" * 30,
        '"\\ud800"',
    ]
    expected = ["5.0", "5", "good", None, "True", "-0.0", "100000.0", None, None, None, None, None, "\ud800"]
    path = put(tmp_path / "a.json", "\n".join(f'{{"text": "x", "label": {label}}}' for label in labels))
    assert [row[2] for row in rows_of(path)[0]] == expected


def test_a_label_of_ones_own_is_found_or_missed(tmp_path):
    path = put(tmp_path / "a.json", '{"text": "x", "overall": 1, "mood": "glad"}\n{"text": "y"}')
    assert [row[2] for row in rows_of(path)[0]] == ["1", None]
    assert [row[2] for row in rows_of(path, Keys(None, "mood"))[0]] == ["glad", None]
    assert "line 1: no key 'mod'; there are: text, overall, mood" in rows_of(path, Keys(None, "mod"))[1]
    assert "'text' cannot be both" in rows_of(path, Keys(None, "text"))[1]
    assert rows_of(path, Keys("mood", None))[0][0] == (1, "glad", "1", None)


@pytest.mark.parametrize("key", ["mood", "it's", 'a"b', "a b", "naïve", "a\\b", "x" * 99])
def test_any_name_may_be_the_key(tmp_path, key):
    record = {"text": "other", key: "one"}
    for line in (json.dumps(record), repr(record)):
        assert list(read_texts(put(tmp_path / "a.json", line), key)) == ["one"]


# What is refused


def test_what_is_no_file_of_texts_is_refused(tmp_path):
    assert complaint(tmp_path / "none.txt") == "no such file: FILE"
    (tmp_path / "folder.txt").mkdir()
    assert complaint(tmp_path / "folder.txt").startswith("FILE: this folder holds no file of a known kind: .txt")
    for name in ("a.xml", "a", "a.gz", "txt", "a.parquet.gz", "a.txt.zip", "a.txt.gz.gz"):
        assert complaint(put(tmp_path / name, "one")).startswith("FILE: unknown kind of file")
    assert "too long" in complaint(tmp_path / ("I love this movie " * 20))
    assert "null byte" in complaint(tmp_path / "a\0.txt")
    with pytest.raises(UserError, match="name it once"):
        sources(["-", "-"])


@pytest.mark.parametrize("name", ["A.TXT", "a.b.Txt", "a.txt.GZ"])
def test_the_kind_of_file_has_no_case(tmp_path, name):
    assert list(read_texts(put(tmp_path / name, "one\n"))) == ["one"]


BAD_LINES = [
    (b"not json", "not JSON (Expecting value"),
    (b'{"text": "cut o', "not JSON (Unterminated string"),
    (b"{'text': 'cut o", "not JSON (Expecting property name"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON ("),
    (b"[" * 100_000, "not JSON ("),
    (b'{"text":' * 100_000, "not JSON ("),
    (b"{'text':" * 100_000, "not JSON ("),
    (b"{" + b"-" * 100_000 + b"1}", "not JSON ("),
    (b"{'text': __import__('os').getcwd()}", "not JSON ("),
    (b"{'text': 'x' % ()}", "not JSON ("),
    (b"{[]: 'x'}", "not JSON ("),
    (b"{'text': '\x00'}", "not JSON ("),
    (b"{'text': '\\\xff'}", "not JSON ("),
    (b"\xff", "not JSON ("),
    (b"\xff\xfe{\x00}\x00", "not JSON ("),
    (b'["text"]', "not a JSON object"),
    (b"{'text'}", "not a JSON object"),
    (b"3", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"text": 5}', "'text' is not a text"),
    (b"{'text': 5}", "'text' is not a text"),
    (b'{"text": NaN}', "'text' is not a text"),
    (b'{"text": ["x"]}', "'text' is not a text"),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_bad_line_of_json_is_named_and_those_around_it_are_read(tmp_path, packing, line, message):
    path = put(tmp_path / f"a.jsonl{packing}", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    assert complaint(path).startswith(f"FILE, line 3: {message}")
    (first, bad, last), error = rows_of(path)
    assert (first, last, error) == ((1, "fine", None, None), (4, "fine", None, None), None)
    assert bad[:3] == (3, None, None) and bad[3].startswith(message) and "\n" not in bad[3]


@pytest.mark.parametrize(
    "line, text",
    [
        (b'{"text": null}', ""),
        (b"{'text': None}", ""),
        (b'{"title": "x"}', ""),
        (b"{}", ""),
        (b'{"text": "a", "text": "b"}', "b"),
        (b"{'text': 'a', \"text\": 'b'}", "b"),
        (b'{"text": "a\\u0000b"}', "a\x00b"),
        (b'{"text": "\\ud83d"}', "\ud83d"),
        (b'{"text": "\\ud83d\\ude42"}', "\U0001f642"),
        (b'{"text": "x", "n": NaN, "m": -Infinity, "l": 1e999}', "x"),
        (b'{"text": "x", "n": 1' + b"0" * 1000 + b"}", "x"),
        (b'{"text": "x", "n": ' + b"[" * 500 + b"]" * 500 + b"}", "x"),
        (b"{'text': 'a' 'b'}", "ab"),
        (b"{'text': u'a'}", "a"),
        (b"{'text': b'a'}", "a"),
        (b"{'text': r'\\n'}", "\\n"),
        (b"{'text': '''a'''}", "a"),
        (b"{'te' 'xt': 'a'}", "a"),
        (b"{'te\\x78t': 'a'}", "a"),
        (b"{'text': 'a\\/b\\d'}", "a\\/b\\d"),
        (b"{'text': '\\101\\N{BULLET}\\u2028'}", "A\u2022\u2028"),
        (b"{ 'text'\t:\x0c'a',}  # a comment", "a"),
        (b"{'x': 1_000, 'text': 'a', 'y': 0x1F, 'z': (1, 2j)}", "a"),
        (b'\xc2\xa0{"text": "x"}', None),
    ],
)
def test_what_is_odd_but_clear_is_read(tmp_path, line, text):
    rows, error = rows_of(put(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line))
    assert error is None and rows[1][:3] == (2, text, None) and (rows[1][3] is None) == (text is not None)


def test_json_without_a_usual_key_says_how_to_name_it(tmp_path):
    path = put(tmp_path / "a.json", '\n{"title": "x", "body": "y"}')
    assert complaint(path).startswith("FILE, line 2: none of reviewText, ")
    assert complaint(path).endswith("name the text with --text-key, one of: title, body")
    assert complaint(path, "bdoy") == "FILE, line 2: no key 'bdoy'; there are: title, body"


def test_a_file_whose_first_megabyte_is_no_record_is_all_bad(tmp_path):
    path = put(tmp_path / "a.json", b"x" * readers.HEAD + b'\n{"text": "fine"}\n')
    assert complaint(path).startswith("FILE, line 1: not JSON")
    assert rows_of(path)[0][1][3].endswith("name it with --text-key")
    assert rows_of(path, Keys("text"))[0][1][1] == "fine"


@pytest.mark.parametrize(
    "data, key, message",
    [
        (b"title,body\nx,y\n", None, "FILE, line 1: none of reviewText, "),
        (b"title,body\nx,y\n", "bdoy", "FILE, line 1: no column 'bdoy'; there are: title, body"),
        (b"text,text\nx,y\n", None, "FILE, line 1: more than one column is named 'text'"),
        (b"text,label,label\nx,y,z\n", None, "FILE, line 1: more than one column is named 'label'"),
        (b"", None, "FILE, line 1: none of reviewText, "),
        (b"", "text", "FILE, line 1: no column 'text'"),
        (b'"text"x,label\n', None, "FILE, line 1: ',' expected after '\"'"),
        (b"label,text\n1,one\n\n0\n", None, "FILE, line 4: 1 columns, the header has 2"),
        (b"label,text\n1,one\n\n0,a,b\n", None, "FILE, line 4: 3 columns, the header has 2"),
        (b"label,text\n1,one\n0,a\rb\n0\n", None, "FILE, line 3: new-line character seen"),
        (b'label,text\n1,"two\nlines"\n0\n', None, "FILE, line 4: 1 columns, the header has 2"),
    ],
)
@packed
def test_what_is_wrong_in_a_csv_is_named(tmp_path, packing, data, key, message):
    assert complaint(put(tmp_path / f"a.csv{packing}", data), key).startswith(message)


def test_a_field_beyond_any_size_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(csv, "field_size_limit", lambda size, limit=csv.field_size_limit: limit(100))
    path = put(tmp_path / "a.csv", "text\nshort\n" + "x" * 101)
    try:
        assert complaint(path).startswith("FILE, line 3: field larger than field limit")
    finally:
        monkeypatch.undo()
        csv.field_size_limit(2**31 - 1)


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path):
    path = put(tmp_path / "a.csv", 'text\none\n"two\nthree\n' + "four\n" * 30_000 + '"five\nlines"\n')
    assert complaint(path) == "FILE, line 3: a quote is not closed"
    rows, error = rows_of(path)
    assert error is None and [row[0] for row in rows if row[3]] == [3]
    assert [row[1] for row in rows if not row[3]] == ["one", "three", *["four"] * 30_000, "five\nlines"]
    short = put(tmp_path / "b.csv", 'text\none\n"two\nthree')
    assert rows_of(short)[0] == [
        (2, "one", None, None),
        (3, None, None, "unexpected end of data"),
        (4, "three", None, None),
    ]


def test_many_quotes_that_are_never_closed_take_no_time(tmp_path):
    start = time.perf_counter()
    rows, _ = rows_of(put(tmp_path / "a.csv", "text,label\n" + 'a","\n' * 100_000))
    assert time.perf_counter() - start < 5 and rows[0][3]


def test_a_key_does_not_go_with_txt(tmp_path):
    assert "--text-key goes with JSON, CSV" in complaint(put(tmp_path / "a.txt", "one"), "text")
    assert "--label-key goes with JSON, CSV" in rows_of(tmp_path / "a.txt", Keys(None, "label"))[1]


def test_what_is_wrong_in_a_parquet_file_is_named(tmp_path):
    path = as_parquet(tmp_path / "a.parquet", text=["a", None, "b"], label=[1, None, 0])
    assert rows_of(path)[0] == [(1, "a", "1", None), (2, "", None, None), (3, "b", "0", None)]
    assert complaint(path, "txt") == "FILE: no column 'txt'; there are: text, label"
    assert rows_of(path, Keys("label", "text"))[0][0] == (1, None, None, "'label' is not a text")
    assert "not a whole Parquet file" in complaint(put(tmp_path / "b.parquet", path.read_bytes()[:-9]))
    damaged = bytearray(as_parquet(tmp_path / "c.parquet", text=[f"text {i}" for i in range(2000)]).read_bytes())
    damaged[200:20_000] = bytes(19_800)
    assert "not a whole Parquet file" in complaint(put(tmp_path / "c.parquet", bytes(damaged)))
    as_parquet(tmp_path / "d.parquet", text=[{"nested": "a"}], **{"label.x": [1]})
    assert rows_of(tmp_path / "d.parquet")[0] == [(1, None, None, "'text' is not a text")]


# Compression


@pytest.mark.parametrize("packing", COMPRESS)
@unhurried
@given(parts=st.lists(st.binary(max_size=100), min_size=1, max_size=4))
def test_members_and_frames_are_joined(folder, packing, parts):
    path = folder / f"m.txt{packing}"
    path.write_bytes(b"".join(map(COMPRESS[packing], parts)))
    assert b"".join(readers._pieces(*sources([str(path)]))) == b"".join(parts)


NAMES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


@pytest.mark.parametrize("packing", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "json", "csv"])
def test_a_damaged_file_is_refused_wherever_it_is_cut_after_the_whole_lines_before(tmp_path, packing, kind):
    letters = np.random.default_rng(0).integers(97, 122, (4, 5, 600)).tolist()
    blocks = [[{"text": bytes(line).decode()} for line in block] for block in letters]
    show = json.dumps if kind == "json" else lambda record: record["text"]
    parts = ["".join(show(record) + "\n" for record in block).encode() for block in blocks]
    parts[0] = b"text\n" + parts[0] if kind == "csv" else parts[0]
    members = [COMPRESS[packing](part) for part in parts]
    whole, path = b"".join(members), tmp_path / f"a.{kind}{packing}"
    texts = [record["text"] for block in blocks for record in block]
    ends = np.cumsum([0, *map(len, members)]).tolist()
    for length in [0, 1, 2, 9, 11, len(whole) // 2, *range(len(whole) - 9, len(whole)), *(end + 5 for end in ends[:4])]:
        length += length in ends and length > 0  # where a member ends, nothing shows that others followed
        path.write_bytes(whole[:length])
        rows, error = rows_of(path)
        complete = sum(end <= length for end in ends[1:])  # members that are whole
        assert f"{path}: not a whole {NAMES[packing]} file" in error
        assert [row[1] for row in rows] == texts[: len(rows)] and len(rows) >= 5 * complete
    for damaged in (b"plain text\n", whole[:10] + bytes(60), whole[: ends[1]] + b"\xff" * 400):
        path.write_bytes(damaged)
        assert "FILE: not a whole" in complaint(path)


def test_what_fails_its_checksum_is_refused(tmp_path):
    whole = gzip.compress(b"text\n")
    (tmp_path / "a.txt.gz").write_bytes(whole[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + whole[-4:])
    assert "CRC" in complaint(tmp_path / "a.txt.gz")
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(b"text\n")
    (tmp_path / "a.txt.zst").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "not a whole zstd file" in complaint(tmp_path / "a.txt.zst")


def test_zstd_skips_what_a_frame_says_is_no_data(tmp_path):
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    (tmp_path / "a.txt.zst").write_bytes(skipped + COMPRESS[".zst"](b"one\n") + skipped + COMPRESS[".zst"](b"two"))
    assert list(read_texts(tmp_path / "a.txt.zst")) == ["one", "two"]


# Chunks

soup = st.lists(
    st.sampled_from([b'"', b"'", b"\\", b"\n", b"\r", b",", b"\t", b"{", b"}", b":", b"text", b"a", b"\xff"])
)
record = st.fixed_dictionaries({"text": any_text, "label": st.none() | st.floats() | any_text})
json_line = record.map(lambda r: encode(json.dumps(r, ensure_ascii=False))) | record.map(lambda r: encode(repr(r)))
line = json_line | soup.map(b"".join) | st.binary(max_size=30) | st.sampled_from([b"", b"  ", b"\r"])
file = st.lists(line, max_size=12).map(b"\n".join)
headed = st.tuples(st.sampled_from([b"text,label\n", b"text\n", b'"label"\ttext\n', b""]), file).map(b"".join)


@pytest.mark.parametrize("suffix", ["txt", "json"])
@unhurried
@given(data=file)
def test_every_line_of_any_bytes_is_accounted_for(folder, suffix, data):
    rows, error = rows_of(put(folder / f"any.{suffix}", data))
    assert error is None or "none of reviewText" in error
    if error is None:
        lines = enumerate(data.removeprefix(BOM).split(b"\n"), 1)
        assert [row[0] for row in rows] == [number for number, line in lines if line.strip()]
        assert all((text is None) != (wrong is None) for _, text, _, wrong in rows)
        assert all(label is None for _, _, label, wrong in rows if wrong)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@unhurried
@given(data=headed)
def test_every_row_of_any_bytes_is_accounted_for(folder, suffix, data):
    rows, error = rows_of(put(folder / f"any.{suffix}", data))
    numbers, lines = [row[0] for row in rows], decode(data).split("\n")
    assert numbers == sorted(set(numbers)) and (not numbers or 1 < numbers[-1] <= len(lines))
    assert all((text is None) != (wrong is None) for _, text, _, wrong in rows)
    if error is None and b'"' not in data:
        assert numbers == [number for number, line in enumerate(lines, 1) if line.strip("\r")][1:]


@pytest.mark.parametrize("suffix", ["parquet", "txt.gz", "json.bz2", "csv.zst"])
@unhurried
@given(data=st.binary())
def test_any_bytes_are_read_or_refused(folder, suffix, data):
    path = folder / f"raw.{suffix}"
    path.write_bytes(data)
    rows_of(path)


@pytest.mark.parametrize("suffix", ["txt", "json", "csv", "tsv"])
@unhurried
@given(data=headed, sizes=st.lists(st.integers(1, 100), min_size=1, max_size=3))
def test_the_size_of_chunks_changes_nothing(folder, suffix, data, sizes):
    path = put(folder / f"cut.{suffix}", data)
    expected = rows_of(path)
    assert all(rows_of(path, size=size) == expected for size in (1, *sizes))


@unhurried
@given(data=file, size=st.integers(1, 100), piece=st.integers(1, 20))
def test_chunks_are_the_files_lines_however_its_bytes_come(folder, data, size, piece):
    (source,) = sources([str(put(folder / "a.txt.gz", data))])
    cut = list(chunks(source, 3, Keys(), size))
    assert b"".join(chunk.payload for chunk in cut) == data.removeprefix(BOM)
    assert [chunk.number for chunk in cut] == list(range(len(cut))) and {chunk.source for chunk in cut} <= {3}
    for chunk, following in zip(cut, cut[1:], strict=False):
        assert chunk.payload.endswith(b"\n") and len(chunk.payload) >= size
        assert b"\n" not in chunk.payload[size - 1 : -1]  # no longer than it must be
        assert following.line == chunk.line + chunk.payload.count(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", piece)
        assert list(chunks(source, 3, Keys(), size)) == cut


def test_the_keys_do_not_depend_on_the_size_of_chunks(tmp_path):
    lines = [b'{"overall": 5.0}'] * 1000 + [b'{"reviewText": "one"}']
    path = put(tmp_path / "a.json", b"\n".join(lines))
    assert rows_of(path, size=1) == rows_of(path) and rows_of(path)[0][-1] == (1001, "one", None, None)


def test_a_chunk_travels_to_another_process(tmp_path):
    for path in (put(tmp_path / "a.json", b"\n".join(AMAZON["2014"])), put(tmp_path / "a.csv", "text\none\n")):
        for chunk in chunks(*sources([str(path)]), 0, Keys()):
            assert isinstance(chunk, Chunk) and pickle.loads(pickle.dumps(chunk)) == chunk


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.txt.bz2", "a.txt"])
def test_a_large_file_takes_little_memory(tmp_path, name):
    lines = np.random.default_rng(0).integers(97, 122, (20_000, 1000), np.uint8)
    show = '{"text": "%s"}' if "json" in name else "%s"
    put(tmp_path / name, "text\n" * ("csv" in name) + "\n".join(show % bytes(line).decode() for line in lines))
    tracemalloc.start()
    try:
        assert sum(1 for chunk in chunks(*sources([str(tmp_path / name)]), 0, Keys(), 1 << 20) for _ in parse(chunk))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # of 20 MB
    finally:
        tracemalloc.stop()


# Loose lines

KEYS = Keys("reviewText", "overall")
scalar = (
    any_text
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.sampled_from([10**18, -(10**18), 10**19, 1e308, 1e-300])
)
value = scalar | st.lists(scalar, max_size=3) | st.dictionaries(any_text, scalar, max_size=3) | st.tuples(scalar)
name = st.sampled_from(["reviewText", "overall", "asin"])
printed = st.dictionaries(name | any_text, value, max_size=5).map(repr)
tokens = r"""
    'reviewText' "reviewText" 'overall' 'x' "y" '' u b r f ' " : : , , { } [ ] 5 5.0 -1 0x1 1_0 1e5 007 . - None True
    nan inf ( ) # \ \' \n \x41 \x4 \u00e9 \ud800 \N{BULLET} \101 \d é ''' '''x''' ...
""".split()
token = st.sampled_from([*tokens, *" \t\x0c\r\x00\x1f\u00a0\u2028", ": ", ", ", "'overall': ", "'reviewText': "])
assembled = st.lists(token, max_size=14).map(lambda parts: "{" + "".join(parts) + "}")


@st.composite
def mutated(draw):
    text = draw(printed)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(token | st.just("")) + text[place + draw(st.integers(0, 2)) :]
    return text


loose_line = (printed | mutated() | assembled).map(lambda text: text.encode())


def literal(line):
    """Text, label and what is wrong, as `ast.literal_eval` has it; None where it has no text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            record = ast.literal_eval(line.strip().decode())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    text = record.get("reviewText") if isinstance(record, dict) else 0
    text = "" if text is None else decode(text) if isinstance(text, bytes) else text
    return (text, readers._label(record.get("overall")), None) if isinstance(text, str) else None


@settings(deadline=None, max_examples=1500)
@given(line=loose_line)
@example(line=b"{'reviewText': 'a' 'b'}")
@example(line=b"{'reviewText': 'a', 'review''Text': 'b'}")
@example(line=b"{'reviewText': 'a', 'review\\x54ext': 'b'}")
@example(line=b"{'reviewText': 'a', u'reviewText': 'b'}")
@example(line=b"{'reviewText': 'a', 'reviewText': None}")
@example(line=b"{'reviewText': 'a', 'reviewText': 'b', 'overall': 1, \"overall\": 2.50}")
@example(line=b"{'overall': -0, 'reviewText': '\\\\x41\\\\'}")
@example(line="{'overall': '\\u00e9é\\n', 'x': [1, 'a'], 'y': {'z': 1}, }".encode())
def test_a_plain_line_is_what_python_reads_or_is_left_to_python(line):
    if match := readers._plain_record(KEYS).fullmatch(line):
        text = "" if match[1] is None else readers._string(match[1])
        label = None if match[2] is None else readers._plain_label(match[2])
        assert (text, label, None) == literal(line)


@settings(deadline=None, max_examples=500)
@given(line=loose_line)
def test_a_loose_line_is_read_as_python_reads_it(line):
    expected = literal(line)
    if expected and b"\n" not in line:
        assert list(parse(Chunk(0, 0, 1, "json", line, KEYS))) == [(1, *expected)]


short_text = st.text(st.characters(max_codepoint=0xFFFF))  # of the rest Python prints some as \U...: rare
number = st.floats(0, 9).map(lambda x: round(x, 2)) | st.integers(-(10**9), 10**9)
plain = short_text | number | st.none() | st.booleans() | st.lists(number) | st.dictionaries(name, short_text)


@unhurried
@given(record=st.dictionaries(name, plain), text=short_text, overall=number)
def test_a_printed_review_is_a_plain_line(record, text, overall):
    line = repr(record | {"reviewText": text, "overall": overall}).encode()
    match = readers._plain_record(KEYS).fullmatch(line)
    assert readers._string(match[1]) == text and readers._plain_label(match[2]) == str(overall)


@pytest.mark.parametrize(
    "line",
    [
        b"{'a': " + b"'x', " * 200_000,
        b"{" + b"'a': 'x', " * 100_000,
        b"{'reviewText': '" + b"\\n" * 500_000,
        b"{'reviewText': '" + b"\\\\" * 500_000,
        b"{'a': [" + b"1, " * 300_000,
        b"{'a': {" + b"'b': 1, " * 100_000,
        b"{'a': " + b"1" * 1_000_000,
        b"{'a'" + b" " * 1_000_000,
        b"{'" * 300_000,
    ],
)
def test_no_line_takes_long(line):
    start = time.perf_counter()
    assert readers._plain_record(KEYS).fullmatch(line) is None
    assert time.perf_counter() - start < 1


# JSON without orjson


@unhurried
@given(lines=st.lists(line, max_size=20))
@example(lines=[line for line, _ in BAD_LINES])
@example(
    lines=[
        b'{"text": "x", "label": %s}' % n for n in (b"-0", b"-0.0", b"1" + b"0" * 20, b"18446744073709551615", b"NaN")
    ]
)
def test_json_is_read_alike_with_and_without_orjson(lines):
    lines = [line.replace(b"\n", b"") for line in lines]
    chunk = Chunk(0, 0, 1, "json", b"\n".join(lines), Keys("text", "label"))
    expected = list(parse(chunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_loads", lambda: lambda line: json.loads(decode(line)))
        assert list(parse(chunk)) == expected


def test_what_is_optional_is_named_where_it_is_missing(tmp_path, monkeypatch):
    for package in ("zstandard", "pyarrow", "orjson"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "takes zstandard; pip install 'mlstm-jax[data]'" in complaint(put(tmp_path / "a.txt.zst", "one"))
    assert "takes pyarrow; pip install 'mlstm-jax[data]'" in complaint(put(tmp_path / "a.parquet", "one"))
    readers._loads.cache_clear()
    try:
        assert list(read_texts(put(tmp_path / "a.json", b"\n".join(AMAZON["2023"])))) == [
            'It\'s "fine".\tIt is.',
            "It's",
        ]
    finally:
        readers._loads.cache_clear()


def test_importing_the_readers_imports_nothing_else():
    heavy = "jax orjson pyarrow zstandard tensorflow_datasets".split()
    code = f"import sys, mlstm_jax.corpus.readers; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Sources


def test_folders_and_patterns_give_known_files_sorted_by_path(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    names = ["b/2.jsonl.gz", "a.txt", "c.tsv.zst", "b/1.csv", ".hidden/x.txt", "b/.y.txt", "README.md", "d.parquet"]
    for file_name in names:
        put(tmp_path / file_name, "text\n")
    expected = [str(tmp_path / n) for n in ("a.txt", "b/1.csv", "b/2.jsonl.gz", "c.tsv.zst", "d.parquet")]
    found = sources([str(tmp_path)])
    assert [source.name for source in found] == expected
    assert [source.kind for source in found] == ["lines", "csv", "json", "tsv", "parquet"]
    assert found[0].size == 5 and found[0].time == (tmp_path / "a.txt").stat().st_mtime_ns
    assert [s.name for s in sources([str(tmp_path / "b" / "*")])] == expected[1:3]
    assert [s.name for s in sources([str(tmp_path / "**" / "*.[ct]s*")])] == [expected[1], expected[3]]
    assert [s.name for s in sources([expected[3], expected[0]])] == [expected[3], expected[0]]
    for pattern, message in [("*.x", "no file matches"), ("*.md", "unknown kind of file '.md'")]:
        with pytest.raises(UserError, match=message):
            sources([str(tmp_path / pattern)])
    with pytest.raises(UserError, match="nothing to read"):
        sources([])


def test_the_same_file_twice_is_refused_by_whatever_name(tmp_path):
    path = put(tmp_path / "a.txt", "one")
    (tmp_path / "b.txt").symlink_to(path)
    for inputs in (
        [str(path), str(path)],
        [str(tmp_path)],
        [str(path), str(tmp_path / ".." / tmp_path.name / "a.txt")],
    ):
        with pytest.raises(UserError, match="is the same input as .*a.txt; name it once"):
            sources(inputs)


def test_a_file_may_be_called_as_a_pattern(tmp_path):
    assert list(read_texts(put(tmp_path / "a[1]*.txt", "one"))) == ["one"]


@pytest.mark.parametrize(
    "data, expected",
    [
        (b'\n \n{"text": "one"}\n', [(3, "one", None, None)]),
        (b"{'text': 'one'}\n", [(1, "one", None, None)]),
        (BOM + b"one\n\ntwo", [(1, "one", None, None), (3, "two", None, None)]),
        (b"", []),
    ],
)
def test_standard_input_is_json_or_text_by_its_first_byte(monkeypatch, data, expected):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (source,) = sources(["-"])
    assert source.name == "-" and source.size is None and source.time is None
    assert [row for chunk in chunks(source, 0, Keys()) for row in parse(chunk)] == expected


# tensorflow-datasets


class SmallReviews(tfds.core.GeneratorBasedBuilder):
    """Reviews as tensorflow-datasets keeps them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["bad", "good"])
        features = tfds.features.FeaturesDict({"label": label, "text": tfds.features.Text(), "stars": np.float32})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(2500), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": f"é\n{i}", "label": i % 2, "stars": i / 2}


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: builder(name, data_dir=tmp_path, **kwargs))
    tfds.disable_progress_bar()
    return tmp_path


def test_tfds_is_prepared_and_read(tfds_folder, capsys):
    found = [row for chunk in chunks(*sources(["tfds:small_reviews"]), 0, Keys(), 10_000) for row in parse(chunk)]
    assert [row[0] for row in found] == list(range(1, 2501)) and capsys.readouterr().out == ""
    assert {row[1:] for row in found} == {(f"é\n{i}", str(i % 2), None) for i in range(2500)}
    (chunk,) = chunks(*sources(["tfds:small_reviews:test"]), 0, Keys(None, "stars"))
    assert sorted(row[1:3] for row in parse(chunk)) == [("é\n0", "0.0"), ("é\n1", "0.5"), ("é\n2", "1.0")]
    assert len(list(read_texts("tfds:small_reviews:train[:10]"))) == 10
    assert "no feature 'txt'; there are: label, text, stars" in complaint("tfds:small_reviews", "txt")
    assert "Unknown split 'dev'" in complaint("tfds:small_reviews:dev")


def test_a_tfds_that_cannot_be_read_names_one_that_can(tfds_folder):
    assert "withdrawn" in complaint("tfds:amazon_us_reviews/Watches_v1_00:train")
    for wrong in ("tfds:amazon_us_reviews", "tfds:no_such_reviews", "tfds:a b", "tfds:"):
        assert "Amazon Reviews 2023" in complaint(wrong)


def test_tfds_own_parquet_files_are_never_read(tfds_folder):
    tfds.builder("small_reviews").download_and_prepare(file_format="parquet")
    assert "stored as parquet; set TFDS_DATA_DIR" in complaint("tfds:small_reviews")
