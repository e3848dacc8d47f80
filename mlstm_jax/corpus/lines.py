"""Bytes of a file or of standard input, decompressed, in whole lines, in little memory whatever is in them."""

import bz2
import gzip
import importlib
import re
import sys
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE, getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from mlstm_jax.corpus.documents import is_document, one_a_line
from mlstm_jax.disk import LFS, refuse_pointer
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_bytes, to_text

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}
LINE = 16 << 20  # bytes of the longest line that is read
TOO_LONG = f"longer than {LINE >> 20} MB; one review a line is read"
PIECE = 1 << 18  # bytes that are decompressed at a time
HEAD = 1 << 20  # bytes of whole lines that come first: among their records the keys are looked for
_Said = TypeVar("_Said")


@contextmanager
def opened(name: str) -> Iterator[BufferedIOBase]:
    """A file, or standard input for "-"; raises UserError for one that cannot be opened."""
    if name == "-":
        if not sys.stdin:
            raise UserError("standard input is closed")
        yield cast(BufferedIOBase, sys.stdin.buffer)  # as it is, though its stub tells less
        return
    try:
        file = open(name, "rb")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None
    with file:
        refuse_pointer(file.peek(len(LFS)), name)
        yield file


def blocks(file: BufferedIOBase, name: str, as_json: bool = False, encoding: str | None = None) -> Iterator[bytes]:
    """Whole lines, about 1 MB of them at a time, without a byte order mark; at least one block.

    `encoding`, UTF-16 and UTF-32 become UTF-8, and line ends \\r become \\n where the first megabyte has no other. A
    line that is longer than LINE is cut, and still longer than LINE. As JSON, every object of an array, or of several
    lines, becomes a line. Raises UserError for what is no text, and for what is damaged, after all that is before it.
    """
    document, pieces = _ahead(_newlines(_utf8(_pieces(file, name), name, encoding)), is_document)
    if as_json and document:
        pieces = one_a_line(pieces, name, LINE)
    found = cut(_limited(pieces), HEAD)
    yield next(found, b"").removeprefix(BOM_UTF8)
    yield from found


def require_known(encoding: str | None) -> None:
    """Raise UserError for a name that is none of Python's encodings of text; None is found out."""
    try:
        if encoding is not None:
            getincrementaldecoder(encoding)
            b"a".decode(encoding, "ignore")
    except (LookupError, ValueError):
        known = "windows-1252, latin-1, cp437, utf-16-le, shift_jis"
        raise UserError(f"no encoding {encoding!r}; `encoding` takes those that Python knows, as {known}") from None


