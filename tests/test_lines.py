"""Laws of the bytes under the readers: nothing is lost in decompression, and no file fills the memory."""

import gzip
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import BOM, COMPRESS, complaint, put, rows_of, unhurried
from mlstm_jax.corpus import lines
from mlstm_jax.corpus.readers import Keys, chunks, parse, read_texts, sources
from mlstm_jax.text import to_bytes

# Compression


@pytest.mark.parametrize("packing", COMPRESS)
@unhurried
@given(parts=st.lists(st.binary(max_size=100), min_size=1, max_size=4))
def test_members_and_frames_are_joined(folder, packing, parts):
    path = folder / f"m.txt{packing}"
    path.write_bytes(b"".join(map(COMPRESS[packing], parts)))
    with lines.opened(str(path)) as file:
        assert b"".join(lines._pieces(file, path.name)) == b"".join(parts)


NAMES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


@pytest.mark.parametrize("packing", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "json", "csv"])
def test_a_damaged_file_is_refused_wherever_it_is_cut_after_the_whole_lines_before(tmp_path, packing, kind):
    letters = np.random.default_rng(0).integers(97, 122, (4, 5, 600)).tolist()
    blocks = [[{"text": bytes(line).decode()} for line in block] for block in letters]
    show = json.dumps if kind == "json" else lambda record: record["text"]
    parts = ["".join(show(record) + "\n" for record in block).encode() for block in blocks]
    parts[0] = b"text\n" + parts[0] if kind == "csv" else parts[0]
    members = [COMPRESS[packing](part) for part in parts]
    whole, path = b"".join(members), tmp_path / f"a.{kind}{packing}"
    texts = [record["text"] for block in blocks for record in block]
    ends = np.cumsum([0, *map(len, members)]).tolist()
    for length in [0, 1, 2, 9, 11, len(whole) // 2, *range(len(whole) - 9, len(whole)), *(end + 5 for end in ends[:4])]:
        length += length in ends and length > 0  # where a member ends, nothing shows that others followed
        path.write_bytes(whole[:length])
        rows, error = rows_of(path)
        complete = sum(end <= length for end in ends[1:])  # members that are whole
        assert f"{path}: not a whole {NAMES[packing]} file" in error
        assert [row[1] for row in rows] == texts[: len(rows)] and len(rows) >= 5 * complete
    for damaged in (b"plain text\n", whole[:10] + bytes(60), whole[: ends[1]] + b"\xff" * 400):
        path.write_bytes(damaged)
        assert "FILE: not a whole" in complaint(path)


def test_what_fails_its_checksum_is_refused(tmp_path):
    whole = gzip.compress(b"text\n")
    (tmp_path / "a.txt.gz").write_bytes(whole[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + whole[-4:])
    assert "CRC" in complaint(tmp_path / "a.txt.gz")
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(b"text\n")
    (tmp_path / "a.txt.zst").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "not a whole zstd file" in complaint(tmp_path / "a.txt.zst")


def test_zstd_skips_what_a_frame_says_is_no_data(tmp_path):
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    (tmp_path / "a.txt.zst").write_bytes(skipped + COMPRESS[".zst"](b"one\n") + skipped + COMPRESS[".zst"](b"two"))
    assert list(read_texts(tmp_path / "a.txt.zst")) == ["one", "two"]


# Memory


def sizes_of(path):
    """Line, length of the text and what is wrong of all rows; bytes of memory that reading them takes."""
    tracemalloc.start()
    try:
        (source,) = sources([str(path)])
        rows = [(row[0], len(row[1]), row[3]) for chunk in chunks(source, 0, Keys(), 1 << 20) for row in parse(chunk)]
        return rows, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", COMPRESS)
def test_no_compressed_file_fills_the_memory(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(COMPRESS[packing]((b"a" * (1 << 20) + b"\n" + b"one\n" * 100) * 20) * 10)
    rows, peak = sizes_of(path)
    assert path.stat().st_size < 1 << 20 and peak < 50 << 20  # of 200 MB
    assert rows == [(n, 3 if n % 101 != 1 else 1 << 20, None) for n in range(1, 200 * 101 + 1)]


@pytest.mark.parametrize("packing", COMPRESS)
def test_a_piece_is_small_however_well_it_is_compressed(packing):
    file = io.BytesIO(COMPRESS[packing](bytes(100 << 20)))
    sizes = [len(piece) for piece in lines._pieces(file, f"a{packing}")]
    assert sum(sizes) == 100 << 20 and max(sizes) <= 8 << 20 < lines.LINE


@pytest.mark.parametrize("kind", ["txt", "json", "csv", "tsv"])
def test_a_line_that_would_fill_the_memory_is_wrong_and_those_around_it_are_read(tmp_path, kind):
    fine = b'{"text": "text"}\n' if kind == "json" else b"text\n"
    path = put(tmp_path / f"a.{kind}.gz", 2 * fine + b" " * (100 << 20) + b"x\n\n" + fine)
    rows, peak = sizes_of(path)
    assert rows[-3:] == [(2, 4, None), (3, 1000, lines.TOO_LONG), (5, 4, None)] and peak < 80 << 20


@pytest.mark.parametrize("kind", ["txt", "json", "csv", "tsv"])
@pytest.mark.parametrize("end", [b"\n", b"\nx\n", b""])
def test_a_line_may_be_as_long_as_is_said(tmp_path, kind, end):
    before, after = (b'{"text": "', b'"}') if kind == "json" else (b"", b"")
    for more in (0, 1):
        text = "é".encode() * ((lines.LINE - len(before + after)) // 2) + b"x" * more
        path = put(tmp_path / f"a.{kind}", b"text\n" * (kind != "json") + before + text + after + end)
        row = rows_of(path)[0][int(kind == "txt")]
        assert (row[3] == lines.TOO_LONG) if more else (row[1:] == (text.decode(), None, None))


def test_a_byte_order_mark_does_not_make_a_line_longer(tmp_path):
    for more in (0, 1, 2, 3, 4):
        path = put(tmp_path / "a.txt", BOM + b"a" * (lines.LINE + more) + b"\nx\n")
        rows = [(len(text), wrong) for _, text, _, wrong in rows_of(path)[0]]
        assert rows == [(1000, lines.TOO_LONG) if more else (lines.LINE, None), (1, None)]


@unhurried
@given(pieces=st.lists(st.lists(st.sampled_from([b"a", b"bb", b"\n"]), max_size=4).map(b"".join)))
def test_what_is_too_long_is_cut_whatever_the_pieces(pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LINE", 8)
        cut = b"".join(lines._limited(pieces))
    assert cut.split(b"\n") == [line[:12] for line in b"".join(pieces).split(b"\n")]


# Lines


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("data", [b"", b"x", b"\xef", b"\xef\xbb", b"\xef\xbbx"])
def test_a_file_shorter_than_a_byte_order_mark_is_kept(tmp_path, name, data):
    assert [to_bytes(text) for text in read_texts(put(tmp_path / name, data))] == ([data] if data else [])
