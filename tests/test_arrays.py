"""Files that one need not trust: whatever they hold, one clear line, nothing executed, little memory taken."""

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlstm_jax
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model import parameters
from mlstm_jax.weights import arrays, formats

# A small assembler of pickles: what an attacker, or PyTorch of 2017, would write.


def plain(value):
    return pickle.dumps(value, 2)[2:-1]


def name(full):
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(full, *args):
    return name(full) + b"(" + b"".join(args) + b"tR"


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def dict_of(**items):
    return b"}(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"


def module(full, parameters=None, modules=None):
    state = dict_of(_parameters=dict_of(**parameters or {}), _modules=dict_of(**modules or {}))
    return name(full) + b")\x81" + state + b"b"


def finished(pickled):
    return b"\x80\x02" + pickled + b"."


def storage(key, count, kind="torch.FloatStorage", view=None):
    return tuple_of(plain("storage"), name(kind), plain(key), plain("cpu"), plain(count), plain(view)) + b"Q"


def stream(tree, storages, keys=None):
    """PyTorch's container of 2017: five pickles, then every storage with its count before it."""
    parts = [arrays._MAGIC[0], finished(plain(1001)), finished(plain({"little_endian": True})), finished(tree)]
    parts.append(finished(plain(sorted(storages) if keys is None else keys)))
    for _, numbers in sorted(storages.items()):
        parts += [struct.pack("<q", numbers.size), numbers.tobytes()]
    return b"".join(parts)


def zipped(tree, storages, prefix="archive/"):
    """Today's container."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(prefix + "data.pkl", finished(tree))
        for key, numbers in storages.items():
            archive.writestr(f"{prefix}data/{key}", numbers.tobytes())
    return file.getvalue()


def object_npy(pickled):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr="|O", fortran_order=False, shape=(27,)))
    return file.getvalue() + pickled


def npy(shape, descr="<f4", data=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr=descr, fortran_order=False, shape=shape))
    return file.getvalue() + data


E, H = 4, 6
SHAPES = {
    "embed": (256, E), "wx": (4 * H, E), "wh": (4 * H, H), "b": (4 * H,), "wmx": (H, E), "wmh": (H, H),
    "out": (256, H), "out_b": (256,),
}  # fmt: skip


def port(parameter):
    """A checkpoint of guillitte's port; `parameter(number, shape)` is how it pickles each of its tensors."""
    p = {key: parameter(number, shape) for number, (key, shape) in enumerate(SHAPES.items())}
    linear = lambda **parameters: module("torch.nn.modules.linear.Linear", parameters)
    layer = dict(wx=linear(weight=p["wx"]), wh=linear(weight=p["wh"], bias=p["b"]))
    layer |= dict(wmx=linear(weight=p["wmx"]), wmh=linear(weight=p["wmh"]))
    stacked = dict(h2o=linear(weight=p["out"], bias=p["out_b"]), layer_0=module("models.mLSTM", modules=layer))
    return dict_of(
        rnn=module("models.StackedLSTM", modules=stacked),
        embed=module("torch.nn.modules.sparse.Embedding", dict(weight=p["embed"])),
        opt=name("argparse.Namespace") + b")\x81" + dict_of(cuda=plain(True)) + b"b",
        epoch=plain(3),
    )


def numbers():
    rng = np.random.default_rng(0)
    return {str(n): rng.normal(size=np.prod(shape)).astype("<f4") for n, shape in enumerate(SHAPES.values())}


def today(number, shape):
    strides = (shape[1], 1) if len(shape) == 2 else (1,)
    rest = [plain(0), plain(shape), plain(strides), plain(False), call("collections.OrderedDict")]
    tensor = call("torch._utils._rebuild_tensor_v2", storage(str(number), int(np.prod(shape))), *rest)
    return call("torch._utils._rebuild_parameter", tensor, plain(True), call("collections.OrderedDict"))


