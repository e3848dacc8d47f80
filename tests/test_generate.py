"""Sampling: what may be drawn, which units are held when, where a sample ends, what is printed. Laws, not figures."""

import codecs
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.programs import ROOT
from mlstm_jax import unit_record
from mlstm_jax.cli import sample
from mlstm_jax.cli.program import explain
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference import generate
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model import cell, parameters


@pytest.fixture(scope="module")
def lm():
    """A tiny model whose samples vary; some hold a newline, some do not."""
    params = parameters.init(ModelConfig(hidden=16, embed=4), seed=5)
    params |= {"gh": params["gh"] * 3, "out": params["out"] * 8}
    return LanguageModel(params, Path("nowhere"))


def zeros():
    """Parameters of the same shapes that do nothing."""
    return {
        name: jnp.zeros_like(array) for name, array in parameters.init(ModelConfig(hidden=16, embed=4), seed=0).items()
    }


def written(lm, *args, **options):
    """The bytes of every sample."""
    pieces = {}
    texts = lm.generate(*args, **options, on_bytes=lambda i, piece: pieces.setdefault(i, []).append(piece))
    return [b"".join(pieces.get(i, [])) for i in range(len(texts))]


# What may be drawn


@settings(deadline=None, max_examples=50)
@given(
    logits=st.lists(st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0]), min_size=8, max_size=8),
    k=st.integers(0, 10),
    p=st.floats(1e-6, 1),
)
def test_the_bytes_that_may_be_drawn_are_the_likeliest_lower_bytes_first(logits, k, p):
    kept = np.asarray(generate.likely(jnp.array(logits), k, p))
    order = sorted(range(8), key=lambda byte: (-logits[byte], byte))[: k or 8]
    mass = np.exp([logits[byte] for byte in order])
    mass /= mass.sum()
    count = kept.sum()
    assert 1 <= count <= len(order) and set(np.flatnonzero(kept)) == set(order[:count])
    assert mass[: count - 1].sum() < p + 1e-6  # none too many
    assert mass[:count].sum() > p - 1e-6  # none too few


