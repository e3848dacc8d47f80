"""Arrays out of untrusted files: .npy, .npz, PyTorch's .pt. Nothing that they hold is ever executed.

A pickle is a program that may call any function by its name. Here it meets none, nor Python's machine for pickles,
which takes the memory and time that they ask for: `_unpickle` knows the steps that weights need and no others. Each
admitted name becomes an inert `Bag` that keeps what it was called with, any other name is refused, and arrays are
formed from the bags afterwards, their shapes checked against the bytes that are there.
"""

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlstm_jax.errors import UserError

Lazy = dict[str, Callable[[], Any]]  # name -> what reads it

STEPS = 20_000  # steps of one pickle: a model takes about a thousand
TEXT = 1_000_000  # bytes of text in one pickle: PyTorch of 2017 keeps its modules' source there
NAME = 200  # bytes of a name or a key
HEADER = 10_000  # bytes of a .npy file's header
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
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.nn.backends.thnn._get_thnn_function_backend",
}
ADMITTED = _TENSORS | {name.replace("Tensor", "Storage") for name in _TENSORS}
ADMITTED |= _WRAPPERS | _REBUILT | _ARRAYS | _MODULES | _OTHERS


class Bag:
    """What stands in for the object that a pickle asks for: its name, what it was called with, what was put into it."""

    def __init__(self, name: str, args: tuple[Any, ...] = ()):
        self.name, self.args = name, args
        self.items: dict[Any, Any] = {}
        self.state: Any = None


class _Storage(NamedTuple):
    """A tensor's memory: its key in the file, the type and the number of its numbers."""

    key: str
    kind: str
    size: int
    view: tuple[Any, ...] | None  # (key, offset, count) of a part of it, in files of 2017


Memory = Callable[[_Storage], np.ndarray]  # reads a storage's numbers


def read_npy(file: io.BufferedIOBase, size: int) -> np.ndarray | list[np.ndarray]:
    """The array of a .npy file of `size` bytes; an array of arrays comes as a list.

    Raises UserError where header and size disagree.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"a .npy file of version {version} is not read here")
    length = int.from_bytes(file.read(2 * version[0]), "little")
    if length > HEADER:
        raise UserError(f"its header has {length:,} bytes")
    file.seek(-2 * version[0], os.SEEK_CUR)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        return _arrays(_unpickle(file, size)[0])
    there, expected = size - file.tell(), math.prod(shape) * dtype.itemsize
    if there != expected:
        raise UserError(f"its header speaks of shape {shape}, {expected:,} bytes; there are {there:,}")
    return _shaped(file.read(expected), dtype, shape, fortran)


def read_npz(path: Path) -> Lazy:
    """The arrays of an .npz file by name, each read when it is called for."""

    def read(name: str) -> np.ndarray | list[np.ndarray]:
        with _zip(path) as archive:
            data = _entry(archive, name)
        return read_npy(io.BytesIO(data), len(data))

    with _zip(path) as archive:
        return {name.removesuffix(".npy"): partial(read, name) for name in archive.namelist()}


def read_pt(path: Path) -> Lazy:
    """The tensors of a .pt file, each read when it is called for, by the dotted names of PyTorch's state_dict().

    Both of PyTorch's containers, of state dicts and of the modules of `_MODULES`. torch is not needed.
    """
    tree, memory = _pt_zip(path) if zipfile.is_zipfile(path) else _pt_stream(path)
    return {name: partial(_tensor, bag, memory) for name, bag in _named(tree)}


def is_pt(path: Path) -> bool:
    """Whether a file is one of PyTorch's, by its first bytes or, of a zip, its contents."""
    with open(path, "rb") as file:
        start = file.read(32)
    if start[:2] != b"PK":
        return start.startswith(_MAGIC)
    with _zip(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


_MAGIC = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol) for protocol in (2, 3, 4, 5))