def of_2017(number, shape):
    """A parameter on a GPU, with its tensor's state in the tensor; its storage a view of a part of another."""
    strides = (shape[1], 1) if len(shape) == 2 else (1,)
    count = int(np.prod(shape))
    whole = storage(str(number), count + 5, "torch.cuda.FloatStorage", view=("v", 5, count))
    state = tuple_of(whole, plain(0), plain(shape), plain(strides))
    tensor = name("torch.cuda.FloatTensor") + b")\x81" + state + b"b"
    hooks = plain(None)
    return call("torch.nn.parameter.Parameter", tensor) + tuple_of(plain(True), plain(False), hooks) + b"b"


@pytest.mark.parametrize("make", [zipped, stream])
def test_modules_are_read_without_pytorch(tmp_path, make):
    (tmp_path / "m.pt").write_bytes(make(port(today), numbers()))
    params = mlstm_jax.load(tmp_path / "m.pt").params
    expected = dict(zip(SHAPES, numbers().values(), strict=True))
    np.testing.assert_array_equal(params["embed"], expected["embed"].reshape(256, E))
    np.testing.assert_array_equal(params["wh"], expected["wh"].reshape(4 * H, H).T)
    np.testing.assert_array_equal(params["out_b"], expected["out_b"])
    np.testing.assert_allclose(params["gh"], np.linalg.norm(expected["wh"].reshape(4 * H, H), axis=1), rtol=1e-6)


def test_modules_as_pytorch_wrote_them_in_2017_hold_the_same_numbers(tmp_path):
    (tmp_path / "new.pt").write_bytes(stream(port(today), numbers()))
    with_rest = {key: np.concatenate([np.full(5, 9, "<f4"), array]) for key, array in numbers().items()}
    (tmp_path / "old.pt").write_bytes(stream(port(of_2017), with_rest))
    assert mlstm_jax.load(tmp_path / "old.pt").digest == mlstm_jax.load(tmp_path / "new.pt").digest


# Files made to harm. Each: what the line must say, and the bytes.

RUNS = call("os.system", plain("touch executed"))
IMPORTS = name("os.path")
CLASS = name("subprocess.Popen") + plain(("touch", "executed")) + b"\x85\x81"
DEEP = plain("x") + b"\x85" * 50_000
BOMB = b"X" + struct.pack("<I", 2_000_000) + b"a" * 1_999_990 + "☃".encode() + b"a" * 7


def bomb_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mlstm.0.wh.npy", npy((50_000_000,), data=bytes(200_000_000)))
    return file.getvalue()


def lying_zip(at, value):
    """An entry that unpacks to more than the list of contents says, or is said to be longer than the file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", npy((50_000_000,), data=bytes(200_000_000)))
        archive.writestr("mlstm.0.wh.npy", npy((1, 4), data=bytes(16)))
    data = bytearray(file.getvalue())
    entry = data.index(b"PK\1\2")
    data[entry + at : entry + at + 4] = struct.pack("<I", value)
    return bytes(data)


def encrypted_zip():
    data = bytearray(zipped(port(today), numbers()))
    at = -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        data[at + 8] |= 1
    return bytes(data)


def lzma_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("mlstm.0.wh.npy", npy((50_000_000,), data=bytes(200_000_000)))
    return file.getvalue()


def overlapping_zip():
    """One entry's bytes listed a thousand times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mlstm.0.wh.npy", npy((25_000,), data=bytes(100_000)))
        archive.filelist *= 1000
    return file.getvalue()


def climbing_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", finished(plain({})))
        archive.writestr("../../climbed", b"x")
    return file.getvalue()


def many_entries():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(30_000):
            archive.writestr(f"{number}", b"")
    return file.getvalue()


def other_shape(number, shape):
    return today(number, tuple(n + 1 for n in shape))


def negative(number, shape):
    tensor = call("torch._utils._rebuild_tensor_v2", storage(str(number), 8), *map(plain, (-4, (2, 2), (2, 1), 0, 0)))
    return call("torch._utils._rebuild_parameter", tensor)