@pytest.mark.parametrize(
    "k, p, kept", [(3, 1.0, [1, 2, 5]), (0, 0.6, [1, 5]), (4, 0.75, [1, 2, 5]), (0, 1.0, range(6))]
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bytes_are_drawn_as_often_as_the_softmax_of_those_kept_has_it(k, p, kept, temperature):
    logits = temperature * jnp.log(jnp.array([0.05, 0.4, 0.125, 0.125, 0.1, 0.2]))  # of bytes 2 and 3 the lower is kept
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(generate.choose, (0, None, None, None, None))(keys, logits, temperature, k, p)
    expected = np.zeros(6)
    expected[list(kept)] = np.exp(logits / temperature)[list(kept)]
    expected /= expected.sum()
    found = np.bincount(drawn, minlength=6) / len(keys)
    assert not found[expected == 0].any()
    assert (np.abs(found - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(keys)) + 1e-9).all()


def test_no_limit_keeps_every_byte():
    logits = jnp.linspace(-30, 60, 256, dtype=jnp.float32)
    assert generate.likely(logits, 0, 1.0).all() and generate.likely(logits, 256, 1.0).all()


def test_the_likeliest_byte_alone_is_argmax(lm):
    greedy = lm.generate("I ", 3, 70, temperature=0)
    for options in (dict(top_k=1), dict(top_p=1e-30), dict(top_k=1, top_p=0.5), dict(top_k=9, top_p=1e-60)):
        assert lm.generate("I ", 3, 70, temperature=1.5, **options) == greedy
    assert lm.generate("I ", 3, 70, temperature=0, top_k=5, top_p=0.3) == greedy


def test_temperatures_near_zero_are_argmax(lm):
    greedy = lm.generate("I ", 2, 70, temperature=0)
    for temperature in (1e-7, 1e-30, 1e-37, 1e-44):
        assert lm.generate("I ", 2, 70, temperature=temperature) == greedy
        assert lm.generate("I ", 2, 70, temperature=temperature, top_p=0.9) == greedy


def ranks(lm, data):
    """The rank of every byte after the frame among the logits that reading gives, and the probability above it."""
    logits, _ = lm.read(b"\n " + data)
    rank, above = [], []
    for row, byte in zip(logits[1:-1].astype(np.float64), data, strict=True):
        likelier = row > row[byte]
        rank.append(likelier.sum())
        above.append(np.exp(row[likelier] - row.max()).sum() / np.exp(row - row.max()).sum())
    return np.array(rank), np.array(above)


def test_only_the_k_likeliest_bytes_are_written(lm):
    found = np.concatenate([ranks(lm, text)[0] for text in written(lm, "", 8, 80, top_k=3, seed=2)])
    assert set(found) == {0, 1, 2}


def test_only_bytes_within_the_mass_are_written(lm):
    above = np.concatenate([ranks(lm, text)[1] for text in written(lm, "", 8, 80, top_p=0.4, seed=2)])
    assert 0.2 < above.max() < 0.4 + 1e-5
    free = np.concatenate([ranks(lm, text)[1] for text in written(lm, "", 8, 80, seed=2)])
    assert free.max() > 0.8


def test_limits_that_cut_nothing_change_nothing(lm):
    free = lm.generate("I ", 2, 70)
    assert lm.generate("I ", 2, 70, top_k=256) == lm.generate("I ", 2, 70, top_k=10**12, top_p=1) == free


def test_every_byte_of_every_sample_is_drawn_with_its_own_key():
    texts = written(LanguageModel(zeros(), Path("nowhere")), "", 2, 640)  # all bytes are alike likely
    pieces = [text[start : start + 8] for text in texts for start in range(0, 640, 8)]
    assert len(set(pieces)) == len(pieces) == 160


def test_no_setting_compiles_again(lm, request):
    lm.generate("I ", 2, 70, clamp={1: 1.0})
    compiled = []
    count = lambda name, seconds, **about: compiled.append(name) if name.endswith("backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(count)
    request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(count))
    for options in (
        dict(top_k=3),
        dict(top_p=0.2, temperature=0.3),
        dict(length=300, seed=8),
        dict(seed=9, stop=True),
        dict(clamp={3: [(0, 1.0), (20, None), (30, 2.0)], 4: 2.0}, clamp_prime=True),
        dict(prime="A prime that is longer than a chunk is"),
    ):
        lm.generate(**dict(prime="I ", num=2, length=70) | options)
    assert compiled == []
    jax.jit(lambda x: x + 1)(1.0)
    assert compiled  # it would have been heard


# Units held


@settings(deadline=None, max_examples=6)
@given(value=st.floats(-3, 3, width=32), cut=st.integers(1, 100), of=st.sampled_from(["cell", "hidden"]))
def test_a_schedule_of_one_value_is_a_constant_clamp(lm, value, cut, of):
    hold = lambda clamp: written(lm, "I ", 2, 90, clamp=clamp, clamp_feature=of)
    constant = hold({3: value})
    assert hold({3: [(0, value)]}) == hold({3: [(0, value), (cut, value)]}) == constant
    assert hold({3: [(0, None)]}) == hold({3: [(5, None)]}) == hold({}) == written(lm, "I ", 2, 90)
    assert hold({3: [(0, value), (cut, -2.0)]})[0][: cut + 1] == constant[0][: cut + 1]  # held after the byte


def held(lm, unit, value):
    """One unit held at a value, or at none, as `cell.step` takes it."""
    units = jnp.arange(lm.hidden) == unit
    return cell.Held(units & (value is not None), jnp.where(units, value or 0.0, 0.0))


def by_hand(lm, start, length, values, of="cell", prime_clamp=None):
    """Argmax continuation with unit 3 held at `values[byte]` (None: free), one step a byte, and every state."""
    state = cell.zero_state(lm.weights, 1)
    for byte in start:
        state = cell.step(lm.weights, state, jnp.array([byte]), prime_clamp, of)
    data, states = [], []
    for value in values[:length]:
        data.append(int(parameters.read_out(lm.weights, state[1]).argmax()))
        state = cell.step(lm.weights, state, jnp.array(data[-1:]), held(lm, 3, value), of)
        states.append(state)
    return bytes(data), states


starts = st.lists(st.integers(0, 60), min_size=1, max_size=3, unique=True).map(sorted)
schedules = st.dictionaries(st.integers(0, 15), starts, min_size=1, max_size=3)


@settings(deadline=None, max_examples=10)
@given(starts=schedules, values=st.lists(st.none() | st.floats(-2, 2, width=32), min_size=9, max_size=9))
def test_a_schedule_is_what_reading_byte_by_byte_under_its_values_gives(lm, starts, values):
    values = iter(values)
    schedule = {unit: [(byte, next(values)) for byte in bytes_] for unit, bytes_ in starts.items()}
    logits, state = lm.read(b"\n I ")
    expected = b""
    for byte in range(70):
        expected += bytes([int(logits[-1].argmax())])
        newest = {unit: [value for start, value in parts if start <= byte][-1:] for unit, parts in schedule.items()}
        held = {unit: value[0] for unit, value in newest.items() if value and value[0] is not None}
        logits, state = lm.read(expected[-1:], state, held)
    assert written(lm, "I ", 1, 70, temperature=0, clamp=schedule) == [expected]


@pytest.mark.parametrize("of", ["cell", "hidden"])
def test_a_schedule_holds_each_value_from_its_byte_on(lm, of):
    values = [None] * 5 + [2.0] * 60 + [-2.0] * 15 + [None] * 10
    schedule = {3: [(5, 2.0), (65, -2.0), (80, None)], 7: [(80, None)]}
    expected, states = by_hand(lm, b"\n I ", 90, values, of)
    assert written(lm, "I ", 2, 90, temperature=0, clamp=schedule, clamp_feature=of) == [expected] * 2
    found = np.array([state[of == "hidden"][0, 3] for state in states])
    assert (found[5:65] == 2).all() and (found[65:80] == -2).all() and not np.isin(found[80:], (2, -2)).any()


def test_the_hidden_state_is_held_and_the_cell_is_not(lm):
    clamp = held(lm, 3, 0.5)
    data = jnp.array([list(b"A good film")], jnp.uint8)
    zero = cell.zero_state(lm.weights, 1)
    _, (c, h) = cell.scan(lm.weights, data, zero, None, clamp, lambda state: state, "hidden")
    assert (h[..., 3] == 0.5).all() and not (c[..., 3] == 0.5).any() and not (h[..., 4] == 0.5).any()
    texts = {
        of: lm.generate("I ", 1, 90, temperature=0, clamp={3: 0.9}, clamp_feature=of)[0] for of in ("cell", "hidden")
    }
    assert len(set(texts.values())) == 2


def test_a_prime_read_clamped_is_what_reading_it_clamped_gives(lm):
    prime = "A good film, I thought. " * 4
    clamp = {3: 1.5, 5: -1.0}
    logits, state = lm.read(("\n " + prime).encode(), clamp=clamp)
    expected = b""
    for _ in range(70):
        expected += bytes([int(logits[-1].argmax())])
        logits, state = lm.read(expected[-1:], state, clamp)
    assert written(lm, prime, 1, 70, temperature=0, clamp=clamp, clamp_prime=True) == [expected]
    assert written(lm, prime, 1, 70, temperature=0, clamp=clamp) != [expected]


def test_a_prime_is_read_under_the_values_of_byte_0(lm):
    clamp = held(lm, 3, 0.8)
    expected, _ = by_hand(lm, b"\n I ", 70, [0.8] * 30 + [-0.8] * 40, "hidden", clamp)
    options = dict(clamp={3: [(0, 0.8), (30, -0.8)]}, clamp_feature="hidden", clamp_prime=True)
    assert written(lm, "I ", 1, 70, temperature=0, **options) == [expected]


@pytest.mark.parametrize(
    "parts",
    [[], [(5, 1.0), (5, 2.0)], [(9, 1.0), (3, 2.0)], [(-1, 1.0)], [(2**31, 1.0)], [(True, 1.0)]],
)
def test_bytes_of_a_schedule_that_do_not_increase_are_one_clear_line(lm, parts):
    with pytest.raises(UserError, match="unit 3 need bytes that increase, from 0 on"):
        lm.generate("I ", clamp={3: parts})


def test_a_unit_that_is_only_freed_must_exist(lm):
    with pytest.raises(UserError, match="unit 16 does not exist"):
        lm.generate("I ", clamp={16: [(0, None)]})


@pytest.mark.parametrize("options", [dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1), dict(top_p=float("nan"))])
def test_limits_that_cannot_be_are_one_clear_line(lm, options):
    with pytest.raises(UserError, match="top_k must be|top_p must lie"):
        lm.generate("I ", **options)


