"""Files that appear whole or not at all, and JSON of ours, whatever has become of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import unhurried
from mlstm_jax import disk
from mlstm_jax.errors import Damaged

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(RuntimeError), disk.atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with disk.atomic(path) as file:
        file.write(b"after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@unhurried
@given(st.dictionaries(st.text(), json_values))
def test_json_comes_back_as_it_was_and_keeps_its_checksum(folder, value):
    value.pop("checksum", None)
    path = folder / "value.json"
    path.write_text(json.dumps(disk.seal(value)))
    read = disk.read_json(path)
    assert disk.is_sealed(read) and {k: v for k, v in read.items() if k != "checksum"} == value


def test_a_changed_object_does_not_fit_its_checksum():
    sealed = disk.seal({"update": 3, "bits": 1.5})
    assert disk.is_sealed(sealed) and not disk.is_sealed(sealed | {"bits": 1.25})
    assert disk.is_sealed({"update": 3})  # of before there were any


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "Expecting value"),
        ("[1]", "not an object"),
        ("{", "Expecting"),
        ("[" * 100_000, "nested"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested"),
        ('{"n": 1' + "0" * 5000 + "}", "too large"),
        ('{"n": 18446744073709551616}', "too large"),
        ("{}", "no 'n'"),
        ('{"n": "1"}', "'n' is not int"),
        ('{"n": true}', "'n' is not int"),
        ('{"n": \xff}', "Expecting value"),
    ],
)
def test_json_that_is_not_ours_is_one_line(tmp_path, text, why):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(Damaged, match=why) as error:
        disk.read_json(tmp_path / "f.json", {"n": int})
    assert str(tmp_path / "f.json") in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@unhurried
@given(st.binary())
def test_any_bytes_are_an_object_or_damaged(data):
    try:
        assert isinstance(disk.parse_json(data, "f"), dict)
    except Damaged as error:
        assert "\n" not in str(error)


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        disk.read_json(tmp_path / "none.json")