def huge_view(number, shape):
    args = map(plain, (0, (10**6, 10**6), (0, 0), 0, 0))
    return call("torch._utils._rebuild_tensor_v2", storage(str(number), int(np.prod(shape))), *args)


def changed_storage(number, shape):
    """A BUILD that would give the storage another size."""
    changed = storage(str(number), int(np.prod(shape))) + dict_of(count=plain(10**12)) + b"b"
    return call("torch._utils._rebuild_tensor_v2", changed, *map(plain, (0, (10**6, 10**6), (10**6, 1), 0, 0)))


def nan_numbers():
    return numbers() | {"4": np.full(SHAPES["wmx"], np.nan, "<f4")}


def shared(levels=60):
    """Tuples in tuples, each twice the one before: a few hundred bytes that stand for 2 ** levels things."""
    put, get = lambda n: b"r" + struct.pack("<I", n), lambda n: b"j" + struct.pack("<I", n)
    return b")" + put(0) + b"".join(b"0" + get(n) + get(n) + b"\x86" + put(n + 1) for n in range(levels))


def shared_lists(levels=6):
    """Arrays of a hundred arrays, each a hundred times the one below."""
    put, get = lambda n: b"q" + bytes([n]), lambda n: b"h" + bytes([n])
    begin = name("numpy.core.multiarray._reconstruct") + b")R("
    dtype = call("numpy.dtype", plain("O8")) + tuple_of(plain(3), plain("|")) + b"b"
    made = plain(0) + put(0) + b"0"
    for n in range(levels):
        made += (
            begin + plain(1) + plain((100,)) + dtype + plain(False) + b"](" + get(n) * 100 + b"etb" + put(n + 1) + b"0"
        )
    return made + get(levels)


def shared_modules(levels=40):
    put, get = lambda n: b"q" + bytes([n]), lambda n: b"h" + bytes([n])
    made = plain({}) + put(0) + b"0"
    for n in range(levels):
        made += (
            name("models.mLSTM") + b")\x81" + dict_of(_parameters=get(n), _modules=get(n)) + b"b" + put(n + 1) + b"0"
        )
    return made + get(levels)


def long_key():
    key = b"X" + struct.pack("<I", 900_000) + b"k" * 900_000 + b"q\0" + b"0"
    return key + b"}(h\0" * 200 + plain({}) + b"u" * 200


def long_numbers(count):
    """A shape of one very large number, many times."""
    return b"\x8b" + struct.pack("<I", 900_000) + b"\x7f" * 900_000 + b"q\0" + b"0(" + b"h\0" * count + b"t"