# Where a sample ends, and what is heard of it


def test_stop_ends_every_text_before_the_first_newline(lm):
    whole = written(lm, "I\n", 20, 200, seed=1)
    ended = written(lm, "I\n", 20, 200, seed=1, stop=True)
    assert [text.partition(b"\n")[0] for text in whole] == ended
    assert {b"\n" in text for text in whole} == {True, False}
    assert lm.generate("I\n", 1, 200, seed=1, stop=True)[0].startswith("I\n")  # the prime's own newline ends nothing


def test_nothing_is_computed_once_all_texts_have_ended(monkeypatch):
    params = zeros()
    params["out_b"] = params["out_b"].at[10].set(1000.0)
    calls, write = [], generate.write
    monkeypatch.setattr(generate, "write", lambda *args: calls.append(args) or write(*args))
    assert LanguageModel(params, Path("nowhere")).generate("I ", 3, 10**6, stop=True) == ["I "] * 3
    assert len(calls) == 1


def test_what_is_heard_is_what_is_written(lm):
    heard = {}
    texts = lm.generate("é ", 18, 150, temperature=2.0, on_bytes=lambda i, piece: heard.setdefault(i, []).append(piece))
    assert sorted(heard) == list(range(18)) and len(heard[0]) == 10
    for i, text in enumerate(texts):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert (
            decoder.decode("é ".encode()) + "".join(map(decoder.decode, heard[i])) + decoder.decode(b"", True) == text
        )


