"""Laws of labels within the lines of a text file: they are found, split off, and said; plain texts stay whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import put, rows_of, unhurried
from mlstm_jax.config import Config
from mlstm_jax.corpus import line_labels, packaged, prepare
from mlstm_jax.corpus.build import build
from mlstm_jax.corpus.readers import read_texts
from mlstm_jax.tasks import from_file

SHAPES = {
    "__label__{label} {text}": ["1", "2"],
    "__label__{label}\t{text}": ["positive", "negative", *map(str, range(30))],
    "{text} __label__{label}": ["pos", "neg"],
    "{text}\t{label}": ["0", "1"],
    "{text}  \t{label}\r": ["negative", "positive"],
    "{label}\t{text}": ["1", "2", "3", "4", "5"],
    "{label} {text}": ["0", "1"],
    "{label} {text}\r": ["-1", "+1"],
}
TEXTS = [f"Film {i}: it is \tgood, 1 of {i}" for i in range(300)]


def file_of(path, shape, texts=TEXTS):
    labels = [SHAPES[shape][i % len(SHAPES[shape])] for i in range(len(texts))]
    put(path, "\n".join(shape.format(text=text, label=label) for text, label in zip(texts, labels, strict=True)))
    return path, labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_labels_are_split_off_the_lines_that_hold_them(tmp_path, shape, packing):
    path, labels = file_of(tmp_path / f"a.txt{packing}", shape)
    rows, error = rows_of(path, size=100)
    assert error is None and rows == [(n, t, y, None) for n, (t, y) in enumerate(zip(TEXTS, labels, strict=True), 1)]


def test_a_later_line_of_another_layout_is_a_text_without_a_label(tmp_path):
    path, labels = file_of(tmp_path / "a.txt", "{text}\t{label}", ["one", "two"] * 20)
    path.write_bytes(path.read_bytes() + b"\nthree\n__label__1 four\r\n")
    assert rows_of(path)[0][40:] == [(41, "three", None, None), (42, "__label__1 four", None, None)]


def test_several_labels_of_a_line_are_one(tmp_path):
    path = put(tmp_path / "a.txt", "__label__a __label__b one\n__label__a two\n" * 10)
    assert [row[1:3] for row in rows_of(path)[0][:2]] == [("one", "a b"), ("two", "a")]


PLAIN = {
    "too few lines": ["one\t1", "two\t0"] * 4,
    "a tab in nine lines of ten": [*["one\t1"] * 9, "two, which is plain"] * 30,
    "numbers that count": [f"{i} apples, and then some" for i in range(60)],
    "a table of texts": [f"a question {i}\tits answer {i}" for i in range(60)],
    "years": [f"In {1950 + i}\tit was {1950 + i}" for i in range(60)],
    "one that speaks of labels": ["plain words, and no more"] * 40 + ["__label__1 is how fastText has it"],
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_texts_stay_as_they_are(tmp_path, kind):
    rows, _ = rows_of(put(tmp_path / "a.txt", "\n".join(PLAIN[kind])))
    assert [row[1:3] for row in rows] == [(text, None) for text in PLAIN[kind]]


@pytest.mark.parametrize("source", packaged.SOURCES)
def test_reviews_are_plain_texts(source):
    head = "\n".join(review.text for review in packaged.rows(source)).encode()[: 1 << 20]
    assert line_labels.layout(head) is None


@unhurried
@given(head=st.lists(st.text("\t 1a_\r", max_size=12), min_size=10, max_size=60).map("\n".join).map(str.encode))
def test_no_byte_of_a_line_is_lost_but_the_label_and_what_parts_it(head):
    name = line_labels.layout(head)
    for line in head.split(b"\n") if name else []:
        text, label, wrong = line_labels.split(line, name)
        rest = "".join((label or "").split()) + "".join(text.split())
        assert wrong is None and sorted(rest.replace("\t", "")) == sorted("".join(line.decode().split()))


@pytest.mark.parametrize(
    "line", [b"\t" * 10**6, b"a\t" * 500_000, b"\t a" + b" " * 10**6 + b"b", b"__label__a " * 10**5]
)
def test_a_long_line_takes_no_time(line):
    lines = [line] * 10
    assert line_labels.layout(b"\n".join(lines)) in (
        None,
        *line_labels.LAYOUTS,
    )  # and comes to an end


# What the programs make of it

SAID = "its lines hold labels (a tab and a label at the end); they are split off, and no part of the texts"


def test_training_reads_the_texts_alone_and_says_so(tmp_path):
    path, _ = file_of(tmp_path / "a.txt", "{text}\t{label}")
    plain = put(tmp_path / "b.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS))
    corpus = build(Config(data=str(path)))
    assert corpus.notes == (f"{path}: {SAID}",) and corpus.digest == build(Config(data=str(plain))).digest


def test_a_corpus_holds_the_texts_with_their_labels_beside_and_says_so(tmp_path, capsys):
    path, labels = file_of(tmp_path / "a.txt", "{text}\t{label}")
    here = lambda expand, do, items: (do(task) for item in items for task in expand(item))
    prepare.prepare([str(path)], tmp_path / "out", prepare.Options(2), here)
    assert capsys.readouterr().err == f"{path}: {SAID}\n"
    beside = b"".join(file.read_bytes() for file in (tmp_path / "out").glob("*.labels.jsonl"))
    assert sorted(map(json.loads, beside.splitlines())) == sorted(labels)
    assert not any(b"\t0 " in file.read_bytes() for file in (tmp_path / "out").glob("*.bin"))


def test_such_a_file_is_a_labelled_task(tmp_path, capsys):
    path, labels = file_of(tmp_path / "a.txt", "__label__{label} {text}")
    task = from_file(path)
    assert task.classes == ("1", "2") and "(__label__ in front)" in capsys.readouterr().err
    known = dict(zip(TEXTS, labels, strict=True))
    for split in task[2:5]:
        assert [task.classes[y] for y in split.labels] == [known[text] for text in split.texts]
    assert set(read_texts(path)) == set(TEXTS)