def inflating_npz():
    """A header of 4 GB that is said to be short, and compresses well."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("embedding.npy", "w", force_zip64=True) as entry:
            entry.write(b"\x93NUMPY\2\0\xf0\xff\xff\xff")
            for _ in range(200):
                entry.write(bytes(2**20))
        archive.writestr("mlstm.0.wh.npy", npy((1, 4), data=bytes(16)))
    data = bytearray(file.getvalue())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", len(data) // 2)
    return bytes(data)


def wide_headers():
    """Many empty tensors in the header of a safetensors file."""
    tensors = ",".join(f'"t{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(20_000))
    header = ("{" + tensors + "}").encode()
    return struct.pack("<Q", len(header)) + header


HARM = {
    "pt-hash": ("it has no", "m.pt", lambda: stream(b"}(" + shared() + plain(1) + b"u", {})),
    "npy-hash": ("not an array", "model.npy", lambda: object_npy(finished(b"}(" + shared() + plain(1) + b"u"))),
    "pt-id": ("refers to something unknown", "m.pt", lambda: stream(tuple_of(shared(), *[plain(1)] * 4) + b"Q", {})),
    "npy-shape": (
        "not an array|makes no sense",
        "model.npy",
        lambda: object_npy(
            finished(
                name("numpy.core.multiarray._reconstruct")
                + b")R("
                + plain(1)
                + shared()
                + call("numpy.dtype", plain("f4"))
                + tuple_of(plain(3), plain("<"))
                + b"b"
                + plain(False)
                + b"U\0tb"
            )
        ),
    ),
    "npy-arrays": ("not floats|no floats|not an array", "model.npy", lambda: object_npy(finished(shared_lists()))),
    "pt-modules": ("it has no", "m.pt", lambda: stream(shared_modules(), {})),
    "pt-key": ("it has no", "m.pt", lambda: stream(long_key(), {})),
    "pt-number": ("not a pickle of weights", "m.pt", lambda: stream(long_numbers(5000), {})),
    "pt-name": ("makes no sense", "m.pt", lambda: stream(plain("a" * 400_000) + plain("b") + b"\x93", {})),
    "pt-escape": ("names .*os.system", "m.pt", lambda: stream(b"c\x1b]0;x\x07os\nsystem\n", {})),
    "zip-inflates": ("4,294,967,280 bytes|Bad CRC", "m.npz", inflating_npz),
    "safetensors-wide": ("its header has", "m.safetensors", wide_headers),
    "npy-runs": ("os.system", "model.npy", lambda: object_npy(finished(RUNS))),
    "npy-imports": ("os.path", "model.npy", lambda: object_npy(finished(IMPORTS))),
    "npy-class": ("subprocess.Popen", "model.npy", lambda: object_npy(finished(CLASS))),
    "npy-builtin": ("builtins.eval", "model.npy", lambda: object_npy(finished(call("builtins.eval", plain("1"))))),
    "npy-getattr": ("operator.attrgetter", "model.npy", lambda: object_npy(finished(name("operator.attrgetter")))),
    "npy-1tb": ("bytes; there are", "model.npy", lambda: npy((500_000, 500_000))),
    "npy-1tb-array": (
        "does not have the bytes",
        "model.npy",
        lambda: object_npy(
            finished(
                call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), plain((10**12,)), plain("b"))
                + tuple_of(
                    *(plain(1), plain((500_000, 500_000))),
                    call("numpy.dtype", plain("f4")) + tuple_of(plain(3), plain("<")) + b"b",
                    *(plain(False), b"U\0"),
                )
                + b"b"
            )
        ),
    ),
    "npy-cut": ("cut off", "model.npy", lambda: object_npy(finished(plain({"a": [1] * 50}))[:-30])),
    "npy-strings": ("it is one array", "model.npy", lambda: npy((2,), "<U3", bytes(24))),
    "npy-deep": ("more steps", "model.npy", lambda: object_npy(finished(DEEP))),
    "npy-text": ("more text", "model.npy", lambda: object_npy(finished(BOMB))),
    "npy-memo": ("not an array", "model.npy", lambda: object_npy(b"\x80\x02]r\xff\xff\xff\x7f.")),
    "npy-long": ("cut off", "model.npy", lambda: object_npy(b"\x80\x02\x8b\xff\xff\xff\x7f.")),
    "npy-frame": ("not an array", "model.npy", lambda: object_npy(b"\x80\x04\x95" + b"\xff" * 7 + b"\x00].")),
    "npy-extension": ("not a pickle of weights", "model.npy", lambda: object_npy(b"\x80\x02\x82\x01.")),
    "pt-runs": ("os.system", "m.pt", lambda: stream(RUNS, {})),
    "pt-runs-first": ("os.system", "m.pt", lambda: arrays._MAGIC[0] + finished(RUNS)),
    "pt-zip-runs": ("posix.system", "m.pt", lambda: zipped(call("posix.system", plain("touch executed")), {})),
    "pt-module": ("torch.jit.load", "m.pt", lambda: zipped(module("torch.jit.load"), {})),
    "pt-shape": ("not of the size", "m.pt", lambda: zipped(port(other_shape), numbers())),
    "pt-negative": (
        "makes no sense",
        "m.pt",
        lambda: zipped(port(negative), {str(n): np.zeros(8, "<f4") for n in range(8)}),
    ),
    "pt-view": ("exceeds its storage", "m.pt", lambda: zipped(port(huge_view), numbers())),
    "pt-changed": ("a state to what has none", "m.pt", lambda: zipped(port(changed_storage), numbers())),
    "pt-nan": ("not finite", "m.pt", lambda: zipped(port(today), nan_numbers())),
    "pt-cut": ("cut off", "m.pt", lambda: stream(port(today), numbers())[:-8]),
    "pt-1tb": ("cut off", "m.pt", lambda: stream(port(lambda n, s: today(n, (10**6, 10**6))), numbers())),
    "pt-missing": ("it has no entry archive/data/0", "m.pt", lambda: zipped(port(today), {})),
    "pt-keys": ("storage ../../etc", "m.pt", lambda: stream(port(today), numbers(), keys=["../../etc"])),
    "zip-bomb": ("unpack to", "m.npz", bomb_zip),
    "zip-climbs": ("climbs out", "m.pt", climbing_zip),
    "zip-lies": ("Bad CRC", "m.npz", lambda: lying_zip(24, 1000)),
    "zip-long": ("it speaks of", "m.npz", lambda: lying_zip(20, 2**31)),
    "zip-lzma": ("not read here", "m.npz", lzma_zip),
    "zip-encrypted": ("encrypted", "m.pt", encrypted_zip),
    "zip-overlaps": ("it speaks of", "m.npz", overlapping_zip),
    "zip-many": ("list of contents", "m.npz", many_entries),
    "zip-cut": ("not a zip", "m.npz", lambda: zipped(port(today), numbers())[:-40]),
    "safetensors-1tb": ("its header has", "m.safetensors", lambda: struct.pack("<Q", 2**40) + b"{" + bytes(100)),
    "safetensors-offsets": (
        "invalid shape",
        "m.safetensors",
        lambda: struct.pack("<Q", 64) + b'{"wh":{"dtype":"F32","shape":[99],"data_offsets":[0,999999]}}'.ljust(64),
    ),
    "safetensors-cut": ("invalid header length", "m.safetensors", lambda: b"\x20\0\0\0\0\0\0\0{"),
}


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Imports, and what is kept from a first load, do not count as memory that a file took."""
    params = parameters.init(ModelConfig(hidden=4, embed=2), 0)
    LanguageModel(params, Path("nowhere"))


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_one_clear_line_without_effect_or_memory(harm, tmp_path, monkeypatch):
    message, file, make = HARM[harm]
    monkeypatch.chdir(tmp_path)
    data = make()
    Path(file).write_bytes(data)
    size = len(data)
    del data
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            formats.read(Path(file))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{file} cannot be read: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
    assert os.listdir(tmp_path) == [file]
    assert peak < 2 * size + 12_000_000


