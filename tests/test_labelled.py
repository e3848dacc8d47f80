"""Laws of labelled files: what is read equals what was written, splits share nothing, what is left out is counted."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import assume, example, given
from hypothesis import strategies as st

from helpers.files import any_text, as_csv, as_parquet, headed, put, soup, unhurried
from mlstm_jax import tasks
from mlstm_jax.corpus.packaged import split_of
from mlstm_jax.errors import UserError
from mlstm_jax.tasks import Split, from_file, polarity, published
from mlstm_jax.text import EMPTY, frame, to_bytes, to_text

ENOUGH = 50  # texts of a class, of which the hash puts some in every split


def many(*classes, count=ENOUGH):
    """Enough different texts of every class."""
    return [(f"text {i} of {place}", label) for place, label in enumerate(classes) for i in range(count)]


def csv_of(rows, header=("text", "label")):
    return as_csv([header, *rows])


def jsonl_of(rows):
    return b"".join(to_bytes(json.dumps({"text": text, "label": label}) + "\n") for text, label in rows)


def named(task):
    """All texts with the names of their classes."""
    return [
        (t, task.classes[y]) for split in task[2:5] for t, y in zip(split.texts, split.labels.tolist(), strict=True)
    ]


def parts(task):
    return [{(text, int(y)) for text, y in zip(*split, strict=True)} for split in task[2:5]]


def refusal(path, **keys):
    """What a file is refused with: one line that names it."""
    with pytest.raises(UserError) as error:
        from_file(path, **keys)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def is_number(label):
    try:
        float(label)
    except ValueError:
        return False
    return True


# What is read


labels = st.lists(any_text.map(str.strip).filter(bool), min_size=2, max_size=4, unique_by=lambda label: to_bytes(label))
csv_text = st.text(st.characters(exclude_characters="\r"))  # the writer of csv ends a row there


@pytest.mark.parametrize("suffix, written", [("csv", csv_of), ("jsonl", jsonl_of)])
@unhurried
@given(classes=labels, texts=st.lists(st.tuples(csv_text, st.integers(0, 3)), max_size=8))
@example(classes=[":", "\ud800"], texts=[])
@example(classes=["a\x00b", "\udcff", ",", '"'], texts=[("a\x00", 0), ("\udcff", 1), ("two\nlines", 2), ("", 3)])
def test_texts_and_labels_come_back_as_they_were_written(folder, suffix, written, classes, texts):
    assume(not any("\r" in label or is_number(label) for label in classes))
    rows = many(*classes) + [(text, classes[place % len(classes)]) for text, place in texts]
    side = (to_text(to_bytes(max(classes))).strip(),) if len(classes) == 2 else ()  # which is positive is not plain
    task = from_file(put(folder / f"any.{suffix}", written(rows)), positive=side)
    first = {}
    for text, label in rows:
        if frame(text) != EMPTY:
            first.setdefault(frame(text), (to_bytes(text), to_bytes(label)))
    assert sorted((to_bytes(text), to_bytes(label)) for text, label in named(task)) == sorted(first.values())
    there = {to_text(to_bytes(label)) for label in classes}
    assert task.classes == tuple(sorted(there, key=lambda label: (label in side, label)))


@unhurried
@given(order=st.randoms())
def test_splits_share_no_framed_text_and_the_order_of_rows_does_not_matter(folder, order):
    rows = many("no", "yes") + [("text 1 of 0\n", "no"), (" text 2 of 1", "yes"), ("text 3 of 1 &amp;", "yes")]
    straight = from_file(put(folder / "rows.csv", csv_of(rows)))
    order.shuffle(rows)
    shuffled = from_file(put(folder / "rows.csv", csv_of(rows)))
    strip = lambda task: [{(frame(text), y) for text, y in part} for part in parts(task)]
    assert strip(straight) == strip(shuffled)
    assert sum(map(len, strip(straight))) == len(set.union(*strip(straight))) == 2 * ENOUGH + 1
    for split, part in zip(("train", "dev", "test"), straight[2:5], strict=True):
        assert {split_of(text) for text in part.texts} == {split}


def test_all_kinds_of_file_give_the_same_task(tmp_path):
    rows = many("bad", "fair", "good")
    texts, classes = (list(column) for column in zip(*rows, strict=True))
    files = [
        put(tmp_path / "r.csv", csv_of(rows)),
        put(tmp_path / "r.tsv", as_csv([("text", "label"), *rows], delimiter="\t")),
        put(tmp_path / "r.jsonl.gz", jsonl_of(rows)),
        as_parquet(tmp_path / "r.parquet", text=texts, label=classes),
    ]
    first, *others = (from_file(path) for path in files)
    assert first.name == "r" and first.classes == ("bad", "fair", "good") and first.train.labels.dtype == np.int64
    assert first.note == "{} / {} / {}, split by a hash of the text".format(*(len(part.texts) for part in first[2:5]))
    for other in others:
        assert other[:2] == first[:2] and named(other) == named(first)


@pytest.mark.parametrize(
    "written, classes",
    [
        ([10, 9, 1], ("1", "9", "10")),
        ([0.5, -1, 2], ("-1", "0.5", "2")),
        (["10", "9", "one"], ("10", "9", "one")),
        ([True, False], ("False", "True")),
        ([1, 2, 3, 4, 5], ("1", "2", "3", "4", "5")),
    ],
)
def test_classes_are_sorted_as_numbers_where_all_are(tmp_path, written, classes):
    task = from_file(put(tmp_path / "a.jsonl", jsonl_of(many(*written))))
    assert task.classes == classes
    assert {label for text, label in named(task) if text.endswith(" of 0")} == {str(written[0])}


@pytest.mark.parametrize(
    "negative, positive",
    [
        ("Rotten", "Fresh"),
        ("-", "+"),
        ("\u2212", "+"),
        ("poor", "good"),
        ("bad", "GREAT"),
        ("负面", "正面"),
        ("差评", "好评"),
        ("отрицательный", "Положительный"),
        ("négatif", "positif"),
        ("NÉGATIF", "Positif"),
        ("Thumbs-Down", "thumbs up"),
        ("👎🏽", "👍"),
        ("No", "yes"),
        ("false", "true"),
        ("-1", "1"),
        ("9", "10"),
        ("1 star", "5 Stars"),
        ("★☆☆☆☆", "★★★★★"),
        ("__label__1", "__label__2"),
        ("LABEL_0", "LABEL_1"),
        ("부정", "긍정"),
        ("سلبي", "إيجابي"),
    ],
)
def test_of_two_labels_the_one_that_means_praise_is_positive(tmp_path, negative, positive):
    for order in ((negative, positive), (positive, negative)):
        task = from_file(put(tmp_path / "a.jsonl", jsonl_of(many(*order))))
        assert task.classes == (negative, positive)
        assert {label for text, label in named(task) if text.endswith(" of 0")} == {order[0]}


def test_no_word_is_on_both_sides():
    assert not polarity._POSITIVE & polarity._NEGATIVE


@pytest.mark.parametrize(
    "pair", [("hot", "cold"), ("good", "great"), ("positive", "neutral"), ("spam", "1"), ("Ä", "ä")]
)
def test_where_it_is_not_plain_which_is_positive_the_user_is_asked(tmp_path, pair):
    path = put(tmp_path / "a.jsonl", jsonl_of(many(*pair)))
    says = refusal(path)
    assert all(repr(label) in says for label in pair) and "with `positive`" in says
    for options in ({"positive": pair[:1]}, {"negative": pair[1:]}, {"positive": pair[:1], "negative": pair[1:]}):
        task = from_file(path, **options)
        assert task.classes == pair[::-1]
        assert {label for text, label in named(task) if text.endswith(" of 0")} == {pair[0]}


def test_labels_are_merged_into_two_classes_and_the_others_counted(tmp_path, capsys):
    rows = [*many(1.0, 2.0, 3.0, 4.0, 5.0), ("text 0 of 2", 5.0)]
    path = put(tmp_path / "a.jsonl", jsonl_of(rows))
    task = from_file(path, positive=("4", "5"), negative=("1", "2.0"))
    assert task.classes == ("1.0 or 2.0", "4.0 or 5.0")
    place = lambda text: 0 if text[-1] in "01" else 1
    assert all(task.classes[place(text)] == label for text, label in named(task) if text != "text 0 of 2")
    assert ("text 0 of 2", "4.0 or 5.0") in named(task) and len(named(task)) == 4 * ENOUGH + 1
    assert capsys.readouterr().err == f"{path}: rows left out: 50 of neither class, lines 101, 102, 103 ...\n"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"positive": ("5",)}, "name the labels of the other class, too, with `negative`; there are: '1', '3', '5'"),
        ({"negative": ("1",)}, "too, with `positive`"),
        ({"positive": ("5", "6"), "negative": ("1",)}, "no text has the label '6' of `positive`; there are: '1', '3'"),
        ({"positive": ("5", "1"), "negative": ("1",)}, "'1' cannot be both positive and negative"),
        ({"positive": ("5", "3", "1")}, "with `negative`"),
    ],
)
def test_labels_that_cannot_be_two_classes_are_refused(tmp_path, options, says):
    assert says in refusal(put(tmp_path / "a.csv", csv_of(many("1", "3", "5"))), **options)


def test_a_usual_name_is_found_and_another_is_named(tmp_path):
    stars = put(tmp_path / "stars.csv", csv_of(many("5", "1"), ("reviewText", "overall")))
    other = put(tmp_path / "other.csv", csv_of(many("5", "1"), ("said", "mood")))
    assert named(from_file(stars)) == named(from_file(other, text_key="said", label_key="mood"))


@pytest.mark.parametrize(
    "file, name",
    [
        ("a b.c.csv", "a_b_c"),
        ("Über-sicht.JSONL", "Über-sicht"),
        ("(!).csv", "labelled"),
        ("sst.csv", "sst_file"),  # the record of another task is not written over
        ("mr.tsv", "mr_file"),
        ("x" * 200 + ".csv", "x" * 100),
    ],
)
def test_a_task_is_named_after_its_file(tmp_path, file, name):
    written = {"csv": csv_of, "tsv": lambda rows: csv_of(rows).replace(b",", b"\t"), "jsonl": jsonl_of}
    path = put(tmp_path / file, written[file.rpartition(".")[2].lower()](many("bad", "good")))
    assert from_file(path).name == name and re.fullmatch(r"[\w-]+", name)


def test_a_text_of_a_megabyte_and_nuls_are_texts(tmp_path):
    rows = [("long " * 200_000, "bad"), ("nul\x00nul", "good"), *many("bad", "good")]
    assert set(rows) == set(named(from_file(put(tmp_path / "a.csv", csv_of(rows)))))


# What is left out


def test_what_is_left_out_is_counted_with_its_lines_in_one_line(tmp_path, capsys):
    data = csv_of(
        [
            *many("bad", "good"),
            ("text 0 of 0", "bad"),
            ("text 1 of 0 ", "good"),
            ("", "bad"),
            ("lost", ""),
            (" ", "good"),
        ]
    )
    path = put(tmp_path / "a.csv", data + b"one\none,two,three\n" + b"no label, \n" * 4)
    task = from_file(path)
    assert sorted(named(task)) == sorted(many("bad", "good"))
    out, err = capsys.readouterr()
    assert out == "" and err == (
        f"{path}: rows left out: 2 without a text, lines 104, 106; 5 without a label, lines 105, 109, 110 ...; "
        "2 that cannot be read (the first: 1 columns, the header has 2), lines 107, 108; "
        "1 that repeat a text, line 102; 1 that repeat a text with another label, line 103\n"
    )


@pytest.mark.parametrize("suffix, written", [("csv", csv_of), ("jsonl", jsonl_of)])
@unhurried
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["", " ", "text 1 of 0", "new", "new ", "\x00", "&nbsp;"]),
            st.sampled_from(["", " ", "bad", "good"]),
        )
    ),
    bad=st.integers(0, 3),
)
def test_every_row_is_kept_or_counted(folder, suffix, written, rows, bad):
    rows = [row for row in rows if suffix == "jsonl" or row != ("", "")] + many("bad", "good")
    path = put(folder / f"any.{suffix}", written(rows) + b'one,two,three{"\n' * bad)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        task = from_file(path)
    left = re.findall(r"(?:left out:|;) ([\d,]+) (?:without|that)", said.getvalue())
    assert len(named(task)) + sum(map(int, left)) == len(rows) + bad and said.getvalue().count("\n") == bool(left)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    from_file(put(tmp_path / "a.csv", csv_of(many("bad", "good"))))
    assert capsys.readouterr() == ("", "")


# What is refused


@pytest.mark.parametrize(
    "file, data, says",
    [
        ("a.csv", b"", "FILE is empty"),
        ("a.jsonl", b"", "FILE is empty"),
        ("a.jsonl", b"\n \n", "FILE holds no text with a label"),
        ("a.csv", b"text,label\n", "FILE holds no text with a label"),
        ("a.csv", b"text,label\nx,\n,a\n", "FILE holds no text with a label"),
        ("a.jsonl", b"no JSON\n", "FILE: 1 of 1 rows cannot be read; the first is line 1: not JSON"),
        ("a.csv", csv_of(many("bad", "good"), ("text", "mood")), "FILE: none of overall, rating, star_rating, "),
        ("a.jsonl", b'{"text": "a", "mood": 1}\n', "name the label with `label_key`"),
        ("a.csv", csv_of(many("bad", "good"), ("said", "label")), "name the text with `text_key`, one of: said, label"),
        ("a.txt", b"one\ntwo\n", "FILE: plain text has no labels; give CSV, TSV, JSON lines or Parquet"),
        ("a.doc", b"one\ntwo\n", "unknown kind of file '.doc'"),
        ("a.csv", b"text,label,label\nx,y,z\n", "FILE, line 1: more than one column is named 'label'"),
        ("a.csv", b"text,text,label\nx,y,z\n", "FILE, line 1: more than one column is named 'text'"),
        (
            "a.csv",
            b"a good film,1\na bad film,0\n",
            "as numbers of columns; a file's first line names its columns, as in text,label",
        ),
        ("a.csv", b"text,label\n" + b"x" * 10**6 + b",a\n", "FILE: all texts have the label 'a'"),
        ("a.csv", csv_of(many("a")), "FILE: all texts have the label 'a'; two classes or more are needed"),
        (
            "a.csv",
            csv_of(many(*range(101), count=1)),
            "FILE: 101 different labels in 101 texts, at most 100 are taken; ",
        ),
        ("a.csv", csv_of(many(*range(101), count=1)), "this looks like no label column: name one with `label_key`"),
        ("a.csv", csv_of(many("1", "1.0")), "FILE: the labels '1' and '1.0' are the same number; write them alike"),
        (
            "a.csv",
            csv_of([*many("bad", "good"), ("x", "c")]),
            "FILE: the class 'c' has too few texts: 1 to train on and 0 to test on, where 2 and 1 are needed",
        ),
        ("a.csv", csv_of(many("bad", "good", count=1)), "2 and 1 are needed: add texts, or give a folder with train.*"),
    ],
)
def test_what_cannot_be_a_task_is_refused_in_a_line(tmp_path, file, data, says):
    assert says in refusal(put(tmp_path / file, data))


def test_keys_that_are_not_there_and_files_that_are_not_are_refused(tmp_path):
    path = put(tmp_path / "a.csv", csv_of(many("bad", "good")))
    assert "no column 'mood'; there are: text, label" in refusal(path, label_key="mood")
    assert "cannot be both the text and the label" in refusal(path, label_key="text")
    assert "no such file" in refusal(tmp_path / "none.csv")
    put(tmp_path / "b.csv", b"text,label\n")
    assert "matches 2 files" in refusal(tmp_path / "*.csv")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@unhurried
@given(data=headed)
def test_any_bytes_are_a_task_or_refused_in_a_line(folder, suffix, data):
    path = put(folder / f"any.{suffix}", data)
    try:
        assert len(from_file(path).classes) > 1
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@unhurried
@example(behind=b"\\")
@example(behind=b"\\\na")
@example(behind=b"\t\r\t")
@given(behind=soup.map(lambda parts: b"".join(parts).replace(b",", b"")))
def test_bad_rows_behind_good_ones_take_none_of_them(folder, behind):
    good = sorted(many("bad", "good"))
    path = put(folder / "good.csv", csv_of(good) + behind + b"\n")
    assert sorted(named(from_file(path))) == good


# Folders with a file for each split


def split_files(folder, train="train.csv", dev="dev.csv", test="test.csv"):
    for i, file in enumerate((train, dev, test)):
        if file:
            rows = [(f"{text} {i}", label) for text, label in many("bad", "good", count=20)]
            put(folder / file, csv_of(rows) if "csv" in file else jsonl_of(rows))
    return folder


@pytest.mark.parametrize("dev", ["dev.csv", "valid.jsonl", "validation.csv.gz", "DEV.csv"])
def test_a_folder_keeps_its_splits(tmp_path, dev):
    put(split_files(tmp_path, dev=dev) / "README.txt", "no split")
    task = from_file(tmp_path)
    assert [{text[-1] for text in part.texts} for part in task[2:5]] == [{"0"}, {"1"}, {"2"}]
    assert task.note == "40 / 40 / 40, its own splits" and task.classes == ("bad", "good")


def test_without_dev_it_is_a_tenth_of_train(tmp_path):
    task = from_file(split_files(tmp_path, dev=None))
    assert len(task.train.texts) + len(task.dev.texts) == len(task.test.texts) == 40
    assert {split_of(text) for text in task.dev.texts} == {"dev"}
    assert "dev" not in {split_of(text) for text in task.train.texts}
    assert task.note.endswith("its own test split, dev by a hash of the text")


def test_a_text_of_two_splits_stays_in_the_later_one_alone(tmp_path, capsys):
    split_files(tmp_path)
    with open(tmp_path / "train.csv", "a") as file:
        file.write("text 0 of 0 2 ,bad\ntext 0 of 0 1,bad\n")
    with open(tmp_path / "dev.csv", "a") as file:
        file.write("text 1 of 0 2,good\n")
    with open(tmp_path / "test.csv", "a") as file:
        file.write("text 1 of 0 2,bad\n")  # a published test split stays whole
    task = from_file(tmp_path)
    assert [len(part.texts) for part in task[2:5]] == [40, 40, 41]
    assert capsys.readouterr().err == (
        f"{tmp_path / 'dev.csv'}: rows left out: 1 whose text is in a later split, line 42\n"
        f"{tmp_path / 'train.csv'}: rows left out: 2 whose text is in a later split, lines 42, 43\n"
    )


def test_a_folder_that_holds_no_splits_says_what_it_should_hold(tmp_path):
    split_files(tmp_path, train="a.csv", test="b.csv")
    assert "FILE: no train.* and test.*; a folder of labelled texts holds train.*, dev.*" in refusal(tmp_path)
    split_files(tmp_path)
    split_files(tmp_path, dev="valid.csv")
    assert "are both the dev split; take one away" in refusal(tmp_path)
    (tmp_path / "valid.csv").unlink()
    put(tmp_path / "train.csv", csv_of(many("bad", "poor", count=20)))
    assert "the class 'good' has too few texts: 0 to train on and 20 to test on" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "holds no file of a known kind" in refusal(tmp_path / "empty")


# The classic sets


def classic(folder, name="mr", pair=0, count=25):
    for file, place in zip(published.PAIRS[name][pair], "01", strict=True):
        put(folder / file, "".join(f"text {i} of {place}\n" for i in range(count)))
    return folder


@pytest.mark.parametrize(
    "name, pair", [(name, i) for name, pairs in published.PAIRS.items() for i in range(len(pairs))]
)
def test_every_pair_of_files_is_ten_folds_of_equal_classes(tmp_path, name, pair):
    found = tasks.load(name, classic(tmp_path, name, pair))
    assert found.all.texts == [f"text {i} of {place}" for place in (0, 1) for i in range(25)]
    assert found.all.labels.tolist() == [0] * 25 + [1] * 25
    assert found.classes == (("objective", "subjective") if name == "subj" else ("negative", "positive"))
    assert found.note == "50 texts, 10-fold cross-validation, folds by a hash of the text"
    per_class = [np.bincount(found.fold[found.all.labels == label], minlength=10).tolist() for label in (0, 1)]
    assert per_class == [[3] * 5 + [2] * 5] * 2


def test_the_rounds_test_every_text_once_and_share_none(tmp_path):
    found = tasks.load("mr", classic(tmp_path))
    rounds = [found.parts(k) for k in range(10)]
    for k, three in enumerate(rounds):
        train, dev, test = (set(found.fold[places].tolist()) for places in three)
        assert test == {k} and len(dev) == 1 and len(train) == 8 and not dev & test and not train & (dev | test)
        assert sorted(np.concatenate(three).tolist()) == list(range(50)) and all(map(len, three))
    assert sorted(np.concatenate([test for _, _, test in rounds]).tolist()) == list(range(50))
    assert sorted(np.concatenate([dev for _, dev, _ in rounds]).tolist()) == list(range(50))


@unhurried
@given(texts=st.lists(st.tuples(any_text, st.integers(0, 1)), min_size=1), order=st.randoms())
def test_equal_texts_share_a_fold_whatever_their_order(texts, order):
    def fold_of():
        split = Split([text for text, _ in texts], np.array([label for _, label in texts], np.int64))
        found = published.folds(split)
        assert found.min() >= 0 and found.max() < 10
        by_text, lowest = {}, {}
        for text, fold in zip(split.texts, found.tolist(), strict=True):
            assert by_text.setdefault(frame(text), fold) == fold
        for text, label in sorted(zip(map(frame, split.texts), split.labels.tolist(), strict=True)):
            lowest.setdefault(text, label)
        for label in (0, 1):  # of each class as many different texts in every fold
            counts = np.bincount([by_text[text] for text in lowest if lowest[text] == label], minlength=10)
            assert np.ptp(counts) <= 1
        return by_text

    first = fold_of()
    order.shuffle(texts)
    assert fold_of() == first


def test_pairs_as_senteval_has_them_are_latin_1_in_subfolders(tmp_path):
    folder = tmp_path / "CR"
    classic(folder.parent, "mr")
    folder.mkdir()
    classic(folder, "cr")
    put(folder / "custrev.neg", b"".join(b"na\xefve caf\xe9 \x85 %d\r\n" % i for i in range(10)))
    put(folder / "custrev.pos", "".join(f"naïve {i}\n" for i in range(10)))
    found = tasks.load("cr", tmp_path)
    assert found.all.texts == [f"naïve café \x85 {i}" for i in range(10)] + [f"naïve {i}" for i in range(10)]


def test_empty_lines_are_counted_and_duplicates_kept(tmp_path, capsys):
    classic(tmp_path)
    with open(tmp_path / "rt-polarity.pos", "a") as file:
        file.write("\n \ntext 1 of 1\ntext 1 of 0\nlast")
    found = tasks.load("mr", tmp_path)
    assert len(found.all.texts) == 53 and found.all.texts[-1] == "last"
    assert capsys.readouterr().err == f"{tmp_path / 'rt-polarity.pos'}: left out 2 empty lines\n"


@pytest.mark.parametrize("name", published.PAIRS)
def test_a_set_that_is_not_there_says_whence_it_comes(tmp_path, name):
    for folder in (None, tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as error:
            tasks.load(name, folder)
        message = str(error.value)
        assert "\n" not in message and message.endswith("in a folder and name it with `data`")
        assert published.ORIGINS[name] in message and "SentEval" in message
        assert all(file in message for pair in published.PAIRS[name] for file in pair)


def test_too_few_texts_for_ten_folds_are_refused(tmp_path):
    classic(tmp_path, count=9)
    with pytest.raises(UserError, match="rt-polarity.neg: 9 different texts; 10 of each class are needed for 10 folds"):
        tasks.load("mr", tmp_path)


# tensorflow-datasets


class TinyOpinions(tfds.core.GeneratorBasedBuilder):
    """Labelled reviews as tensorflow-datasets keeps them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["bad", "good"])
        features = tfds.features.FeaturesDict({"label": label, "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train", 100), "test": self._generate_examples("test", 10)}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"text": f"{split} {i}", "label": i % 2}


