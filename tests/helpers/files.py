"""What the tests of the readers share: files of all kinds, and all that is read of them."""

import bz2
import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import settings
from hypothesis import strategies as st

from mlstm_jax.corpus.readers import Keys, chunks, parse, read_texts, sources
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_bytes

unhurried = settings(deadline=None, max_examples=50)
BOM = b"\xef\xbb\xbf"
DEFAULT = Keys()
COMPRESS = {
    ".gz": lambda data: gzip.compress(data, 1),
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def put(path, data):
    """Writes a file, compressed where its name says so."""
    data = data if isinstance(data, bytes) else to_bytes(data)
    path.write_bytes(COMPRESS.get(path.suffix.lower(), bytes)(data))
    return path


def rows_of(path, keys=DEFAULT, size=16 << 20):
    """All that is read of a file, and the error after it, if there is one."""
    rows = []
    try:
        for chunk in chunks(*sources([str(path)]), 0, keys, size):
            rows += (row[:4] for row in parse(chunk))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return rows, str(error)
    return rows, None


def complaint(path, key=None):
    """What a file is refused with: one line that names it."""
    with pytest.raises(UserError) as error:
        list(read_texts(path, key))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def as_csv(rows, **dialect):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", **dialect).writerows(rows)
    return to_bytes(text.getvalue())


def as_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


packed = pytest.mark.parametrize("packing", ["", *COMPRESS])
any_text = st.text(st.characters())  # lone surrogates, too

# Lines of any kind, in files of any kind
soup = st.lists(
    st.sampled_from([b'"', b"'", b"\\", b"\n", b"\r", b",", b"\t", b"{", b"}", b":", b"text", b"a", b"\xff"])
)
record = st.fixed_dictionaries({"text": any_text, "label": st.none() | st.floats() | any_text})
json_line = record.map(lambda r: to_bytes(json.dumps(r, ensure_ascii=False))) | record.map(lambda r: to_bytes(repr(r)))
line = json_line | soup.map(b"".join) | st.binary(max_size=30) | st.sampled_from([b"", b"  ", b"\r"])
is_plain = lambda data: 0 not in data and not data.startswith((b"\xff\xfe", b"\xfe\xff"))
file = st.lists(line, max_size=12).map(lambda lines: b"\n".join(lines) + b"\n").filter(is_plain)
headed = st.tuples(st.sampled_from([b"text,label\n", b"text\n", b'"label"\ttext\n', b""]), file).map(b"".join)
