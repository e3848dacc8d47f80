"""Laws of dialects: what Python's own writers wrote is read as it was, or refused with a word; never another text."""

import codecs
import csv
import io
import json
import random
import re

import pytest

from helpers.files import BOM, complaint, put, rows_of
from mlstm_jax.corpus.dialects import Dialect, recognise
from mlstm_jax.corpus.readers import Keys, read_texts
from mlstm_jax.text import to_text

# Files of random dialects

WORDS = ["Good", "a", "1", "é", "naïve café", "🙂", "=", ".", "two words"]
SPECIAL = ['"', '""', "'", ",", ";", "\t", "|", "\n", "\r\n", "\\", " "]
LABELS = [["0", "1"], ["negative", "positive"], ["1", "2", "3", "4", "5"], ["good, really", 'so "so"']]
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "cp1252": b"",
}
TEXT, LABEL = ("text", "Review Text", "review"), ("label", " Label", "sentiment")
COLUMNS = [("text", "label"), ("label", "text"), ("id", "Review Text", " Label"), ("review", "sentiment", "source")]


def drawn(draw):
    """Texts with their labels, most of them nasty."""
    words, labels, rows = WORDS + SPECIAL * (draw.random() < 0.8), draw.choice(LABELS), []
    for number in range(draw.randrange(1, 30)):
        text = "".join([f"{number} " * draw.randrange(2), *draw.choices(words, k=draw.randrange(1, 12))])
        # (where all backslashes stand twice, nothing tells a text from one whose backslashes are escaped)
        rows.append((re.sub(r"\\{2,}", r"\\", text), draw.choice(labels)))
    return [row for row in rows if row[0].strip()] or [("a", labels[0])]


def table(draw, rows):
    """Suffix and text of a file of separated values, and whether it has to be read; csv.Error where csv cannot."""
    delimiter, escaped = draw.choice(",;\t|"), draw.random() < 0.3
    quoting = draw.choice([csv.QUOTE_MINIMAL] * 3 + [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE])
    out, columns = io.StringIO(newline=""), draw.choice(COLUMNS)
    writer = csv.writer(
        out,
        delimiter=delimiter,
        quoting=quoting,
        doublequote=not escaped,
        escapechar="\\" if escaped else None,
        lineterminator=draw.choice(["\n", "\r\n", "\r"]),
    )
    writer.writerow(columns)
    for number, (text, label) in enumerate(rows):
        writer.writerow([text if name in TEXT else label if name in LABEL else number for name in columns])
    suffix = ".tsv" if delimiter == "\t" and draw.random() < 0.5 else ".csv"
    return suffix, out.getvalue(), delimiter in ",;\t" and not escaped and quoting != csv.QUOTE_NONE


def json_file(draw, rows):
    """The same of JSON: one object a line, objects over several lines, or one array, indented or not."""
    ascii_only, form = draw.random() < 0.5, draw.choice(["lines", "indented", "array"])
    indent = None if form == "lines" else draw.choice([1, 2, "\t"]) if form == "indented" else draw.choice([None, 0, 2])
    objects = [{"label": label, "text": text} for text, label in rows]
    whole = [objects] if form == "array" else objects
    text = "\n".join(json.dumps(one, ensure_ascii=ascii_only, indent=indent) for one in whole)
    return draw.choice([".json", ".jsonl"]), text.replace("\n", draw.choice(["\n", "\r\n"])), True


def written(seed):
    """Rows, and suffix and bytes of a file of them in a random dialect, and whether it has to be read."""
    draw = random.Random(seed)
    while True:
        rows, encoding, write = drawn(draw), draw.choice(list(ENCODINGS)), draw.choice([table, table, json_file])
        try:
            suffix, text, usual = write(draw, rows)
            data = ENCODINGS[encoding] + text.encode(encoding)
        except (csv.Error, UnicodeEncodeError):
            continue
        if encoding == "cp1252" and not text.isascii():  # bytes that are no UTF-8 are kept
            rows = [tuple(to_text(cell.encode(encoding)) for cell in row) for row in rows]
        usual = usual and encoding != "cp1252" and (write is json_file or "16" not in encoding)
        return rows, suffix, data, usual