def test_a_tfds_set_keeps_its_test_split_and_gives_a_tenth_of_train_for_dev(tmp_path, monkeypatch):
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: builder(name, data_dir=tmp_path, **kwargs))
    tfds.disable_progress_bar()
    task = tasks.load("tfds:tiny_opinions")
    assert (task.name, task.classes) == ("tiny_opinions", ("0", "1"))
    assert {text for text, _ in parts(task)[2]} == {f"test {i}" for i in range(10)}
    assert parts(task)[0] | parts(task)[1] == {(f"train {i}", i % 2) for i in range(100)}
    assert {split_of(text) for text in task.dev.texts} == {"dev"} != {split_of(text) for text in task.train.texts}
    with pytest.raises(UserError, match="no feature 'mood'; there are: label, text"):
        from_file("tfds:tiny_opinions", label_key="mood")


def test_a_tfds_set_takes_no_split_folder_or_data_dir(tmp_path):
    with pytest.raises(UserError, match="tfds:tiny_opinions:train: name no split"):
        tasks.load("tfds:tiny_opinions:train")
    with pytest.raises(UserError, match="`data` goes with sst, mr, cr, subj and mpqa, not with tfds:tiny_opinions"):
        tasks.load("tfds:tiny_opinions", tmp_path)
    with pytest.raises(UserError, match="TFDS_DATA_DIR"):
        tasks.load("tfds:tiny_opinions", None, tmp_path)
    with pytest.raises(UserError, match="tfds:no_such_opinions:test: tensorflow-datasets cannot read it"):
        tasks.load("tfds:no_such_opinions")