def _pt_zip(path: Path) -> tuple[Any, Memory]:
    with _zip(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist():
            if _entry(archive, root + "byteorder") != b"little":
                raise UserError("its numbers are big-endian")
        data = _entry(archive, pickled)
    tree, _ = _unpickle(io.BytesIO(data), len(data))

    def memory(storage: _Storage) -> np.ndarray:
        with _zip(path) as archive:
            return _numbers(_entry(archive, f"{root}data/{storage.key}"), storage)

    return tree, memory


def _pt_stream(path: Path) -> tuple[Any, Memory]:
    size, places = path.stat().st_size, {}
    with open(path, "rb") as file:
        _magic, _version, (system, _), (tree, storages), (keys, _) = (_unpickle(file, size) for _ in range(5))
        if not _mapping(system).get("little_endian", True):
            raise UserError("its numbers are big-endian")
        if not isinstance(keys, list):
            raise UserError("it does not say what storages it has")
        for key in map(_text, keys):  # the memory of all tensors follows, each with its count before it
            if key not in storages:
                raise UserError(f"nothing tells the type of storage {key}")
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            end = file.tell() + count * _width(storages[key])
            if count != storages[key].size or end > size:
                raise UserError(f"storage {key} is cut off or of another size")
            file.seek(end)

    def memory(storage: _Storage) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(places[storage.key])
            whole = storages[storage.key]
            numbers = _numbers(file.read(whole.size * _width(whole)), whole)
        if storage.view is None:
            return numbers
        _, offset, count = storage.view
        if not 0 <= offset <= offset + count <= len(numbers):
            raise UserError("a view reaches beyond its storage")
        return numbers[offset : offset + count]

    return tree, memory


def _width(storage: _Storage) -> int:
    return np.dtype(storage.kind).itemsize


def _numbers(data: bytes, storage: _Storage) -> np.ndarray:
    if len(data) != storage.size * _width(storage):
        raise UserError(f"storage {storage.key} is not of the size it should be")
    return np.frombuffer(data, storage.kind)


def _named(tree: Any, prefix: str = "", depth: int = 10, seen: set[int] | None = None) -> Iterator[tuple[str, Bag]]:
    """Every tensor of nested dicts and modules under its dotted name. What is met twice is entered once."""
    seen = set() if seen is None else seen
    if isinstance(tree, Bag) and tree.name in _TENSORS | _WRAPPERS | _REBUILT:
        yield prefix, tree
    elif id(tree) not in seen and depth:
        seen.add(id(tree))
        if isinstance(tree, Bag) and tree.name in _MODULES:
            state = _mapping(tree.state)
            inside = [*_mapping(state.get("_parameters")).items(), *_mapping(state.get("_modules")).items()]
        else:
            inside = _mapping(tree).items()
        for key, value in inside:
            if isinstance(key, str):
                yield from _named(value, f"{prefix}.{key}" if prefix else key, depth - 1, seen)


def _mapping(tree: Any) -> dict[Any, Any]:
    """The contents of a dict or an OrderedDict, with names as str; anything else is empty."""
    if isinstance(tree, Bag) and tree.name == "collections.OrderedDict":
        tree = tree.items
    pairs = tree.items() if isinstance(tree, dict) else ()
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in pairs}


def _parts(bag: Bag) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
    """A tensor's storage, offset, shape and strides, whichever PyTorch wrote it."""
    for _ in range(2):
        if bag.name in _WRAPPERS:
            bag = bag.args[0] if bag.args else bag.state[0]
    storage, offset, shape, strides = (bag.state if bag.name in _TENSORS else bag.args)[:4]
    if not isinstance(storage, _Storage):
        raise UserError("a tensor has no storage")
    natural = _natural(shape) and _natural(strides) and _natural((offset,)) and len(shape) == len(strides)
    if not natural:
        raise UserError("a tensor's shape makes no sense")
    return storage, offset, shape, strides


def _tensor(bag: Bag, memory: Memory) -> np.ndarray:
    """A tensor's numbers, in place in its storage. Raises UserError where it reaches beyond it."""
    storage, offset, shape, strides = _parts(bag)
    numbers, count = memory(storage), math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if not 0 < count <= len(numbers) or last >= len(numbers):
        raise UserError("a tensor is empty or exceeds its storage")
    width = numbers.itemsize
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, [s * width for s in strides], writeable=False)


def _natural(shape: Any) -> bool:
    """Whether this is a tuple of at most two numbers that may be sizes."""
    return isinstance(shape, tuple) and len(shape) <= 2 and all(type(n) is int and 0 <= n < 2**40 for n in shape)


def _arrays(bag: Any) -> np.ndarray | list[np.ndarray]:
    """A numpy array as it was pickled; an array of arrays as a list."""
    content = bag.state[-1] if isinstance(bag, Bag) and bag.name in _ARRAYS and bag.state else None
    if isinstance(content, list):
        if len(content) > 100:
            raise UserError(f"it holds {len(content)} arrays")
        return [_array(item) for item in content]
    return _array(bag)


