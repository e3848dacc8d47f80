"""Arrays out of files that one need not trust: .npy, .npz, PyTorch's .pt. Nothing that they hold is ever executed.

A pickle is a program that may call any function by its name. Here it meets none: each admitted name becomes an inert
`Bag` that keeps what it was called with, any other name is refused, and arrays are formed from the bags afterwards,
their shapes checked against the bytes that are there. Whatever is wrong with a file is an exception of one line.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlstm_jax.config import UserError, require

Lazy = dict[str, Callable[[], Any]]  # name -> what reads it

STEPS = 20_000  # steps of one pickle: a model takes about a thousand
TEXT = 1_000_000  # characters in one pickle: PyTorch of 2017 keeps its modules' source there
DIRECTORY = 1_000_000  # bytes of a zip's list of contents

_STORAGES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "bfloat16"}
_STORAGES |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
_TENSORS = {f"torch.{cuda}{kind}Tensor" for cuda in ("", "cuda.") for kind in _STORAGES}
_WRAPPERS = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}
_REBUILT = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_ARRAYS = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_MODULES = {
    "models.StackedLSTM",
    "models.mLSTM",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.sparse.Embedding",
}
_OTHERS = {
    "__builtin__.set",
    "argparse.Namespace",
    "builtins.set",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.nn.backends.thnn._get_thnn_function_backend",
}
ADMITTED = _TENSORS | {name.replace("Tensor", "Storage") for name in _TENSORS}
ADMITTED |= _WRAPPERS | _REBUILT | _ARRAYS | _MODULES | _OTHERS


class Bag:
    """What stands in for the object that a pickle asks for: its name, what it was called with, what was put into it."""

    name: str
    state: Any = None

    def __init__(self, *args: Any):
        self.args, self.items = args, []

    def __new__(cls, *args: Any):
        """Not every pickle calls __init__."""
        bag = super().__new__(cls)
        bag.__init__(*args)
        return bag

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __setstate__(self, state: Any) -> None:
        self.state = state


@cache
def _bag(name: str) -> type[Bag]:
    return type(name, (Bag,), {"name": name})


class _Storage(NamedTuple):
    """A tensor's memory: its key in the file, how many numbers of which type."""

    key: str
    kind: str
    count: int
    view: tuple | None  # (key, offset, count) of a part of it, in files of 2017


class _Inert(pickle.Unpickler):
    """An unpickler in which every admitted name is a kind of Bag; it remembers the storages it met."""

    def __init__(self, file):
        super().__init__(file, encoding="bytes")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        full = f"{module}.{name}"
        require(full in ADMITTED, f"it names {full}, which no weights need; nothing was executed")
        return _bag(full)

    def persistent_load(self, pid):
        kind, named, *rest = pid
        require(_text(kind) in ("storage", "module"), f"it refers to a {kind!r}")
        if _text(kind) == "module":
            return named
        key, _, count, *view = rest
        number = named.name.rpartition(".")[2].removesuffix("Storage")
        require(number in _STORAGES and isinstance(count, int) and count >= 0, "a tensor's storage makes no sense")
        storage = _Storage(_text(key), _STORAGES[number], count, view[0] if view else None)
        self.storages.setdefault(storage.key, storage._replace(view=None))
        return storage


def read_npy(file: io.BufferedIOBase, size: int) -> np.ndarray | list:
    """The array of a .npy file of `size` bytes; an array of arrays comes as a list.

    Raises UserError where header and size disagree.
    """
    version = np.lib.format.read_magic(file)
    require(version in ((1, 0), (2, 0)), f"a .npy file of version {version} is not read here")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        return _array(_unpickle(file, size)[0])
    there, said = size - file.tell(), math.prod(shape) * dtype.itemsize
    require(there == said, f"its header speaks of shape {shape}, {said:,} bytes; there are {there:,}")
    return _shaped(file.read(said), dtype, shape, fortran)


def read_npz(path: Path) -> Lazy:
    """The arrays of an .npz file by name, each read when it is called for."""

    def read(entry):
        with _zip(path) as archive, archive.open(entry) as file:
            return read_npy(file, entry.file_size)

    with _zip(path) as archive:
        return {entry.filename.removesuffix(".npy"): partial(read, entry) for entry in archive.infolist()}


