"""What a user holds: features, traces, logits, samples, weights in and out. Laws, not figures."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import mlstm_jax
from helpers.planted_model import HIDDEN, UNIT, smileys
from helpers.unit_records import RECORD
from mlstm_jax import unit_record
from mlstm_jax.cli.program import explain
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference import encode, generate, language_model
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model import parameters
from mlstm_jax.text import frame

CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def lm():
    """A small model with weights large enough that bytes matter and samples vary."""
    params = parameters.init(ModelConfig(hidden=32, embed=8), seed=5)
    return LanguageModel(params | {"gh": params["gh"] * 3, "out": params["out"] * 4}, Path("nowhere"))


TEXTS = ["", "x", "A good film.", "Ünïcödé ☃ 🙂", "long " * 70, "&lt;br /&gt;", "A good film."]


def test_batch_order_does_not_change_features(lm):
    features = lm.encode(TEXTS)
    np.testing.assert_allclose(lm.encode(TEXTS[::-1])[::-1], features, **CLOSE)
    assert (features[2] == features[6]).all() and not np.allclose(features[2], features[3])


def test_padding_does_not_change_features(lm):
    features = lm.encode(TEXTS)
    for text, feature in zip(TEXTS, features, strict=True):
        np.testing.assert_allclose(lm.encode([text])[0], feature, **CLOSE)


def test_weights_are_opened_in_the_precision_asked_for(lm, tmp_path):
    lm.save(tmp_path)
    narrow = mlstm_jax.load(tmp_path, precision="bfloat16")
    assert narrow.precision == "bfloat16" and mlstm_jax.load(tmp_path).precision == lm.precision
    features, exact = narrow.encode(TEXTS), lm.encode(TEXTS)
    assert np.abs(features - exact).max() < 3e-2 * np.abs(exact).max() and (features != exact).any()


def test_more_texts_than_rows(lm):
    texts = [f"text {n} " * (n % 7 + 1) for n in range(2 * encode.BATCH + 3)]
    features = lm.encode(texts)
    for n in (0, 64, 130):
        np.testing.assert_allclose(lm.encode([texts[n]])[0], features[n], **CLOSE)
    assert lm.encode([]).shape == (0, 32)


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 200), max_size=150), unit=st.integers(0, 31))
def test_a_row_that_is_refilled_knows_nothing_of_the_text_before(lm, lengths, unit):
    texts = [bytes((unit * 7 + n * k) % 256 for k in range(n)) for n in lengths]
    seen = []
    found = encode.features(lm.weights, texts, "cell", seen.append)
    assert sum(seen) == sum(lengths) and found.shape == (len(texts), 32)
    for n in {0, len(texts) // 2, len(texts) - 1} if texts else ():
        np.testing.assert_allclose(found[n], encode.features(lm.weights, [texts[n]])[0], **CLOSE)


@pytest.mark.parametrize(("count", "mean"), [(200, 1300), (2000, 1300), (2000, 100)])
def test_less_than_a_tenth_of_what_is_computed_is_padding(monkeypatch, count, mean):
    lengths = np.random.default_rng(0).lognormal(np.log(mean) - 0.25, 0.7, count).astype(int).clip(3, 13_700)
    computed, shapes, weights = [], set(), parameters.prepare(parameters.init(ModelConfig(hidden=1, embed=1), 0))
    read_on = lambda weights, data, state, lengths, fresh: (computed.append(data.size), shapes.add(data.shape), state)[
        -1
    ]
    monkeypatch.setattr(encode, "_read_on", read_on)
    encode.features(weights, [bytes(n) for n in lengths])
    assert lengths.sum() <= sum(computed) < 1.1 * lengths.sum()
    assert len(shapes) <= 4  # each is a compilation


@settings(deadline=None, max_examples=30)
@given(text=st.text())
def test_features_of_any_text_are_the_end_of_its_trace(lm, text):
    trace = lm.trace(text)
    assert trace.shape == (len(frame(text)), 32)
    np.testing.assert_allclose(lm.encode([text, "another"])[0], trace[-1], **CLOSE)


@pytest.mark.parametrize("feature", ["cell", "tanh_cell", "hidden"])
def test_one_units_trace_of_many_texts_is_a_column_of_each_texts_own(lm, feature):
    many = [*TEXTS, *(f"{i} more" * (i % 5) for i in range(encode.BATCH))]
    for text, values in zip(many, lm.trace_unit(many, 5, feature), strict=True):
        np.testing.assert_allclose(values, lm.trace(text, feature)[:, 5], **CLOSE)
    assert lm.trace_unit([], 5) == []
    with pytest.raises(UserError, match="unit 32 does not exist"):
        lm.trace_unit(["a"], 32)


@pytest.mark.parametrize("feature", ["cell", "tanh_cell", "hidden"])
def test_features_are_parts_of_the_state(lm, feature):
    _, (c, h) = lm.read(frame("A good film."))
    expected = {"cell": c, "tanh_cell": np.tanh(c), "hidden": h}[feature][0]
    np.testing.assert_allclose(lm.encode(["A good film."], feature)[0], expected, **CLOSE)


@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=600), cut=st.integers(0, 600))
def test_reading_in_two_pieces_equals_reading_at_once(lm, data, cut):
    logits, state = lm.read(data)
    assert logits.shape == (len(data), 256)
    first, between = lm.read(data[:cut])
    second, end = lm.read(data[cut:], between)
    np.testing.assert_allclose(np.concatenate([first, second]), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end, state, rtol=1e-4, atol=1e-5)


def test_bits_per_byte_is_the_mean_over_bytes_two_to_n(lm):
    data = b"A good film, and not too long. " * 20
    logits, _ = lm.read(data)
    log_probs = np.asarray(jax.nn.log_softmax(logits[:-1]))
    targets = np.frombuffer(data[1:], np.uint8)
    expected = -log_probs[np.arange(len(targets)), targets].mean() / np.log(2)
    assert lm.bits_per_byte(data) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="at least 2 bytes"):
        lm.bits_per_byte(b"x")


def greedy(lm, start, length, clamp=None):
    """Argmax continuation, one read a byte."""
    logits, state = lm.read(start)
    written = b""
    for _ in range(length):
        byte = bytes([int(logits[-1].argmax())])
        written += byte
        logits, state = lm.read(byte, state, clamp)
    return written


@pytest.mark.parametrize("clamp", [None, {3: 2.0}, {3: -2.0, 30: 1.0}])
def test_temperature_zero_is_argmax_of_the_logits_that_reading_gives(lm, clamp):
    texts = lm.generate("I ", num=2, length=70, temperature=0, clamp=clamp, seed=1)
    expected = (b"I " + greedy(lm, b"\n I ", 70, clamp)).decode("utf-8", "replace")
    assert texts == [expected, expected]


def test_a_clamp_changes_what_is_written(lm):
    texts = {lm.generate("I ", length=60, temperature=0, clamp={3: value})[0] for value in (-3.0, 0.0, 3.0)}
    assert len(texts) == 3


def test_one_seed_gives_one_text_alone_and_in_a_batch(lm):
    batch = lm.generate("The ", num=20, length=80, seed=3)
    assert lm.generate("The ", num=1, length=80, seed=3) == batch[:1]
    assert lm.generate("The ", num=3, length=80, seed=3) == batch[:3]
    assert len(set(batch)) == 20
    assert lm.generate("The ", num=1, length=80, seed=4) != batch[:1]


def test_a_longer_sample_begins_like_a_shorter_one(lm):
    (long,) = lm.generate("The ", length=150, seed=3)
    (short,) = lm.generate("The ", length=40, seed=3)
    assert long.startswith(short.rstrip("\ufffd"))
    assert lm.generate("The ", length=0) == ["The "]


def test_drawn_bytes_follow_the_distribution():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = lambda temperature: (
        np.bincount(jax.vmap(generate.choose, (0, None, None))(keys, logits, temperature)) / 20_000
    )
    np.testing.assert_allclose(draw(1.0), [0.1, 0.2, 0.3, 0.4], atol=0.015)
    squared = np.array([0.1, 0.2, 0.3, 0.4]) ** 2
    np.testing.assert_allclose(draw(0.5), squared / squared.sum(), atol=0.015)


@settings(deadline=None, max_examples=15)
@given(prime=st.text(max_size=20), seed=st.integers(0, 2**31 - 1))
def test_samples_are_valid_utf8_and_begin_with_the_prime(lm, prime, seed):
    (text,) = lm.generate(prime, length=30, temperature=2.0, seed=seed)
    text.encode("utf-8")
    assert text.startswith(prime.encode("utf-8", "replace").decode() if prime.isascii() else "")


def test_raw_reads_the_prime_as_it_is(lm):
    raw = lm.generate("\n I ", length=50, temperature=0, raw=True)[0]
    framed = lm.generate("I ", length=50, temperature=0)[0]
    assert raw == "\n " + framed


def test_two_processes_with_one_seed_give_one_text(golden):
    command = [sys.executable, str(Path(__file__).parent.parent / "sample.py"), str(golden / "openai" / "model")]
    command += ["--prime", "I ", "--num", "2", "--length", "100", "--seed", "7"]
    runs = [subprocess.run(command, capture_output=True, check=True, env=os.environ).stdout for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) > 200
    runs[0].decode("utf-8")


# In a process of its own, where no annotation is a check.
CLAMPS = """
import sys
import jax.numpy as jnp, numpy as np
import mlstm_jax
from mlstm_jax.errors import UserError