def test_a_path_that_climbs_out_of_the_folder_is_not_followed(golden, tmp_path):
    folder = tmp_path / "openai"
    folder.mkdir()
    for n in range(15):
        (folder / f"{n}.npy").write_bytes((golden / "openai" / "model" / f"{n}.npy").read_bytes())
    (tmp_path / "secret.npy").write_bytes((folder / "7.npy").read_bytes())
    tree = port(lambda n, s: today(f"../../secret{n}", s))
    (tmp_path / "m.pt").write_bytes(zipped(tree, numbers()))
    with pytest.raises(UserError, match="m.pt cannot be read"):
        mlstm_jax.load(tmp_path / "m.pt")


@pytest.mark.parametrize("harm", ["npy-runs", "zip-bomb"])
@pytest.mark.parametrize("program", ["eval_sst.py", "sample.py"])
def test_the_programs_end_with_status_2_and_one_line(harm, program, tmp_path, monkeypatch, run_here):
    _, file, make = HARM[harm]
    (tmp_path / file).write_bytes(make())
    monkeypatch.chdir(tmp_path)
    ended = run_here(program, file)
    assert ended.status == 2 and ended.out == ""
    assert ended.err.startswith(f"error: {file} cannot be read: ") and ended.err.count("\n") == 1
    assert os.listdir(tmp_path) == [file]