def _array(bag: Any) -> np.ndarray:
    if not isinstance(bag, Bag) or bag.name not in _ARRAYS:
        raise UserError("it holds something that is not an array")
    *_, shape, kind, fortran, content = bag.state
    name, order = _text(kind.args[0]), _text(kind.state[1])
    if name not in ("f2", "f4", "f8") or order not in ("<", ">"):
        raise UserError("its numbers are no floats")
    return _shaped(content, np.dtype(order + name), shape, fortran)


def _shaped(data: Any, dtype: np.dtype, shape: Any, fortran: Any) -> np.ndarray:
    if not _natural(shape):
        raise UserError("an array's shape makes no sense")
    there, expected = len(data) if isinstance(data, bytes) else 0, math.prod(shape) * dtype.itemsize
    if there != expected:
        raise UserError(f"an array of shape {shape} does not have the bytes it should")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    """A name or key, which is bytes in a pickle by Python 2."""
    if not isinstance(value, str | bytes | int) or len(str(value)) > NAME:
        raise UserError("a name in it makes no sense")
    return value.decode() if isinstance(value, bytes) else str(value)


class _Guarded(io.BufferedReader):
    """A file that refuses to be read in one piece larger than `longest`."""

    longest: float = DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.longest:
            raise UserError("its list of contents is too long")
        return super().read(size)


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip opened with care: no long list of contents, no name that climbs out, no more in it than twice its size."""
    with _Guarded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.longest = math.inf
        for entry in archive.infolist():
            climbs = entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/")
            if climbs:
                raise UserError(f"its entry {entry.filename!r} climbs out of the folder")
            plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not entry.flag_bits & 1
            if not plain:
                raise UserError(
                    f"its entry {entry.filename!r} is compressed or encrypted in a way that is not read here"
                )
        size, entries = path.stat().st_size, archive.infolist()
        packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
        if packed > size:
            raise UserError(f"it speaks of {packed:,} bytes; there are {size:,}")
        if unpacked > 2 * size:
            raise UserError(f"it would unpack to {unpacked:,} bytes, from {size:,}")
        yield archive


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry of a zip, never more than the size that it states: archive.read() would unpack all before it looks."""
    if name not in archive.NameToInfo:
        raise UserError(f"it has no entry {name}")
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


_POPPED = {b"\x85": 1, b"\x86": 2, b"\x87": 3}  # TUPLE1, TUPLE2, TUPLE3
_INTEGERS = {b"K": 1, b"M": 2, b"J": 4}  # BININT1, BININT2, BININT
_STRINGS = {b"U": 1, b"T": 4, b"C": 1, b"B": 4, b"\x8e": 8}  # of bytes; how many bytes hold their length
_TEXTS = {b"\x8c": 1, b"X": 4, b"\x8d": 8}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}


def _unpickle(file: io.BufferedIOBase, size: int) -> tuple[Any, dict[str, _Storage]]:
    """What the pickle at the file's place builds, of bags and plain values, and the storages that it refers to.

    Protocols 2 to 5, as far as weights need them. Raises UserError for any other step, for too many of them, for names
    that are not admitted. The file stands behind the pickle afterwards.
    """
    try:
        return _run(file, size)
    except (IndexError, KeyError, ValueError, struct.error) as error:  # an empty stack, a memo that was never written
        raise (
            error if isinstance(error, UserError) else UserError("it is cut off, or not a pickle of weights")
        ) from None