lm = mlstm_jax.load(sys.argv[1])

def refused(call, words):
    try:
        call()
    except UserError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

for unit in (64, -1, True, False, 2.0, "2", None, np.bool_(True), np.int64(64), (1,)):
    words = f"unit {unit!r} does not exist; this model has units 0 to {lm.hidden - 1}"
    refused(lambda: lm.generate("I ", clamp={unit: 1.0}), words)
    refused(lambda: lm.read(b"I ", clamp={unit: 1.0}), words)
    if unit is not None:  # the one that was found
        refused(lambda: lm.heatmap(["I"], unit), words)
for value in (np.nan, np.inf, 1e39, 10**400, True, "1", b"12", np.array([1.0]), 1j):
    refused(lambda: lm.read(b"I ", clamp={0: value}), f"unit 0 cannot be held at {value!r}")
    refused(lambda: lm.generate("I ", clamp={0: value}), f"unit 0 cannot be held at {value!r}")
for parts in ([(0,)], [(0.5, 1.0)], [("0", 1.0)], ["0", "1"], [0, 1]):
    refused(lambda: lm.generate("I ", clamp={0: parts}), "unit 0 need bytes that increase")
logits, _ = lm.read(b"I ", clamp={3: 1})
assert (logits != lm.read(b"I ")[0]).any()
for unit in (np.int8(3), np.uint64(3)):
    for value in (np.float32(1), np.float64(1), np.int64(1), jnp.float32(1), np.array(1.0)):
        assert (lm.read(b"I ", clamp={unit: value})[0] == logits).all()