def cut(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Join and cut pieces of bytes behind the first newline at which a block has `size` bytes, and at the end.

    The last block comes when the pieces have ended, and when they end in a UserError, the whole lines before that.
    """
    held, searched, damage = bytearray(), 0, None
    try:
        for piece in pieces:
            held += piece
            while 0 < (end := held.find(b"\n", max(searched, size - 1)) + 1) < len(held):
                yield bytes(memoryview(held)[:end])
                del held[:end]
                searched = 0
            searched = max(0, len(held) - 1)
    except UserError as error:
        damage = error
        del held[held.rfind(b"\n") + 1 :]
    if held:
        yield bytes(held)
    if damage:
        raise damage


def kept(line: bytes) -> str:
    """What is kept of a line that is wrong: all of it, or of one that is too long its first 1000 bytes."""
    return to_text(line if len(line) <= LINE else line[:1000])


# What a file is, by its first megabyte

MARKS = {  # the longer first: that of UTF-32 begins with that of UTF-16
    BOM_UTF32_LE: "utf-32",
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}
BINARY = {
    rb"\x1f\x8b\x08": "gzip data; name it .gz",
    rb"BZh[1-9]1AY&SY": "bzip2 data; name it .bz2",
    rb"\x28\xb5\x2f\xfd": "zstd data; name it .zst",
    rb"PAR1\x15": "a Parquet file; name it .parquet",
    rb"PK\x03\x04": "a zip archive, or a workbook; unpack it, or name it .xlsx",
    rb"\xd0\xcf\x11\xe0": "a document of an office program; save the sheet as CSV",
    rb"%PDF-": "a PDF; save its text",
}


def _ahead(pieces: Iterable[bytes], judge: Callable[[bytes], _Said]) -> tuple[_Said, Iterator[bytes]]:
    """What `judge` says of the first megabyte, which is not kept, and all pieces, which raise what they would have."""
    first, held, pieces = [], 0, iter(pieces)
    try:
        while held < HEAD and (piece := next(pieces, None)) is not None:
            first.append(piece)
            held += len(piece)
    except UserError as error:
        pieces = _raising(error)
    return judge(b"".join(first)), chain(first, pieces)


def _raising(error: UserError) -> Iterator[bytes]:
    raise error
    yield


def _utf8(pieces: Iterable[bytes], name: str, encoding: str | None) -> Iterator[bytes]:
    """Pieces as UTF-8, of `encoding` or as their first bytes say; bytes that are neither stay as they are.

    Raises UserError for what is no text.
    """
    if encoding:
        _, pieces = _ahead(pieces, partial(_refuse_binary, name=name))
        decoder = getincrementaldecoder(encoding)("surrogateescape")
    else:
        found, pieces = _ahead(pieces, partial(_encoding, name=name))
        if found is None:
            yield from pieces
            return
        decoder = getincrementaldecoder(found)("replace")
    try:
        yield from (to_bytes(decoder.decode(piece)) for piece in pieces)
        yield to_bytes(decoder.decode(b"", final=True))
    except UnicodeError as error:
        why = getattr(error, "reason", error)
        raise UserError(f"{name}: it is not {encoding} ({why}); name another `encoding`") from None


def _refuse_binary(head: bytes, name: str) -> None:
    kind = next((kind for begin, kind in BINARY.items() if re.match(begin, head)), None)
    if kind:
        raise UserError(f"{name}: no text but {kind}")


def _require_text(head: bytes, name: str) -> None:
    _refuse_binary(head, name)
    zeros = head.count(0)
    invalid = len(head) - len(head.decode("utf-8", "ignore").encode()) if zeros else 0  # a few of either are kept
    either = "a binary file, or UTF-16 or UTF-32 without a byte order mark: name it with `encoding`, as utf-16-le"
    if 10 * max(zeros, invalid) > len(head):
        raise UserError(f"{name}: no text, by the zero bytes in it: {either}")


def _encoding(head: bytes, name: str) -> str | None:
    """The encoding, where it is UTF-16 or UTF-32: by the byte order mark, or by zeros as every second byte."""
    if marked := next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None):
        return marked
    even, odd, most = head[::2].count(0), head[1::2].count(0), len(head) // 2
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros > 0.4 * most and 50 * others <= zeros:
            return encoding
    _require_text(head, name)
    return None


def _newlines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces whose lines end in newlines, where they end in carriage returns alone."""
    alone, pieces = _ahead(pieces, lambda head: b"\r" in head and b"\n" not in head)
    yield from (piece.replace(b"\r", b"\n") for piece in pieces) if alone else pieces


def _limited(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces, without what a line has far beyond LINE bytes: enough is left to tell that it is too long."""
    most, length = LINE + len(BOM_UTF8) + 1, 0  # of a line; of the line that has begun
    for piece in pieces:
        first, last = piece.find(b"\n"), piece.rfind(b"\n")
        end, room = len(piece) if first < 0 else first, most - length
        yield piece if end <= room else piece[:room] + piece[end:]  # pieces are short: later lines in it cannot be long
        length = min(length + end, most) if first < 0 else len(piece) - last - 1


def _pieces(file: BufferedIOBase, name: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed, as they come, at most 8 MB at a time."""
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".bz2":
            yield from _frames(file, 1 << 10, bz2.BZ2Decompressor, _bunzip, OSError)
        elif suffix == ".zst":
            zstandard = optional("zstandard", name)
            zstd = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as large as zstd --long makes it
            whole = lambda frame, piece: [frame.decompress(piece)]
            yield from _frames(file, 1 << 8, zstd.decompressobj, whole, zstandard.ZstdError)  # 4 bytes may mean 128 kB
        else:
            unzipped = gzip.GzipFile(fileobj=file) if suffix == ".gz" else file
            yield from iter(lambda: unzipped.read1(PIECE), b"")  # read1 gives what there is before what is damaged
        if suffix in COMPRESSIONS and file.tell() == 0:
            raise EOFError("it is empty")
    except (OSError, EOFError, zlib.error) as error:
        if suffix in COMPRESSIONS and not getattr(error, "errno", None):
            raise UserError(f"{name}: not a whole {COMPRESSIONS[suffix]} file ({error})") from None
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _frames(
    file: BufferedIOBase,
    step: int,
    new_frame: Callable[[], Any],
    decompress: Callable[[Any, bytes], Iterable[bytes]],
    refusal: type[Exception],
) -> Iterator[bytes]:
    """The frames of a file, all of them; raises EOFError for one that is damaged or cut.

    (bz2.open ignores what is damaged behind the first one; zstandard does not notice where one is cut.)
    """
    frame, ended = new_frame(), True
    while piece := file.read(step):
        while piece:
            try:
                yield from decompress(frame, piece)
            except refusal as error:
                raise EOFError(error) from None
            piece, ended = frame.unused_data, frame.eof
            if ended:
                frame = new_frame()
    if not ended:
        raise EOFError("it ends within a frame")


def _bunzip(frame: bz2.BZ2Decompressor, piece: bytes) -> Iterator[bytes]:
    yield frame.decompress(piece, PIECE)
    while not (frame.needs_input or frame.eof):
        yield frame.decompress(b"", PIECE)


def optional(module: str, name: str, extra: str = "data") -> ModuleType:
    """A module that only some files take; raises UserError with what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"{name}: reading it takes {package}; pip install 'mlstm-jax[{extra}]'") from None