def read_pt(path: Path) -> Lazy:
    """The tensors of a .pt file, each read when it is called for, by the dotted names of PyTorch's state_dict().

    Both of PyTorch's containers, of state dicts and of the modules of `_MODULES`. torch is not needed.
    """
    tree, memory = _pt_zip(path) if zipfile.is_zipfile(path) else _pt_stream(path)
    return {name: partial(_tensor, bag, memory) for name, bag in _named(tree)}


def is_pt(path: Path) -> bool:
    """Whether a file is one of PyTorch's, by its first bytes or, of a zip, its contents."""
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    if start[:2] != b"PK":
        return start == _MAGIC
    with _zip(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def _pt_zip(path):
    with _zip(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist():
            require(_entry(archive, root + "byteorder") == b"little", "its numbers are big-endian")
        data = _entry(archive, pickled)
    tree, _ = _unpickle(io.BytesIO(data), len(data))

    def memory(storage: _Storage) -> np.ndarray:
        with _zip(path) as archive:
            return _numbers(_entry(archive, f"{root}data/{storage.key}"), storage)

    return tree, memory


def _pt_stream(path):
    size, places = path.stat().st_size, {}
    with open(path, "rb") as file:
        _magic, _version, (system, _), (tree, storages), (keys, _) = (_unpickle(file, size) for _ in range(5))
        require(_mapping(system).get("little_endian", True), "its numbers are big-endian")
        for key in map(_text, keys):  # the memory of all tensors follows, each with its count before it
            require(key in storages, f"nothing tells the type of storage {key}")
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            end = file.tell() + count * _width(storages[key])
            require(count == storages[key].count and end <= size, f"storage {key} is cut off or of another size")
            file.seek(end)

    def memory(storage: _Storage) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(places[storage.key])
            whole = storages[storage.key]
            numbers = _numbers(file.read(whole.count * _width(whole)), whole)
        if storage.view is None:
            return numbers
        _, offset, count = storage.view
        require(0 <= offset <= offset + count <= len(numbers), "a view reaches beyond its storage")
        return numbers[offset : offset + count]

    return tree, memory


def _width(storage):
    return 2 if storage.kind == "bfloat16" else np.dtype(storage.kind).itemsize


def _numbers(data, storage):
    require(len(data) == storage.count * _width(storage), f"storage {storage.key} is not of the size it should be")
    if storage.kind == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, storage.kind)


def _named(tree: Any, prefix: str = "", seen: set | None = None) -> Iterator[tuple[str, Bag]]:
    """Every tensor of nested dicts and modules under its dotted name. What is met twice is entered once."""
    seen = set() if seen is None else seen
    if isinstance(tree, Bag) and tree.name in _TENSORS | _WRAPPERS | _REBUILT:
        yield prefix, tree
    elif id(tree) not in seen:
        seen.add(id(tree))
        for key, value in _mapping(tree).items():
            if isinstance(key, str):
                yield from _named(value, f"{prefix}.{key}" if prefix else key, seen)


def _mapping(tree: Any) -> dict[Any, Any]:
    """The contents of a dict, an OrderedDict or a module, with names as str; anything else is empty."""
    if isinstance(tree, Bag) and tree.name in _MODULES:
        state = _mapping(tree.state)
        return _mapping(state.get("_parameters")) | _mapping(state.get("_modules"))
    if isinstance(tree, Bag) and tree.name == "collections.OrderedDict":
        pairs = [*(tree.args[0] if tree.args else ()), *tree.items]
    else:
        pairs = tree.items() if isinstance(tree, dict) else ()
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in pairs}


def _parts(bag: Bag) -> tuple[_Storage, int, tuple, tuple]:
    """A tensor's storage, offset, shape and strides, whichever PyTorch wrote it."""
    for _ in range(2):
        if bag.name in _WRAPPERS:
            bag = bag.args[0] if bag.args else bag.state[0]
    storage, offset, shape, strides = (bag.state if bag.name in _TENSORS else bag.args)[:4]
    require(isinstance(storage, _Storage), "a tensor has no storage")
    return storage, offset, tuple(shape), tuple(strides)


