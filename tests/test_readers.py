"""Laws of the readers: no byte is changed, no line lost, no error hidden, whatever the file and however it is cut."""

import bz2
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.files import BOM, as_csv, as_parquet, complaint, file, headed, packed, put, rows_of, unhurried
from mlstm_jax.corpus import lines, records
from mlstm_jax.corpus.columns import TEXT_KEYS
from mlstm_jax.corpus.readers import Chunk, Keys, chunks, parse, read_texts, sources
from mlstm_jax.errors import UserError
from mlstm_jax.text import frame, to_bytes, to_text

# Texts

one_line = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ").strip(b"\r"))


@packed
@unhurried
@given(lines=st.lists(one_line, min_size=1))
@example(lines=["a\u0085b\u2028c\x0bd\x1ce\rf".encode(), b"\xff\xfe\x00"])
def test_a_txt_file_is_split_at_newlines_alone_and_keeps_every_byte(folder, packing, lines):
    lines = [b"plain text " * 2000, *lines]  # so that it is plain that the file is no binary one
    path = put(folder / f"a.txt{packing}", b"\n".join(lines) + b"\n")
    assert [to_bytes(text) for text in read_texts(path)] == [line for line in lines if line.strip()]


def test_line_ends_are_no_part_of_a_text_and_blank_lines_are_none(tmp_path):
    assert list(read_texts(put(tmp_path / "a.txt", b"one\r\ntwo\n\n \r\nfour"))) == ["one", "two", "four"]


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
    assert [to_bytes(text) for text in read_texts(as_json)] == [data]
    loose = put(folder / "c.json", b"{'text': \"" + data + b'"}\n' + b"{'text': \"\\N{DIGIT ONE}\\\\" + data + b'"}')
    assert [to_bytes(text) for text in read_texts(loose)] == [data, b"1\\" + data]
    in_csv = put(folder / "b.csv", b'text\n"' + data + b'"\n')
    assert [to_bytes(text) for text in read_texts(in_csv)] == [data]
    column = pyarrow.array([data], pyarrow.binary()).view(pyarrow.string())
    assert [to_bytes(text) for text in read_texts(as_parquet(folder / "b.parquet", text=column))] == [data]


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


# Encodings and line ends


@packed
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_encoding_and_line_end_gives_the_same_texts(tmp_path, packing, encoding, end):
    texts = [f"naïve {n} “\u4e0a\u0a0a” \U0001f642" for n in range(40)] + ["plain English text, as most of it is"] * 40
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    table = [["rating", "text"], *([str(n), text] for n, text in enumerate(texts))]
    shown = {
        "txt": texts,
        "csv": [",".join(f'"{cell}"' for cell in row) for row in table],
        "tsv": ["\t".join(row) for row in table],
        "json": [json.dumps({"text": text}, ensure_ascii=False) for text in texts],
    }
    for kind, shown_lines in shown.items():
        path = put(tmp_path / f"a.{kind}{packing}", (mark + end.join(shown_lines) + end).encode(encoding))
        rows, error = rows_of(path, size=100)
        assert error is None and [row[1] for row in rows] == texts and {row[3] for row in rows} == {None}
        assert [row[0] for row in rows] == list(range(1 + (kind[1:] == "sv"), 81 + (kind[1:] == "sv")))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_byte_order_mark_is_known_by_its_zeros_or_refused(tmp_path, encoding):
    assert list(read_texts(put(tmp_path / "a.txt", "I liked it\nIt’s fine\n".encode(encoding)))) == [
        "I liked it",
        "It’s fine",
    ]
    chinese = "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d \u6211\u559c\u6b22\n" * 30
    assert "UTF-16" in complaint(put(tmp_path / "b.txt", chinese.encode(encoding)))


