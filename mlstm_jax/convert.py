"""Weights in other programs' formats, in and out; the format is told from the files."""

import pickle
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from mlstm_jax.config import UserError, require
from mlstm_jax.model import Params

Format = Literal["openai", "seed", "safetensors"]

# The reproduction's 27 arrays, in its order: gate h is our u.
SEED_ORDER = (
    "embed wmx wmh wx.u wh.u b.u wx.i wh.i b.i wx.o wh.o b.o wx.f wh.f b.f "
    "gmx gmh gx.u gh.u gx.i gh.i gx.o gh.o gx.f gh.f out out_b"
).split()
GATES = "ifou"


def read(path: Path) -> Params:
    """Float32 parameters: the paper's release (folder of 0.npy ... 14.npy), the reproduction's model.npy, safetensors.

    Raises UserError for anything else, a missing array, shapes that disagree. Nothing in the files is executed.
    """
    try:
        params = _parse(path)
        _check(path, params)
    except UserError:
        raise
    except Exception as error:  # arrays of other kinds and shapes, pickles cut anywhere: many errors, one meaning
        raise UserError(f"{path} does not hold weights that can be read: {error}") from None
    return {name: jnp.asarray(params[name], jnp.float32) for name in _shapes(1, 1)}


def _parse(path):
    if path.is_dir() and (path / "0.npy").is_file():
        return _from_openai([_read_npy(path / f"{n}.npy") for n in range(15)])
    if path.is_file() and path.suffix == ".npy":
        return _from_seed(_read_npy(path))
    if (path / "model.safetensors").is_file() or path.suffix == ".safetensors":
        return safetensors.load_file(path / "model.safetensors" if path.is_dir() else path)
    known = "a run folder, a folder of 0.npy ... 14.npy, a model.npy, a .safetensors file"
    raise UserError(f"{path} {'holds no weights known here' if path.exists() else 'does not exist'}; known are {known}")


def write(params: Params, path: Path, format: Format) -> None:
    """Write a folder in the given format; files that are there already are not overwritten (UserError)."""
    require(not path.is_file(), f"{path} is a file; name a new folder")
    require(format in get_args(Format), f"no format {format!r}; there are: {', '.join(get_args(Format))}")
    arrays = {name: np.asarray(array) for name, array in params.items()}
    files: dict[str, Any] = {
        "openai": lambda: {f"{n}.npy": a for n, a in enumerate(_to_openai(arrays))},
        "seed": lambda: {"model.npy": _to_seed(arrays)},
        "safetensors": lambda: {"model.safetensors": arrays},
    }[format]()
    there = [str(path / name) for name in files if (path / name).exists()]
    require(not there, f"{there[0] if there else ''} exists already; name a new folder")
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if format == "safetensors":
            safetensors.save_file(content, path / name)
        else:
            with open(path / name, "wb") as file:
                _write_npy(file, content)


def _from_openai(a):
    embed, wx, *wh, wmx, wmh, b, gx, gh, gmx, gmh, out, out_b = a
    gates = np.concatenate(wh, axis=1)
    names = "embed wx wh wmx wmh b gx gh gmx gmh out out_b".split()
    return dict(zip(names, (embed, wx, gates, wmx, wmh, b, gx, gh, gmx, gmh, out, out_b), strict=True))


def _to_openai(p):
    gates = np.split(p["wh"], 4, axis=1)
    return [p["embed"], p["wx"], *gates, *(p[n] for n in "wmx wmh b gx gh gmx gmh out out_b".split())]


def _from_seed(arrays):
    require(
        len(arrays) == len(SEED_ORDER), f"{len(arrays)} arrays where the reproduction's model.npy has {len(SEED_ORDER)}"
    )
    named = dict(zip(SEED_ORDER, arrays, strict=True))
    params = {}
    for name in _shapes(1, 1):
        array = named[name] if name in named else np.concatenate([named[f"{name}.{gate}"] for gate in GATES], axis=-1)
        params[name] = array if name in ("embed", "out") or name.startswith("w") else array.reshape(-1)
    return params


def _to_seed(p):
    parts = {
        f"{name}.{gate}": part
        for name in ("wx", "wh", "b", "gx", "gh")
        for gate, part in zip(GATES, np.split(p[name], 4, -1), strict=True)
    }
    arrays = np.empty(len(SEED_ORDER), object)
    for n, name in enumerate(SEED_ORDER):
        array = np.ascontiguousarray({**p, **parts}[name])
        arrays[n] = array.reshape(1, -1) if name.startswith("b.") else array
    return arrays


def _shapes(e, h):
    """Every parameter's shape, by embedding width and hidden units."""
    return dict(
        embed=(256, e), wx=(e, 4 * h), wh=(h, 4 * h), wmx=(e, h), wmh=(h, h), b=(4 * h,),
        gx=(4 * h,), gh=(4 * h,), gmx=(h,), gmh=(h,), out=(h, 256), out_b=(256,),
    )  # fmt: skip


def _check(path, params):
    require("embed" in params and "wmh" in params, f"{path}: no embed and wmh among its arrays")
    expected = _shapes(params["embed"].shape[-1], params["wmh"].shape[-1])
    for name, shape in expected.items():
        require(name in params, f"{path}: {name} is missing")
        require(params[name].dtype.kind == "f", f"{path}: {name} holds {params[name].dtype}, not numbers with a point")
        require(params[name].shape == shape, f"{path}: {name} has shape {params[name].shape}, {shape} was expected")
        require(bool(np.isfinite(params[name]).all()), f"{path}: {name} holds numbers that are not finite")


class _ArraysOnly(pickle.Unpickler):
    """Admits nothing but the reconstruction of numpy arrays: a pickle can run code."""

    ADMITTED = {
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "ndarray": ("numpy",),
        "dtype": ("numpy",),
        "encode": ("_codecs",),
    }

    def find_class(self, module, name):
        if module not in self.ADMITTED.get(name, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")
        return super().find_class(module, name)


def _read_npy(path):
    require(path.is_file(), f"{path} is missing")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            if header(file)[2].hasobject:
                return _ArraysOnly(file, encoding="latin1").load()
        return np.load(path, allow_pickle=False)
    except (ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _write_npy(file, array):
    if array.dtype == object:  # protocol 2 and numpy's old module name, so that the reproduction's Python 2 reads it
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(pickle.dumps(array, 2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))
    else:
        np.save(file, array)