def _tensor(bag: Bag, memory: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """A tensor's numbers, in place in its storage. Raises UserError where it reaches beyond it."""
    storage, offset, shape, strides = _parts(bag)
    natural = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)) and len(shape) == len(strides) <= 2
    count, last = math.prod(shape), offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    numbers = memory(storage)
    require(natural and 0 < count <= len(numbers) and last < len(numbers), "a tensor is empty or exceeds its storage")
    width = numbers.itemsize
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, [s * width for s in strides], writeable=False)


def _array(bag: Any) -> np.ndarray | list:
    """A numpy array as it was pickled; an array of objects as a list, its arrays formed likewise."""
    require(isinstance(bag, Bag) and bag.name in _ARRAYS, "it holds something that is not an array")
    *_, shape, kind, fortran, content = bag.state
    name, order = _text(kind.args[0]), _text(kind.state[1])
    if name == "O8":
        return [_array(item) for item in content]
    require(name in ("f2", "f4", "f8") and order in ("<", ">"), f"its numbers are of type {order}{name}, not floats")
    return _shaped(content, np.dtype(order + name), shape, fortran)


def _shaped(data: Any, dtype, shape, fortran) -> np.ndarray:
    natural = all(isinstance(n, int) and n >= 0 for n in shape)
    require(
        isinstance(data, bytes) and natural and len(data) == math.prod(shape) * dtype.itemsize,
        f"an array of shape {shape} does not have the bytes it should",
    )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    """Names are bytes in a pickle by Python 2."""
    return value.decode() if isinstance(value, bytes) else str(value)


class _Guarded(io.BufferedReader):
    """A file that may be told not to be read in one large piece."""

    longest: float = DIRECTORY

    def read(self, size=-1):
        require(size <= self.longest, "its list of contents is too long")
        return super().read(size)


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip opened with care: no long list of contents, no name that climbs out, no more in it than twice its size."""
    with _Guarded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.longest = math.inf
        for entry in archive.infolist():
            climbs = entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/")
            require(not climbs, f"its entry {entry.filename!r} climbs out of the folder")
            plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not entry.flag_bits & 1
            require(plain, f"its entry {entry.filename!r} is compressed or encrypted in a way that is not read here")
        size, entries = path.stat().st_size, archive.infolist()
        packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
        require(packed <= size, f"it speaks of {packed:,} bytes; there are {size:,}")
        require(unpacked <= 2 * size, f"it would unpack to {unpacked:,} bytes, from {size:,}")
        yield archive


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry of a zip, never more than it is said to be: archive.read() would unpack all before it looks."""
    require(name in archive.NameToInfo, f"it has no entry {name}")
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


def _unpickle(file: io.BufferedIOBase, size: int) -> tuple[Any, dict[str, _Storage]]:
    """Run the pickle at the file's place, with bags for all it names; the file stands behind it afterwards.

    Returns what it builds, and the storages that it refers to.
    """
    start = file.tell()
    _survey(file, size)
    end = file.tell()
    file.seek(start)
    machine = _Inert(file)
    tree = machine.load()
    file.seek(end)
    return tree, machine.storages


_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _survey(file: io.BufferedIOBase, size: int) -> None:
    """Pass over a pickle without running it. Raises UserError where running it could take much memory.

    Python's own machine makes room for a memo of any index that the pickle names and for a text of any length.
    """
    text = 0
    for _ in range(STEPS):
        opcode = _OPCODES.get(file.read(1))
        require(opcode, "it is cut off, or not a pickle")
        if opcode.name == "STOP":
            return
        argument, length = b"", opcode.arg.n if opcode.arg else 0
        if length == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
                argument = file.readline(1000)
                require(argument.endswith(b"\n"), "it is cut off, or not a pickle")
        elif length in _COUNTED:
            length = int.from_bytes(file.read(_COUNTED[length]), "little")
            require(length <= size - file.tell(), "it is cut off")
            text += 0 if "BYTES" in opcode.name or opcode.name.endswith("BINSTRING") else length
            require(text <= TEXT, "it holds more text than weights need")
            file.seek(length, os.SEEK_CUR)
        else:
            argument = file.read(length)
        if opcode.name == "FRAME":
            require(int.from_bytes(argument, "little") <= size - file.tell(), "it is cut off")
        if "PUT" in opcode.name:
            index = int(argument) if opcode.name == "PUT" else int.from_bytes(argument, "little")
            require(0 <= index < STEPS, "it is no pickle of weights")
    raise UserError("its pickle has more steps than weights need")