@pytest.mark.parametrize("seeds", [range(400), pytest.param(range(400, 2400), marks=pytest.mark.slow)])
def test_a_file_of_any_dialect_is_read_as_it_was_written_or_refused(folder, seeds):
    others = refused = 0
    for seed in seeds:
        rows, suffix, data, usual = written(seed)
        path = put(folder / f"any{suffix}", data)
        found, error = rows_of(path)
        whole = error is None and not any(wrong for *_, wrong in found)
        assert not whole or list(read_texts(path)) == [text for text, _ in rows], (seed, data)
        assert {row[1:3] for row in found if not row[3]} <= set(rows), (seed, data)
        assert [row[1:3] for row in found] == rows if whole else not usual, (seed, data, error)
        others, refused = others + (not usual), refused + (not whole)
    assert 0 < refused < others / 5


# Dialects by name


@pytest.mark.parametrize(
    "head, dialect",
    [
        (b"text,label\na,1\n", Dialect(",")),
        (b'text;label\n"a; b";1\n', Dialect(";")),
        (b"text\tlabel\na, b\t1\n", Dialect("\t")),
        (b"sep=|\r\ntext|label\r\na, b|1\r\n", Dialect("|", start=2)),
        (b'text,label\r"a\nb",1\r', Dialect(",", end=b"\r")),
        (b'text,label\n"a \\"b\\"",1\n', Dialect(",", escapes=True)),
        (b'text,label\na\\, \\"b\\",1\n', Dialect(",", quotes=False, escapes=True)),
        (b'text\tlabel\n"a\t1\nb"\t0\nc\t1\nd\t0\n', Dialect("\t", quotes=False)),
        (b'text\tlabel\n"a\tx\nb"\t0\nc\t1\nd\t0\n', Dialect("\t")),  # no label is x: a text with a tab and a newline
        (b'text\tlabel\n"a\t1\nb\t0\n', Dialect("\t", quotes=False)),
        (b'text,label\n"a, b\na, b\n",1\n"a, b\na, b\n",0\n', Dialect(",")),
        (b'text,label\n"a",1\n"b,1\n"c",0\n', Dialect(",")),  # a bad row among quoted ones
        (b'text,label\n"C:\\",1\n"a""b",0\n', Dialect(",")),
        (b"text\na, b\n", Dialect(",")),
        (b"", Dialect(",")),
    ],
)
def test_a_dialect_is_the_one_that_the_first_lines_contradict_least(head, dialect):
    assert recognise(head) == dialect


def test_what_contradicts_the_dialect_later_is_a_bad_row(tmp_path):
    later = {
        b'text,label\n"a ""b""",1\n': b'"c \\" d",0\ne \\"f\\",0\n',
        b'text,label\n"a \\"b\\"",1\n': b'"c ""d""",0\n"c:\\d",0\n',
        b'text\tlabel\n"a\t1\n"b\t0\n': b'a \\"b\\"\t1\na\tb\t1\n',
    }
    for head, rows in later.items():
        filler = b"".join(b"row %0100d%s1\n" % (i, b"\t" if b"\t" in head else b",") for i in range(12_000))
        found, error = rows_of(put(tmp_path / "a.csv", head + filler + rows))
        assert error is None and [bool(row[3]) for row in found[-3:]] == [False, True, True]


def test_backslashes_without_quotes_that_do_not_say_where_rows_end_are_refused(tmp_path):
    path = put(tmp_path / "a.csv", b'text,label\na\\, \\"b\\",1\n\\N,0\nc\\, d,1\n')
    assert "FILE: its quotes, or delimiters in cells, stand behind backslashes" in complaint(path)