def _run(file: io.BufferedIOBase, size: int) -> tuple[Any, dict[str, _Storage]]:
    stack, marks, memo, storages, text = [], [], {}, {}, 0

    def number(width: int, signed: bool = False) -> int:
        data = file.read(width)
        if len(data) != width:
            raise UserError("it is cut off")
        return int.from_bytes(data, "little", signed=signed)

    def string(width: int) -> bytes:
        length = number(width)
        if length > size - file.tell():
            raise UserError("it is cut off")
        return file.read(length)

    def line() -> str:
        found = file.readline(NAME)
        if not found.endswith(b"\n"):
            raise UserError("a name in it makes no sense")
        return found[:-1].decode()

    def slice_() -> list[Any]:
        if not marks:
            raise UserError("it is not a pickle")
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    def put(target: Any, pairs: list[Any]) -> None:
        target = target.items if isinstance(target, Bag) else target
        if not isinstance(target, dict):
            raise UserError("it puts things where none can be")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str | bytes | int) and len(str(key)) <= NAME:  # other keys name no weights
                target[key] = value

    for _ in range(STEPS):
        code = file.read(1)
        if code == b".":
            return stack.pop(), storages
        elif code in (b"\x80", b"\x95"):  # PROTO, FRAME: nothing to be done
            number(1 if code == b"\x80" else 8)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _INTEGERS:
            stack.append(number(_INTEGERS[code], signed=code == b"J"))
        elif code == b"\x8a":  # LONG1
            width = number(1)
            if width > 10:
                raise UserError("it holds a number of more than 80 bits")
            stack.append(number(width, signed=True))
        elif code == b"G":  # BINFLOAT
            stack.append(struct.unpack(">d", file.read(8))[0])
        elif code in _STRINGS:
            stack.append(string(_STRINGS[code]))
        elif code in _TEXTS:
            found = string(_TEXTS[code])
            text += len(found)
            if text > TEXT:
                raise UserError("it holds more text than weights need")
            stack.append(found.decode("utf-8", "surrogatepass"))
        elif code == b"(":  # MARK
            marks.append(len(stack))
        elif code in b"])}":  # EMPTY_LIST, EMPTY_TUPLE, EMPTY_DICT
            stack.append({b"]": list, b")": tuple, b"}": dict}[code]())
        elif code in _POPPED:
            count = _POPPED[code]
            if len(stack) < count:
                raise UserError("it is not a pickle")
            stack[-count:] = [tuple(stack[-count:])]
        elif code == b"t":  # TUPLE
            stack.append(tuple(slice_()))
        elif code in (b"a", b"e"):  # APPEND, APPENDS
            found = [stack.pop()] if code == b"a" else slice_()
            if not isinstance(stack[-1], list):
                raise UserError("it puts things where none can be")
            stack[-1].extend(found)
        elif code in (b"s", b"u"):  # SETITEM, SETITEMS
            found = [stack.pop(-2), stack.pop()] if code == b"s" else slice_()
            put(stack[-1], found)
        elif code == b"\x8f":  # EMPTY_SET
            stack.append(Bag("builtins.set"))
        elif code == b"\x90":  # ADDITEMS: of no use to weights
            slice_()
        elif code in (b"c", b"\x93"):  # GLOBAL, STACK_GLOBAL
            module, name = (line(), line()) if code == b"c" else map(_text, (stack.pop(-2), stack.pop()))
            full = f"{module}.{name}"
            if full not in ADMITTED:
                raise UserError(f"it names {full}, which no weights need; nothing was executed")
            stack.append(Bag(full))
        elif code in (b"R", b"\x81"):  # REDUCE, NEWOBJ
            args, called = stack.pop(), stack.pop()
            if not isinstance(called, Bag) or not isinstance(args, tuple):
                raise UserError("it calls what cannot be called")
            stack.append(Bag(called.name, args))
        elif code == b"b":  # BUILD
            state = stack.pop()
            if not isinstance(stack[-1], Bag):
                raise UserError("it gives a state to what has none")
            stack[-1].state = state
        elif code == b"Q":  # BINPERSID
            found = _persistent(stack.pop())
            if isinstance(found, _Storage):
                storages.setdefault(found.key, found._replace(view=None))
            stack.append(found)
        elif code in (b"q", b"r"):  # BINPUT, LONG_BINPUT
            memo[number(1 if code == b"q" else 4)] = stack[-1]
        elif code == b"\x94":  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code in (b"h", b"j"):  # BINGET, LONG_BINGET
            stack.append(memo[number(1 if code == b"h" else 4)])
        elif code == b"0":  # POP
            stack.pop()
        else:
            raise UserError("it is cut off, or not a pickle of weights")
    raise UserError("its pickle has more steps than weights need")


def _persistent(pid: Any) -> Any:
    """What a persistent id of PyTorch stands for: a tensor's storage, or the class of a module."""
    if not isinstance(pid, tuple) or len(pid) < 4:
        raise UserError("it refers to something unknown")
    kind, named, *rest = pid
    if not isinstance(named, Bag) or _text(kind) not in ("storage", "module"):
        raise UserError("it refers to something unknown")
    if _text(kind) == "module":
        return named
    key, _, count, *view = rest
    number = named.name.rpartition(".")[2].removesuffix("Storage")
    known = number in _STORAGES and _natural((count,))
    if not known:
        raise UserError("a tensor's storage makes no sense")
    if view and view[0] is not None:
        if not isinstance(view[0], tuple) or not _natural(view[0][1:]):
            raise UserError("a view of a storage makes no sense")
    return _Storage(_text(key), _STORAGES[number], count, view[0] if view else None)
