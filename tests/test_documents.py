"""Laws of JSON in arrays and over several lines: it is read as the same objects are that stand one a line."""

import io
import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import BOM, any_text, complaint, packed, put, rows_of, unhurried
from mlstm_jax.config import Config
from mlstm_jax.corpus import lines
from mlstm_jax.corpus.build import build
from mlstm_jax.corpus.readers import Keys, chunks, parse, read_texts, sources
from mlstm_jax.text import to_bytes

label = st.integers(0, 9) | any_text | st.none()
more = st.recursive(
    label | st.booleans() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(any_text, inner)
)
review = st.fixed_dictionaries({"text": any_text, "label": label}, optional={"more": more, "'": more})
style = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "ensure_ascii": st.booleans(),
        "sort_keys": st.booleans(),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    }
)


@unhurried
@given(reviews=st.lists(review, min_size=1, max_size=6), style=style, piece=st.integers(1, 200), data=st.data())
def test_an_array_or_objects_over_several_lines_are_read_as_lines_are(folder, reviews, style, piece, data):
    expected = rows_of(put(folder / "a.jsonl", "\n".join(json.dumps(review) for review in reviews)))
    one_by_one = data.draw(st.booleans()) and style["indent"] is not None
    written = [json.dumps(review, **style) for review in reviews]
    whole = "\n".join(written) if one_by_one else json.dumps(reviews, **style)
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"])) if style["ensure_ascii"] else "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PIECE", piece)
        rows, error = rows_of(put(folder / "b.json", whole.replace("\n", end)), size=data.draw(st.integers(1, 300)))
    bytes_of = lambda rows: [tuple(to_bytes(v) if isinstance(v, str) else v for v in row) for row in rows]
    assert (bytes_of(rows), error) == (bytes_of(expected[0]), None) and expected[1] is None


@packed
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_file_of_json_may_be_an_array(tmp_path, packing, encoding):
    reviews = [{"text": f"naïve {n}", "stars": n} for n in range(9)]
    for indent in (None, 1):
        path = put(
            tmp_path / f"a.json{packing}", json.dumps(reviews, indent=indent, ensure_ascii=False).encode(encoding)
        )
        assert rows_of(path) == ([(n + 1, f"naïve {n}", str(n), None) for n in range(9)], None)


@pytest.mark.parametrize(
    "data, texts",
    [
        ("[]", []),
        (" [ ] \n", []),
        ('[{"text": "a"}, {"text": "b"},]', ["a", "b"]),
        ('[{"text": "a"}]\n[{"text": "b"}]', ["a", "b"]),
        ("[{'text': 'it\\'s [', 'x': None},\n {'text': \"b's}\"}]", ["it's [", "b's}"]),
        ('{\n "text": "a"\n}\n{"text": "b"}', ["a", "b"]),
        ('{"text": "a",\n "label": 1},\n{"text": "b", "label": 1}', ["a", "b"]),
        ('{"text": "a"}\n{"text": "b"}', ["a", "b"]),
        ('[{"text": "a\tb"}]', ["a\tb"]),
    ],
)
def test_what_is_near_to_an_array_is_read(tmp_path, data, texts):
    assert list(read_texts(put(tmp_path / "a.json", data))) == texts
    assert list(read_texts(put(tmp_path / "b.json", BOM + data.encode()))) == texts


def test_what_is_no_object_in_an_array_is_a_bad_row(tmp_path):
    rows, error = rows_of(put(tmp_path / "a.json", '[{"text": "a"}, null, 3,\n {"text": "b"}, "c"]'))
    assert error is None and [row[:2] for row in rows if not row[3]] == [(1, "a"), (3, "b")]
    assert [row[3][:8] for row in rows if row[3]] == ["not JSON", "not a JS"]


@pytest.mark.parametrize(
    "data, read, why",
    [
        ('[{"text": "a"}, {"text": "b"', 1, "object 2: the file ends within it"),
        ('[{"text": "a"}, {"text": "b', 1, "object 2: the file ends within it"),
        ('[{"text": "a"}, {"text": "b"}', 2, "object 3: the file ends within it"),
        (
            '[{"text": "a"},\n {"text": "he said "hi"},\n {"text": "b"}]',
            1,
            "object 2: a quote is not closed on its line",
        ),
        ('[{"text": "a"}]]', 1, "object 2: a bracket is closed that was not opened"),
        ('{\n"text": "a"}}', 1, "object 2: a bracket is closed that was not opened"),
        ('[{"text": "a"}, {"text": "two\nlines"}]', 1, "object 2: a quote is not closed on its line"),
    ],
)
def test_a_damaged_array_is_refused_after_what_comes_before(tmp_path, data, read, why):
    path = put(tmp_path / "a.json", data)
    rows, error = rows_of(path)
    assert len(rows) == read and not any(row[3] for row in rows)
    assert f"JSON is damaged at {why}; one object a line is read, too, as jq -c" in error


def test_an_object_may_be_as_long_as_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LINE", 1 << 20)
    text = lambda size: "x" * (size - len('{"text":""}'))
    whole = lambda size: json.dumps([{"text": "a"}, {"text": text(size)}], separators=(",", ":"))
    assert [len(t) for t in read_texts(put(tmp_path / "a.json", whole(1 << 20)))] == [1, (1 << 20) - 11]
    assert "object 2: it is longer than 1 MB" in complaint(put(tmp_path / "b.json", whole((1 << 20) + (1 << 19))))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_large_array_takes_little_memory(tmp_path, indent):
    letters = np.random.default_rng(0).integers(97, 122, (5000, 4000), np.uint8)
    path = put(tmp_path / "a.json.zst", json.dumps([{"text": bytes(row).decode()} for row in letters], indent=indent))
    tracemalloc.start()
    try:
        count = sum(1 for chunk in chunks(*sources([str(path)]), 0, Keys(), 1 << 20) for _ in parse(chunk))
        assert count == 5000 and tracemalloc.get_traced_memory()[1] < 16 << 20  # of 20 MB
    finally:
        tracemalloc.stop()


def test_standard_input_may_be_an_array(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'[{"text": "one"},\n{"text": "two"}]\n')))
    assert list(read_texts("-")) == ["one", "two"]


def test_training_on_an_array_is_training_on_its_lines(tmp_path):
    reviews = [{"text": f"text {n}", "label": n % 2} for n in range(30)]
    array = put(tmp_path / "a.json", json.dumps(reviews, indent=2))
    rows = put(tmp_path / "b.jsonl", "\n".join(map(json.dumps, reviews)))
    assert build(Config(data=str(array))).digest == build(Config(data=str(rows))).digest
