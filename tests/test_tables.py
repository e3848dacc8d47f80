"""Laws of tables: every row is a text or said to be wrong, whatever the quotes; CSV, Parquet, tensorflow-datasets."""

import csv

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import assume, example, given
from hypothesis import strategies as st

from helpers.files import as_csv, as_parquet, complaint, headed, packed, put, rows_of, unhurried
from mlstm_jax.corpus import dialects
from mlstm_jax.corpus.readers import Keys, chunks, parse, read_texts, sources
from mlstm_jax.text import to_bytes, to_text

# CSV and TSV


@packed
@pytest.mark.parametrize("suffix, delimiter", [("csv", ","), ("tsv", "\t")])
@unhurried
@given(texts=st.lists(st.text(st.characters(exclude_characters="\r")), min_size=1))
@example(texts=["a,b", "a\tb", '"', "two\nlines", "", "\x00", "a\u0085b\u2028c"])
def test_tables_give_back_any_text(folder, packing, suffix, delimiter, texts):
    table = as_csv([["label", "text"], *([i, text] for i, text in enumerate(texts))], delimiter=delimiter)
    assume(10 * table.count(0) <= len(table))  # more are no text
    assume(b"\\\\" not in table)  # where all backslashes stand in pairs, a pair is read as an escaped one
    path = put(folder / f"a.{suffix}{packing}", table)
    assert [to_bytes(text) for text in read_texts(path)] == [to_bytes(text) for text in texts]
    assert [row[2] for row in rows_of(path)[0]] == [str(i) for i in range(len(texts))]


def test_invalid_utf8_is_kept_across_the_pieces_of_a_large_csv(tmp_path):
    text = b"caf\xe9 \xff\xf0\x9f " * 200_000
    assert to_bytes(*read_texts(put(tmp_path / "a.csv", b"text\n" + text))) == text


def test_csv_rows_end_as_csv_says_and_blank_ones_do_not_count(tmp_path):
    path = put(tmp_path / "a.csv", b'label,text\r\n1,one\r\n\r\n0,"two\r\nlines"\r\n,four\r\n')
    assert rows_of(path)[0] == [(2, "one", "1", None), (4, "two\r\nlines", "0", None), (6, "four", None, None)]


def test_a_csv_field_may_be_long(tmp_path):
    assert list(read_texts(put(tmp_path / "a.csv", "text\n" + "x" * 200_000))) == ["x" * 200_000]


def test_amazons_own_tsv_quotes_nothing(tmp_path):
    data = 'marketplace\tcustomer_id\treview_body\tstar_rating\nUS\t1\t"Great\t5\nUS\t2\tit "is"\t1\n'
    assert rows_of(put(tmp_path / "a.tsv", data))[0] == [(2, '"Great', "5", None), (3, 'it "is"', "1", None)]


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
    assert error is None and [row[:2] for row in rows if row[3]] == [(3, '"two')]
    assert [row[1] for row in rows if not row[3]] == ["one", "three", *["four"] * 30_000, "five\nlines"]
    short = put(tmp_path / "b.csv", 'text\none\n"two\nthree')
    assert rows_of(short)[0] == [
        (2, "one", None, None),
        (3, '"two', None, "unexpected end of data"),
        (4, "three", None, None),
    ]


def test_lines_are_read_few_times_over_where_many_quotes_are_never_closed(tmp_path, monkeypatch):
    read = []  # the length of every line, as often as it is read
    monkeypatch.setattr(dialects, "to_text", lambda line: read.append(len(line)) or to_text(line))
    rows, _ = rows_of(put(tmp_path / "a.csv", '"text",label\n' + 'a","\n' * 100_000))
    assert len(rows) == 100_000 and rows[0][3] and len(read) < 4 * len(rows)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@unhurried
@given(data=headed)
def test_every_row_of_any_bytes_is_accounted_for(folder, suffix, data):
    rows, error = rows_of(put(folder / f"any.{suffix}", data))
    numbers, lines = [row[0] for row in rows], to_text(data).split("\n")
    assert numbers == sorted(set(numbers)) and (not numbers or 1 < numbers[-1] <= len(lines))
    bad = [(number, data.split("\n"), label) for number, data, label, wrong in rows if wrong]
    assert all((data, label) == (lines[number - 1 :][: len(data)], None) for number, data, label in bad)
    if error is None and b'"' not in data:
        assert numbers == [number for number, line in enumerate(lines, 1) if line.strip("\r")][1:]


def test_a_wrong_row_is_given_with_its_data(tmp_path):
    path = put(tmp_path / "a.csv", b'text,label\none,1\n"two\nl\xffnes",2,3\r\nfour,"\n')
    columns = "3 columns, the header has 2"
    assert rows_of(path)[0][1:] == [
        (3, '"two\nl\udcffnes",2,3\r', None, columns),
        (5, 'four,"', None, "unexpected end of data"),
    ]


# Parquet


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), "str")])
@unhurried
@given(texts=st.lists(st.text(), min_size=1))
def test_parquet_gives_back_any_text(folder, kind, texts):
    path = as_parquet(
        folder / "a.parquet", text=pyarrow.array(texts, kind), rating=[float(i) for i in range(len(texts))]
    )
    assert rows_of(path) == ([(i, text, f"{i - 1}.0", None) for i, text in enumerate(texts, 1)], None)


def test_parquet_text_that_is_no_utf8_is_kept_in_views_too(tmp_path):
    view = pyarrow.Array.from_buffers(
        pyarrow.string_view(), 1, pyarrow.array([b"\xff"], pyarrow.binary_view()).buffers()
    )
    assert rows_of(as_parquet(tmp_path / "a.parquet", text=view))[0] == [(1, "\udcff", None, None)]


def test_what_is_wrong_in_a_parquet_file_is_named(tmp_path):
    times = pyarrow.array([2**60], pyarrow.timestamp("us"))  # of no year that Python knows
    assert "not a whole Parquet file (" in complaint(as_parquet(tmp_path / "e.parquet", text=["a"], label=times))
    path = as_parquet(tmp_path / "a.parquet", text=["a", None, "b"], label=[1, None, 0])
    assert rows_of(path)[0] == [(1, "a", "1", None), (2, "", None, None), (3, "b", "0", None)]
    assert complaint(path, "txt") == "FILE: no column 'txt'; there are: text, label; did you mean 'text'?"
    assert rows_of(path, Keys("label", "text"))[0][0] == (1, "1", None, "'label' is not a text")
    assert "not a whole Parquet file" in complaint(put(tmp_path / "b.parquet", path.read_bytes()[:-9]))
    damaged = bytearray(as_parquet(tmp_path / "c.parquet", text=[f"text {i}" for i in range(2000)]).read_bytes())
    damaged[200:20_000] = bytes(19_800)
    assert "not a whole Parquet file" in complaint(put(tmp_path / "c.parquet", bytes(damaged)))
    as_parquet(tmp_path / "d.parquet", text=[{"nested": "a"}], **{"label.x": [1]})
    assert rows_of(tmp_path / "d.parquet")[0] == [(1, "{'nested': 'a'}", None, "'text' is not a text")]


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
    assert {row[1:4] for row in found} == {(f"é\n{i}", str(i % 2), None) for i in range(2500)}
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