"""


def test_a_clamp_has_whole_numbers_for_units_and_numbers_for_values(golden):
    command = [sys.executable, "-c", CLAMPS, str(golden / "openai" / "model")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_column_of_zeros_is_read_as_the_papers_release_reads_it(lm):
    params = lm.params | {"wh": lm.params["wh"].at[:, 3].set(0.0)}
    assert np.isfinite(LanguageModel(params, Path("nowhere")).read(b"A good film")[0]).all()


def test_what_the_python_surface_cannot_do_is_one_clear_line(lm, tmp_path):
    (tmp_path / "file").write_text("mine")
    for call in (
        lambda: lm.encode("abc"),
        lambda: lm.encode(["abc"], "foo"),
        lambda: lm.trace("abc", "foo"),
        lambda: lm.generate("I ", clamp={1.5: 1.0}),
        lambda: lm.generate("I ", clamp={1: 1e39}),
        lambda: lm.save(tmp_path / "file"),
        lambda: lm.save(tmp_path / "new", "pt"),
    ):
        with pytest.raises((UserError, TypeCheckError)):  # annotations are checked in tests only
            call()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def planted(tmp_path):
    """The model of smileys, saved with the record of its unit."""
    smileys().save(tmp_path / "model")
    model = mlstm_jax.load(tmp_path / "model")
    found = dict(digest=model.digest, unit=UNIT, sign=1, mean_negative=-0.9, mean_positive=0.9, deviation=0.5)
    record = dataclasses.replace(RECORD, **found, threshold=0.0, a=4.0, b=0.0, coefficients=(0.0,) * HIDDEN)
    unit_record.save(record, model.record_dir)
    return model


def test_the_unit_is_the_only_one_or_that_of_a_task(planted, lm):
    assert planted.unit == planted.unit_of("sst") and planted.unit.unit == UNIT
    unit_record.save(dataclasses.replace(planted.unit, task="imdb", unit=3), planted.record_dir)
    assert planted.unit_of("imdb").unit == 3
    calls = (
        lambda: planted.unit,
        lambda: planted.predict(["a"]),
        lambda: planted.heatmap("a"),
        lambda: planted.generate("a", sentiment=1),
    )
    for call in calls:
        with pytest.raises(UserError, match=r"imdb \(unit 3\), sst \(unit 7\); name one with `task`"):
            call()
    assert planted.predict([":)"], task="sst").label.tolist() == ["positive"]
    with pytest.raises(UserError, match="find the unit of these weights"):
        lm.unit  # noqa: B018


def test_predictions_are_those_of_the_record(planted):
    texts = ["a :)", "b :(", " <br /> ", "c :( d :)", b"", b":("]
    value, probability, label = planted.predict(texts)
    assert label.tolist() == ["positive", "negative", "", "positive", "", "negative"]
    np.testing.assert_array_equal(np.isnan(value), label == "")
    read = [0, 1, 3, 5]
    np.testing.assert_array_equal(value[read], planted.encode(texts)[read, UNIT])
    np.testing.assert_allclose(probability[read], 1 / (1 + np.exp(-4 * value[read])))
    assert [len(part) for part in planted.predict([])] == [0, 0, 0]
    with pytest.raises(UserError, match="predict takes a list of texts"):
        planted.predict("a :)")


@pytest.mark.parametrize("call", ["encode", "predict", "heatmap"])
def test_what_is_no_text_is_an_error_that_says_where(planted, call):
    with pytest.raises(
        UserError, match=r"2 of 4 are no texts, counted from 0 at 1 \(None\), 3 \(nan\); leave them out"
    ):
        getattr(planted, call)(["a", None, "b", float("nan")])
    with pytest.raises(UserError, match=r"9 of 9 .* 4 \(None\), \.\.\.; leave"):
        getattr(planted, call)([None] * 9)


def test_a_column_of_a_table_is_a_list_of_texts(planted):
    column = np.array(["a :)", "b :("], object)
    np.testing.assert_array_equal(planted.encode(column), planted.encode(list(column)))
    assert planted.predict(iter(column)).label.tolist() == ["positive", "negative"]


def test_sentiment_holds_the_unit(planted):
    held = unit_record.clamp_value(planted.unit, 2)
    text = planted.generate(":", sentiment=2, num=3, seed=1)
    assert text == planted.generate(":", clamp={UNIT: held}, num=3, seed=1)
    assert text == planted.generate(":", sentiment=2, task="sst", num=3, seed=1)
    assert text != planted.generate(":", sentiment=-2, num=3, seed=1)
    assert planted.generate(":", sentiment=2, clamp={3: 1.0}) == planted.generate(":", clamp={UNIT: held, 3: 1.0})
    for options, words in (
        (dict(sentiment=2, clamp={UNIT: 1.0}), "`sentiment` holds unit 7, and so does `clamp`"),
        (dict(sentiment=2, clamp_feature="hidden"), "leave `clamp_feature` out"),
        (dict(sentiment=float("nan")), "unit 7 cannot be held at nan"),
        (dict(task="sst"), "`task` says whose unit `sentiment` holds"),
    ):
        with pytest.raises(UserError, match=words):
            planted.generate(":", **options)


def test_a_heat_map_shows_itself_in_a_notebook_and_as_text(planted):
    heat = planted.heatmap("a :( <b> :)")
    assert [span.character for span in heat.texts[0]] == list("a :( <b> :) ")
    assert heat._repr_html_().startswith("<figure") and "&lt;" in heat._repr_html_() and "<b>" not in heat._repr_html_()
    text, marks = repr(heat).splitlines()[:2]
    assert text == "a :( <b> :) " and marks[3] == "N" and marks[10] == "P"
    assert len(planted.heatmap(["a", "b"]).texts) == 2


def test_a_model_describes_itself(lm, planted):
    assert repr(lm) == f"<LanguageModel nowhere: 32 units, embed 8, {lm.precision}>"
    about = dict(update=1200, validation_bits_per_byte=1.23456)
    model = LanguageModel(lm.params, Path("runs/a"), **about)
    assert repr(model).endswith(f"{lm.precision}, update 1,200, 1.235 bits per byte on validation text>")


def test_the_model_of_the_package_opens_by_name_and_where_there_is_no_run(planted, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_model, "PRETRAINED", tmp_path / "package")
    planted.save(tmp_path / "package")
    caplog.set_level("INFO")
    for path in (None, "pretrained", Path("pretrained")):
        assert mlstm_jax.load(path).digest == planted.digest
    assert "no run in runs/: using the model that comes with the package" in caplog.text
    shipped = mlstm_jax.load("pretrained")
    record = planted.unit
    assert shipped.unit == record
    newer = dataclasses.replace(record, threshold=0.25)
    unit_record.save(newer, shipped.record_dir)  # of an evaluation since
    assert shipped.unit == record and shipped.unit_of("sst") == newer
    unit_record.save(dataclasses.replace(record, task="mine"), shipped.record_dir)
    assert shipped.unit == record and shipped.unit_of("mine").task == "mine"
    (tmp_path / "package/LICENSE-weights").write_text("for research")
    shipped.save(tmp_path / "copy")
    copy = mlstm_jax.load(tmp_path / "copy")
    assert copy.unit == record and (tmp_path / "copy/LICENSE-weights").read_text() == "for research"
    assert "The licence of these weights is in LICENSE-weights." in (tmp_path / "copy/README.md").read_text()
    assert shipped.name == "pretrained" and mlstm_jax.load(tmp_path / "package").name == "pretrained"
    assert json.loads((tmp_path / "package/units/sst.json").read_text())["threshold"] == record.threshold
    LanguageModel(parameters.init(ModelConfig(hidden=8, embed=4), 0), tmp_path).save(tmp_path / "pretrained")
    assert mlstm_jax.load("pretrained").hidden == 8


def test_without_a_path_the_run_with_the_newest_checkpoint_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_model, "PRETRAINED", tmp_path / "none")
    with pytest.raises(UserError, match="no run with a checkpoint in runs/") as error:
        mlstm_jax.load()
    assert explain(error.value).endswith("or train one; try: python train.py")
    for name, time in (("old", 100), ("new", 200), ("empty", None)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        if time:
            (run / "checkpoints" / "5").mkdir(parents=True)
            os.utime(run / "checkpoints" / "5", (time, time))
    from mlstm_jax.run import newest_run

    assert newest_run().path == Path("runs/new")
