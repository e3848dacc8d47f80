"""A corpus prepared on a Beam runner is, byte for byte, the one that this machine's processes make."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from helpers.corpora import command, dump, here, sums
from helpers.programs import ROOT
from mlstm_jax.corpus import prepare, readers, runs
from mlstm_jax.errors import UserError

beam = pytest.importorskip("mlstm_jax.corpus.beam", reason="apache-beam is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Beam's own


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump")
    return [dump(folder / f"{n}.json", 700, seed=n, bad=2) for n in range(3)]


def there(inputs, out, options):
    return prepare.prepare(inputs, out, options, beam.runner("DirectRunner", (), out))


@pytest.mark.parametrize("distinct", [False, True])
def test_the_bytes_are_those_of_one_machine(reviews, tmp_path, monkeypatch, distinct):
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=20_000))
    monkeypatch.setattr(runs, "BUCKET", 30_000)
    options, inputs = prepare.Options(33, seed=1, distinct=distinct), [str(path) for path in reviews]
    expected = here(inputs, tmp_path / "here", options)
    found = there(inputs, tmp_path / "there", options)
    assert found == expected and found["reviews"]["bad"] == 6
    assert sums(tmp_path / "there") == sums(tmp_path / "here")
    assert json.loads((tmp_path / "there" / "manifest.json").read_text()) == found
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == sorted(
        p.name for p in (tmp_path / "here").iterdir()
    )


def test_what_one_call_has_left_the_next_one_uses(reviews, tmp_path, monkeypatch):
    """A folder begun by processes is finished by a runner: runs that are there are not made again."""
    options, inputs = prepare.Options(5), [str(path) for path in reviews]
    whole = here(inputs, tmp_path / "whole", options)
    write = prepare._write_group

    def fail(*_, **__):
        raise UserError("killed")

    monkeypatch.setattr(prepare, "_write_group", fail)
    with pytest.raises(UserError, match="killed"):
        there(inputs, tmp_path / "out", options)
    monkeypatch.setattr(prepare, "_write_group", write)
    made = list((tmp_path / "out" / ".work").glob("*.run"))
    monkeypatch.setattr(runs, "_write", fail)  # nothing is read again
    assert there(inputs, tmp_path / "out", options) == whole
    assert len(made) == 3 and sums(tmp_path / "out") == sums(tmp_path / "whole")


def test_a_message_with_bytes_that_are_no_utf8_can_be_told(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.json")
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="\udcff.json, line 1: none of reviewText"):
        there([str(path)], tmp_path / "out", prepare.Options(1))


def run(reviews, out, *more):
    command_line = [*command(reviews[0], out)[:-2], "--runner", *more]
    return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)


def test_the_command_with_a_runner_and_what_is_wrong_with_it(reviews, tmp_path):
    done = run(reviews, tmp_path / "out", "DirectRunner", "--runner-options", "direct_num_workers=1")
    assert done.returncode == 0 and "702 reviews read" in done.stdout
    assert (tmp_path / "out" / "manifest.json").exists()
    for more, printed in (
        (("DirectRunner", "--on-error", "fail"), f"error: {reviews[0]}, line"),
        (("NoRunner",), "error: the Beam pipeline failed: Unexpected pipeline runner: NoRunner"),
        (("DirectRunner", "--runner-options", "nonsense=3"), "Beam knows no option 'nonsense'"),
        (
            ("DirectRunner", "--runner-options", "direct_num_workers=x"),
            "error: --runner-options: argument --direct_num",
        ),
        (("DirectRunner", "--workers", "2"), "--workers goes without --runner"),
    ):
        done = run(reviews, tmp_path / "bad", *more)
        assert done.returncode == 2 and printed in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "bad" / "manifest.json").exists()
    done = subprocess.run(
        [sys.executable, "-m", "mlstm_jax", "corpus", "-", "--out", str(tmp_path / "bad"), "--runner", "DirectRunner"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "standard input cannot be read by other machines" in done.stderr