@pytest.mark.parametrize("behind", [b"\\\n", b"\\\nx\n", b"x\\\n\\\n", b"\\\n\\\n\n"])
def test_backslashes_at_the_end_of_bad_rows_refuse_no_file(tmp_path, behind):
    found, error = rows_of(put(tmp_path / "a.csv", b"text,label\na,1\nb,0\n" + behind))
    assert error is None and [row[1:] for row in found[:2]] == [("a", "1", None), ("b", "0", None)]
    assert len(found) > 2 and all(wrong for *_, wrong in found[2:])


def test_newlines_behind_backslashes_that_join_lines_to_rows_are_refused(tmp_path):
    for row in (b"a\\\nb,1\n", b"\\N\\\nb,1\n"):
        error = complaint(put(tmp_path / "a.csv", b'text,label\nc \\N,"1\n' + row))
        assert "stand behind backslashes" in error


def test_a_row_that_goes_on_behind_the_first_megabyte_contradicts_nothing():
    row = b'"' + b'word, ""quoted"" text\n' * 20 + b'",1\n'
    head = b"text,label\n" + row * 2500
    assert recognise(head[: head.index(b"\n", 1 << 20) + 1]) == Dialect(",")


# Headers


@pytest.mark.parametrize("header", ["Review,Sentiment", "text, label", "Review Text,LABEL", "REVIEW_BODY,star rating"])
def test_the_usual_names_are_found_in_any_case_and_spacing(tmp_path, header):
    assert rows_of(put(tmp_path / "a.csv", f"{header}\ngood,1\n"))[0] == [(2, "good", "1", None)]
    text, label = header.split(",")
    line = json.dumps({label: "1", text: "good"})
    assert rows_of(put(tmp_path / "a.jsonl", line))[0] == [(1, "good", "1", None)]


def test_named_columns_are_found_exactly_else_loosely(tmp_path):
    path = put(tmp_path / "a.csv", "Body,body, My Label\nno,good,1\n")
    assert rows_of(path, Keys("body", "my_label"))[0] == [(2, "good", "1", None)]
    assert "more than one column is named 'BODY': Body, body" in complaint(path, "BODY")
    assert "no column 'bdoy'; there are: Body, body, My Label; did you mean 'body'?" in complaint(path, "bdoy")
    assert "(is it 'Reviews'?)" in complaint(put(tmp_path / "b.csv", "id,Reviews\n1,good\n"))
    assert "more than one column" in complaint(put(tmp_path / "c.csv", "Text,TEXT\n1,good\n"))
    assert list(rows_of(put(tmp_path / "d.csv", "Text,text\n1,good\n"))[0]) == [(2, "good", None, None)]


def test_a_file_without_a_header_is_read_by_the_numbers_of_its_columns(tmp_path):
    path = put(tmp_path / "a.csv", '"2","Good","I liked it"\n"1","Bad","It broke"\n')
    assert "the file has no header: give `text_key` and `label_key` as numbers" in complaint(path)
    rows = [(1, "I liked it", "2", None), (2, "It broke", "1", None)]
    assert rows_of(path, Keys("3", "1"))[0] == rows
    assert "no column '4'" in complaint(path, "4")
    headed = put(tmp_path / "b.csv", "label,text\n2,good\n")
    assert "line 1: this is a header; name a column by its name: label, text" in complaint(headed, "2")


# What files there are


def test_quotes_of_a_tsv_that_quotes_nothing_are_text(tmp_path):
    data = 'sentence\tlabel\n"a film that never flags\t1\nflat and joyless\t0\nwhat he called a good one"\t1\nfine\t1\n'
    texts = ['"a film that never flags', "flat and joyless", 'what he called a good one"', "fine"]
    rows = [(number, *row, None) for number, row in enumerate(zip(texts, "1011", strict=True), 2)]
    assert rows_of(put(tmp_path / "a.tsv", data))[0] == rows


def test_excels_own_files_are_read(tmp_path):
    text = 'sep=;\r\nText;Label\r\n"Gut; ""sehr"" gut";1\r\n'
    for data in (text.encode(), BOM + text.encode(), codecs.BOM_UTF16_LE + text.encode("utf-16-le")):
        assert rows_of(put(tmp_path / "a.csv", data))[0] == [(3, 'Gut; "sehr" gut', "1", None)]