def samples(golden, folder):
    """A small file of every format that is read, as bytes by name."""
    lm = LanguageModel(parameters.init(ModelConfig(hidden=4, embed=2), 0), Path("nowhere"))
    lm.save(folder / "s", "safetensors")
    lm.save(folder / "m", "seed")
    p = {k: np.asarray(v) for k, v in lm.params.items()}
    names = dict(embed="embedding", out="dense.w", out_b="dense.b")
    np.savez(folder / "u.npz", **{names.get(k, f"mlstm.0.{k}"): v for k, v in p.items()})
    return {
        "a.safetensors": (folder / "s" / "model.safetensors").read_bytes(),
        "b.npy": (folder / "m" / "model.npy").read_bytes(),
        "c.npy": (golden / "seed" / "model.npy").read_bytes(),
        "d.npz": (folder / "u.npz").read_bytes(),
        "e.pt": zipped(port(today), numbers()),
        "f.pt": stream(port(today), numbers()),
        "g.pt": stream(port(of_2017), {k: np.concatenate([np.ones(5, "<f4"), v]) for k, v in numbers().items()}),
    }


def damaged_file_opens_or_is_one_line(path, data):
    path.write_bytes(data)
    try:
        formats.read(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    return samples(golden, tmp_path_factory.mktemp("samples"))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 6), place=st.floats(0, 1), value=st.binary(max_size=9), cut=st.booleans())
def test_a_damaged_file_opens_or_is_refused_in_one_line(files, tmp_path, which, place, value, cut):
    file, data = sorted(files.items())[which]
    at = int(place**3 * (len(data) - 1))  # more often at the start, where there are more than numbers
    damaged_file_opens_or_is_one_line(tmp_path / file, data[:at] + value + (b"" if cut else data[at + len(value) :]))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\3\4", b"\x93NUMPY\1\0", arrays._MAGIC[0]]))
def test_any_bytes_are_refused_in_one_line(tmp_path, data, start):
    for end in ("model.npy", "m.pt"):
        damaged_file_opens_or_is_one_line(tmp_path / end, start + data)


@pytest.mark.slow
def test_ten_minutes_of_damage(files, tmp_path):
    """Bytes changed, removed, doubled and moved, several at once, mostly where structure is; memory is watched."""
    seed = int(time.time())
    print(f"seed {seed}")
    draw, end, count, opened = random.Random(seed), time.time() + 600, 0, 0
    whole = {file: formats.read(path) for file, path in ((f, _write(tmp_path / f, d)) for f, d in files.items())}
    assert all(whole.values())
    tracemalloc.start()
    while time.time() < end:
        file, data = draw.choice(sorted(files.items()))
        structure = [at for at in range(len(data)) if data[at] and (at < 4000 or at > len(data) - 2000)]
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
            at = draw.choice(structure) if draw.random() < 0.8 else draw.randrange(len(data))
            kind, some = draw.randrange(6), draw.randrange(1, 12)
            if kind == 0:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            elif kind == 1:
                changed[at : at + some] = b""
            elif kind == 2:
                changed[at:at] = changed[at : at + some]
            elif kind == 3:
                changed[at : at + some] = draw.choice([b"\xff", b"\x7f", b"\0"]) * some
            elif kind == 4:
                changed[at : at + some] = draw.choice(sorted(files.values()))[at : at + some]
            else:
                del changed[at + draw.randrange(1000) :]
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        _write(tmp_path / file, bytes(changed))
        try:
            formats.read(tmp_path / file)
            opened += 1
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 2 * len(changed) + 12_000_000, (file, peak)
        count += 1
    tracemalloc.stop()
    print(f"{count:,} files, {opened:,} of them opened")
    assert count > 1000


def _write(path, data):
    path.write_bytes(data)
    return path