def test_a_text_with_all_options_is_the_same_alone_and_in_a_batch(lm, monkeypatch):
    monkeypatch.setattr(generate, "GROUP", 8)
    options = dict(length=130, temperature=0.9, seed=3, top_k=40, top_p=0.95, clamp_feature="hidden", clamp_prime=True)
    options |= dict(stop=True, clamp={3: [(0, 0.5), (70, None)], 4: -0.3})
    batch = lm.generate("The ", num=14, **options)
    assert lm.generate("The ", num=1, **options) == batch[:1] and lm.generate("The ", num=3, **options) == batch[:3]
    assert all(text != later for text, later in zip(batch, batch[generate.GROUP :], strict=False))  # keys go on


# The script


@pytest.fixture(scope="module")
def saved(lm, tmp_path_factory):
    """The tiny model on disk."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    lm.save(folder)
    return folder


@settings(deadline=None, max_examples=100)
@given(
    unit=st.integers(0, 10**6),
    parts=st.lists(st.tuples(st.integers(0, 10**6), st.none() | st.floats(allow_nan=False)), min_size=1),
)
def test_a_clamp_is_read_as_it_is_written(unit, parts):
    text = ",".join(f"{'free' if value is None else value}@{byte}" for byte, value in parts)
    assert sample.parse_clamp(f"{unit}={text}") == (unit, parts)


def test_a_clamp_without_bytes_holds_from_the_first():
    assert sample.parse_clamp("12=1.0") == (12, [(0, 1.0)])
    assert sample.parse_clamp("12=1,free@9") == (12, [(0, 1.0), (9, None)])


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="0123=@,.-free x"))
def test_any_other_clamp_is_one_clear_line(text):
    try:
        unit, parts = sample.parse_clamp(text)
    except UserError as error:
        assert "--clamp takes UNIT=VALUE" in str(error) and "\n" not in str(error)
    else:
        assert "=" in text and len(parts) == text.count(",") + 1 and isinstance(unit, int)


def sampled(weights, **options):
    """What `mlstm sample` does, with the options of sampling among the others."""
    drawn = {field.name: options.pop(field.name) for field in fields(SamplingOptions) if field.name in options}
    sample.main(weights, options=SamplingOptions(**drawn), **options)


def test_json_is_one_object_a_sample_and_all_that_stdout_holds(lm, saved, capsys):
    sampled(saved, prime="I ", num=3, length=70, clamp=("3=1.0,free@20", "5=-1"), top_k=9, seed=4, json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    expected = lm.generate("I ", 3, 70, {3: [(0, 1.0), (20, None)], 5: -1.0}, seed=4, top_k=9)
    assert [line["text"] for line in lines] == expected
    said = {
        "prime": "I ",
        "seed": 4,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 1.0,
        "clamp_feature": "cell",
        "stop": False,
    }
    said |= {"clamp": {"3": [[0, 1.0], [20, None]], "5": [[0, -1.0]]}, "length": 70}
    assert all(line | said == line for line in lines)


@pytest.mark.parametrize("length", [0, 1, 64, 150])
def test_a_streamed_sample_is_the_sample(saved, capsys, length):
    options = dict(prime="é\udcff ", length=length, temperature=2.0, seed=9)
    sampled(saved, num=1, **options)
    whole = capsys.readouterr().out
    sampled(saved, stream=True, **options)
    assert capsys.readouterr().out == whole and "é\ufffd " in whole


def test_no_character_is_torn_in_a_stream(tmp_path, capsys, monkeypatch):
    # Units 0 and 1 say that the last byte was the first or the second of "€", so that the model writes it for ever.
    first, second, third = "€".encode()
    params = zeros()
    params["embed"] = params["embed"].at[first, 0].set(1.0).at[second, 1].set(1.0)
    params["wx"] = params["wx"].at[0, 48].set(1.0).at[1, 49].set(1.0)  # into u
    params |= {"gx": jnp.full(64, 5.0), "b": jnp.repeat(jnp.array([9.0, -9.0, 9.0, 0.0]), 16)}  # i, f, o are 1, 0, 1
    params["out"] = params["out"].at[0, second].set(99.0).at[1, third].set(99.0)
    LanguageModel(params | {"out_b": params["out_b"].at[first].set(9.0)}, Path("nowhere")).save(tmp_path / "model")
    printed = []
    monkeypatch.setattr("builtins.print", lambda *values, **_: printed.append("".join(map(str, values))))
    sampled(tmp_path / "model", prime="€: ", length=300, stream=True)
    pieces = [piece for piece in printed if piece]
    assert len(pieces) > 10 and "".join(pieces) == "€: " + "€" * 100


def test_a_reader_who_goes_ends_a_stream_in_silence(saved):
    command = f"{sys.executable} sample.py {saved} --stream --length 100000 | head -c 10; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, env=os.environ, capture_output=True)
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (141, 10, b"")


def test_a_terminal_hears_no_control_characters(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for stream in (True, False):
        sampled(saved, stream=stream, num=1, length=300, temperature=3.0)
        shown = capsys.readouterr().out
        assert len(shown) > 200 and not {chr(c) for c in range(32)} - {"\n", "\t"} & set(shown)


def test_sentiment_and_a_schedule_hold_their_units(lm, saved, capsys):
    measured = dict(
        unit=2, sign=-1, mean_negative=0.5, mean_positive=-0.1, deviation=0.25, threshold=0.0, a=-1.0, b=0.0
    )
    accuracies = dict(accuracy_all=0.9, accuracy_alone=0.9, units_used=1)
    about = dict(digest=lm.digest, update=None, task="my-texts", note="made for a test", feature="cell", c=1.0)
    record = unit_record.UnitRecord(**about, **measured, **accuracies, coefficients=(0.0,) * 16, intercept=0.0)
    unit_record.save(record, saved / "units")
    sampled(saved, num=1, length=90, temperature=0, sentiment=2.0, clamp=("3=1.0@20",))
    streams = capsys.readouterr()
    held = {2: 0.2 - 2 * 0.25, 3: [(20, 1.0)]}
    assert streams.out == lm.generate("", 1, 90, temperature=0, clamp=held)[0] + "\n"
    assert "holding unit 2 at -0.3" in streams.err
    sampled(saved, num=1, length=90, temperature=0, sentiment=2.0, clamp=("3=1.0@20",), task="my-texts", json=True)
    line = json.loads(capsys.readouterr().out)
    assert line["text"] + "\n" == streams.out and line["clamp"]["2"] == [[0, pytest.approx(-0.3)]]
    with pytest.raises(UserError) as error:
        sampled(saved, sentiment=2.0, clamp=("2=1.0@20",))
    assert explain(error.value) == "--sentiment holds unit 2, and so does --clamp"


@pytest.mark.parametrize(
    "args, line",
    [
        (["--clamp", "3"], "--clamp takes UNIT=VALUE"),
        (["--clamp", "3=1", "--clamp", "3=2@9"], "unit 3 is held twice"),
        (["--clamp", "3=1,2"], "unit 3 need bytes that increase"),
        (["--clamp", "16=free"], "unit 16 does not exist"),
        (["--clamp", "3=nan"], "unit 3 cannot be held at nan"),
        (["--stream", "--num", "2"], "--stream prints one sample"),
        (["--stream", "--json"], "leave one out"),
        (["--stream", "--top-p", "0"], "top_p must lie above 0"),
        (["--top-k", "-1"], "top_k must be 0"),
        (["--seed", "-1"], "seed must lie between"),
        (["--temperature", "nan"], "temperature must be 0"),
        (["--num", "0"], "num must be at least 1"),
        (["--sentiment", "1", "--clamp-feature", "hidden"], "--sentiment holds a cell state"),
        (["--sentiment", "1", "--task", "../sst"], "'../sst' names no unit record"),
        (["--sentiment", "1", "--task", "mine"], "no unit record"),
        (["--task", "mine"], "add --sentiment"),
    ],
)
def test_what_the_script_cannot_do_is_one_line_and_status_2(saved, capsys, monkeypatch, args, line):
    import tyro

    from mlstm_jax.cli.program import script

    monkeypatch.setattr(sys, "argv", ["sample.py", str(saved), *args])
    with pytest.raises(SystemExit) as exit:
        script(lambda: tyro.cli(sample.main))
    streams = capsys.readouterr()
    assert exit.value.code == 2 and streams.out == ""
    assert streams.err.startswith("error: ") and line in streams.err and streams.err.count("\n") == 1


def test_help_imports_no_jax():
    code = """import sys, tyro; from mlstm_jax.cli import sample
try: tyro.cli(sample.main, args=["--help"])
except SystemExit: print({"jax", "sklearn", "matplotlib"} & set(sys.modules))"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert shown.stdout.endswith("set()\n") and "--top-p" in shown.stdout