@unhurried
@given(text=st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), piece=st.integers(1, 5), data=st.data())
def test_utf16_is_decoded_wherever_its_bytes_are_cut(folder, text, piece, data):
    order = data.draw(st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PIECE", piece)
        read = list(read_texts(put(folder / "u.txt", ("\ufeffone\n" + text).encode(order))))
    assert read == ["one", *[text.removesuffix("\r")] * bool(text.strip("\t\v\f "))]


def test_what_is_cut_within_a_character_is_read_up_to_there(tmp_path):
    whole = "one\ntwo".encode("utf-16")
    assert list(read_texts(put(tmp_path / "a.txt", whole[:-1]))) == ["one", "tw\ufffd"]


def test_a_carriage_return_among_newlines_is_no_line_end(tmp_path):
    assert list(read_texts(put(tmp_path / "a.txt", b"one\rtwo\nthree\r\n"))) == ["one\rtwo", "three"]


ELSE = {
    "gzip data; name it .gz": gzip.compress(b"one\n"),
    "bzip2 data; name it .bz2": bz2.compress(b"one\n"),
    "zstd data; name it .zst": zstandard.ZstdCompressor().compress(b"one\n"),
    "a Parquet file; name it .parquet": b"PAR1\x15\x04\x15",
    "a zip archive, or a workbook": b"PK\x03\x04\x14\x00",
    "no text, by the zero bytes in it": np.random.default_rng(0).standard_normal(500).tobytes() + bytes(3),
    "Git LFS pointer, not the data; fetch them with: git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid",
}


@pytest.mark.parametrize("said", ELSE)
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv"])
def test_what_is_no_text_is_refused_by_its_name(tmp_path, said, suffix):
    assert said in complaint(put(tmp_path / f"a.{suffix}", ELSE[said]))


def test_a_file_of_zeros_or_a_pointer_is_refused_whatever_it_is_named(tmp_path):
    assert "zero bytes" in complaint(put(tmp_path / "a.txt", bytes(5000)))
    for name in ("a.parquet", "a.txt.gz", "a.csv.zst"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
        assert "git lfs pull" in complaint(tmp_path / name)


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


def test_a_key_does_not_go_with_txt(tmp_path):
    assert "`text_key` goes with JSON, CSV" in complaint(put(tmp_path / "a.txt", "one"), "text")
    assert "`label_key` goes with JSON, CSV" in rows_of(tmp_path / "a.txt", Keys(None, "label"))[1]


# Chunks


@pytest.mark.parametrize("suffix", ["txt", "json"])
@unhurried
@given(data=file)
def test_every_line_of_any_bytes_is_accounted_for(folder, suffix, data):
    rows, error = rows_of(put(folder / f"any.{suffix}", data))
    assert error is None or "none of reviewText" in error
    if error is None:
        lines = data.removeprefix(BOM).split(b"\n")
        assert [row[0] for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]
        wrong = [row for row in rows if row[3]]
        assert [row[1:3] for row in wrong] == [(to_text(lines[row[0] - 1]), None) for row in wrong]


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
        patch.setattr(lines, "PIECE", piece)
        again = list(chunks(source, 3, Keys(), size))
        assert [chunk._replace(read=0) for chunk in again] == [chunk._replace(read=0) for chunk in cut]


@pytest.mark.parametrize("size", [1, 1 << 20, 16 << 20])
@pytest.mark.parametrize("name", ["txt", "txt.gz", "txt.bz2", "json.zst", "csv", "csv.gz", "tsv.zst", "parquet"])
def test_what_the_chunks_have_read_is_the_file_as_it_is_stored(tmp_path, name, size):
    texts = [bytes(line).decode() for line in np.random.default_rng(0).integers(97, 122, (3000, 1000), np.uint8)]
    path = tmp_path / f"a.{name}"
    if name == "parquet":
        as_parquet(path, text=texts)
    else:
        show = '{"text": "%s"}\n' if "json" in name else "%s\n"
        put(path, "text\n" * (name[1] == "s") + "".join(show % text for text in texts) + "\n" * 100)
    read = [chunk.read for chunk in chunks(*sources([str(path)]), 0, Keys(), size)]
    assert sum(read) == path.stat().st_size and min(read) >= 0
    assert size > 1 << 20 or max(read) < 0.9 * sum(read)


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
    lines = np.random.default_rng(0).integers(97, 122, (5000, 4000), np.uint8)
    show = '{"text": "%s"}' if "json" in name else "%s"
    put(tmp_path / name, "text\n" * ("csv" in name) + "\n".join(show % bytes(line).decode() for line in lines))
    tracemalloc.start()
    try:
        assert sum(1 for chunk in chunks(*sources([str(tmp_path / name)]), 0, Keys(), 1 << 20) for _ in parse(chunk))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # of 20 MB
    finally:
        tracemalloc.stop()


def test_what_is_optional_is_named_where_it_is_missing(tmp_path, monkeypatch):
    for package in ("zstandard", "pyarrow", "orjson"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "takes zstandard; pip install 'mlstm-jax[data]'" in complaint(put(tmp_path / "a.txt.zst", "one"))
    assert "takes pyarrow; pip install 'mlstm-jax[data]'" in complaint(put(tmp_path / "a.parquet", "one"))
    records._loads.cache_clear()
    try:
        assert list(read_texts(put(tmp_path / "a.json", b"\n".join(AMAZON["2023"])))) == [
            'It\'s "fine".\tIt is.',
            "It's",
        ]
    finally:
        records._loads.cache_clear()


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


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "circle").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "again").symlink_to(tmp_path / "there")
    put(tmp_path / "there" / "a.txt", "one")
    assert [source.name for source in sources([str(tmp_path / "here")])] == [str(tmp_path / "here" / "again" / "a.txt")]


def test_what_cannot_be_read_twice_or_at_all_is_one_clear_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no file but a pipe or a device; give it to standard input"):
        sources([str(tmp_path / "a.txt")])
    monkeypatch.setattr(sys, "stdin", None)  # python <&-
    with pytest.raises(UserError, match="standard input is closed"):
        list(read_texts("-"))


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
    assert [row[:4] for chunk in chunks(source, 0, Keys()) for row in parse(chunk)] == expected
