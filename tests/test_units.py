"""The unit record on disk, and the value at which a unit is held."""

import dataclasses
import json
import os

import numpy as np
import pytest

from helpers.unit_records import RECORD
from mlstm_jax import disk, unit_record
from mlstm_jax.cli.program import announce, explain
from mlstm_jax.errors import UserError
from mlstm_jax.sentiment import probe


def test_record_comes_back_as_it_was(tmp_path):
    path = unit_record.save(RECORD, tmp_path / "units")
    assert path == tmp_path / "units" / "sst.json"
    assert unit_record.load([path.parent], "d1") == unit_record.load([path.parent], "d1", "sst") == RECORD
    assert os.listdir(path.parent) == ["sst.json"]
    scaled = dataclasses.replace(RECORD, task="imdb", scale=(-1 / 3, 0.1 + 0.2))
    unit_record.save(scaled, path.parent)
    assert unit_record.load([path.parent], "d1", "imdb") == scaled


def test_missing_record_names_the_command(tmp_path):
    with pytest.raises(UserError) as error:
        unit_record.load([tmp_path / "none"], "d1")
    assert explain(error.value).endswith("python eval_sst.py RUN")
    with pytest.raises(UserError) as error:
        unit_record.load([tmp_path], "d1", "imdb")
    assert explain(error.value).endswith("python eval_sst.py RUN --task imdb")


def test_record_of_other_weights_is_refused_with_the_command(tmp_path):
    unit_record.save(RECORD, tmp_path)
    with pytest.raises(UserError, match=r"sst.json is of other weights") as error:
        unit_record.load([tmp_path], "d2")
    assert explain(error.value).endswith("python eval_sst.py RUN")


def test_without_a_task_the_only_matching_record_is_taken_and_several_are_listed(tmp_path):
    for task, digest in [("rotten_tomatoes", "d2"), ("imdb", "d1"), ("sst", "d1")]:
        unit_record.save(dataclasses.replace(RECORD, task=task, digest=digest), tmp_path)
    with pytest.raises(UserError, match=r"imdb \(unit 2\), sst \(unit 2\); name one with `task`"):
        unit_record.load([tmp_path], "d1")
    assert unit_record.load([tmp_path], "d2").task == "rotten_tomatoes"
    assert unit_record.load([tmp_path], "d1", "sst").task == "sst"


def damaged():
    whole = json.dumps(dataclasses.asdict(RECORD))
    fields = json.loads(whole)
    yield from ("", whole[:-30], "[]", "3", "{}", "\udcff")
    wrong = {"unit": 9, "sign": 0, "deviation": "x", "mean_positive": None, "coefficients": None, "a": float("nan")}
    yield from (json.dumps(fields | {key: value}) for key, value in wrong.items())
    yield from (json.dumps(fields | {"scale": scale}) for scale in ([1.0], [2.0, 1.0], ["a", "b"], 3, [0.0, 1e999]))
    yield json.dumps(fields | {"extra": 1})
    yield json.dumps(disk.seal(fields) | {"threshold": 0.5})
    yield "[" * 10_000 + "]" * 10_000
    yield whole.replace('"a": -4.0', '"a": ' + "9" * 400)


@pytest.mark.parametrize("text", list(damaged()))
def test_damaged_record_is_refused_with_the_command(tmp_path, text):
    (tmp_path / "imdb.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="imdb.json is damaged") as error:
        unit_record.load([tmp_path], "d1")
    assert explain(error.value).endswith("python eval_sst.py RUN --task imdb")


def test_a_flipped_byte_of_a_record_is_noticed_or_changes_nothing(tmp_path):
    path = unit_record.save(dataclasses.replace(RECORD, positive="Fresh", negative="Rotten"), tmp_path)
    record, whole = unit_record.load([tmp_path], "d1"), path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert unit_record.load([tmp_path], "d1") == record  # white space
        except UserError:
            noticed += 1
    assert noticed > 0.9 * len(whole)


def test_a_record_of_version_0_1_has_no_names_of_classes_and_no_checksum(tmp_path):
    fields = dataclasses.asdict(RECORD)
    del fields["positive"], fields["negative"], fields["scale"]
    (tmp_path / "sst.json").write_text(json.dumps(fields))
    record = unit_record.load([tmp_path], "d1")
    assert record == RECORD
    assert unit_record.describe_classes(record.negative, record.positive) == "positive = positive, negative = negative"


@pytest.mark.parametrize("sign", [1, -1])
def test_plus_is_always_positive(sign):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (sign * (2.0 * y + 3) + rng.normal(size=200))[:, None].astype(np.float32)
    record = dataclasses.replace(RECORD, coefficients=(float(sign),), **probe.measure_unit(x, y, 0)._asdict())
    positive = lambda k: record.a * unit_record.clamp_value(record, k) + record.b
    assert positive(2.0) > positive(1.0) > positive(0.0) > positive(-1.0) > positive(-2.0)
    assert positive(2.0) > 2 and positive(-2.0) < -2
    assert unit_record.clamp_value(record, 0.0) == (record.mean_negative + record.mean_positive) / 2


def test_only_a_cell_state_can_be_held():
    with pytest.raises(UserError) as error:
        unit_record.clamp_value(dataclasses.replace(RECORD, feature="hidden"), 1.0)
    assert explain(error.value).endswith("python eval_sst.py RUN --feature cell")


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), unit_record.atomic(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        unit_record.save(RECORD, tmp_path / "file")


INTERVAL, LOWER = (0.76, 0.801), (0.48, 0.535)


@pytest.mark.parametrize(
    "alone, interval, majority, said",
    [
        (0.781, INTERVAL, 0.5, "sentiment unit 2: 78.1% [76.0%, 80.1%] alone on sst; always guessing the commoner"),
        (
            0.506,
            LOWER,
            0.5,
            "no sentiment unit; unit 2: 50.6% [48.0%, 53.5%] alone on sst; always guessing",
        ),
        (0.781, INTERVAL, 0.75, "no sentiment unit; unit 2: 78.1% [76.0%, 80.1%] alone on sst; always guessing"),
    ],
)
def test_a_verdict_has_the_interval_and_the_majority_and_calls_a_weak_unit_none(
    tmp_path, caplog, alone, interval, majority, said
):
    record = dataclasses.replace(RECORD, accuracy_alone=alone, interval_alone=interval, accuracy_majority=majority)
    assert unit_record.verdict(record).startswith(said) and unit_record.verdict(record).endswith(
        f"class: {majority:.1%}"
    )
    assert unit_record.is_weak(record) == said.startswith("no")
    unit_record.save(record, tmp_path)
    assert unit_record.load([tmp_path], "d1") == record
    announce(record)
    assert caplog.records[-1].levelname == "WARNING" or not unit_record.is_weak(record)


@pytest.mark.parametrize("interval", [[0.1], [0.1, 0.2, 0.3], "ab", 0.5, [None, 0.5], [float("nan"), 0.5]])
def test_an_interval_that_is_none_is_a_damaged_record(tmp_path, interval):
    fields = dataclasses.asdict(RECORD) | {"interval_alone": interval}
    (tmp_path / "sst.json").write_text(json.dumps(disk.seal(fields)))
    with pytest.raises(UserError, match="damaged"):
        unit_record.load([tmp_path], "d1")


def test_an_older_record_is_not_called_weak():
    assert unit_record.verdict(RECORD) == "sentiment unit 2: 85.0% alone on sst" and not unit_record.is_weak(RECORD)
