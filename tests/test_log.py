"""What a run says of itself on disk comes back as it was written, or is said to be left out."""

import json

import pytest

from mlstm_jax.cli import program
from mlstm_jax.run import Run
from mlstm_jax.training import log

VALUES = {"bits_per_byte": 2.5, "gradient_norm": 0.125, "skipped": 0, "validation_bits_per_byte": float("nan")}


@pytest.fixture
def run(tmp_path):
    with log.Log(Run(tmp_path), 0, 9) as out:
        for update in range(1, 10):
            out.metrics(update, VALUES)
    return tmp_path


def test_metrics_come_back(run, capsys):
    capsys.readouterr()
    rows = Run(run).read_metrics()
    assert rows == [{"update": update, **VALUES, "validation_bits_per_byte": None} for update in range(1, 10)]
    assert capsys.readouterr() == ("", "")


def test_where_it_is_quiet_warnings_are_shown(tmp_path, capsys):
    program.listen(quiet=True)
    try:
        with log.Log(Run(tmp_path), 0, 9) as out:
            out.log("progress")
            out.warn("a warning")
            out.training(
                1, VALUES | {"bytes_per_second": 1.0, "bytes_per_second_per_chip": 1.0, "averaged": 1}, whole=1
            )
    finally:
        program.listen()
    assert capsys.readouterr() == ("a warning\n", "")


def test_a_flipped_byte_takes_its_line_alone_and_is_said(run, capsys):
    path, rows = run / "metrics.jsonl", Run(run).read_metrics()
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        capsys.readouterr()
        found = Run(run).read_metrics()
        lost = [row for row in rows if row not in found]
        assert all(row in rows for row in found)
        assert len(lost) <= (2 if whole[place] == ord("\n") else 1)  # the end of a line joins it to the next
        assert bool(lost) == (" damaged line" in capsys.readouterr().err)


def test_lines_of_version_0_1_are_read_and_kept_as_they_are(run):
    path, new = run / "metrics.jsonl", (run / "metrics.jsonl").read_bytes()
    old = b'{"update": 1, "bits_per_byte": 8.0}\n{"update": 3, "bits_per_byte": null}\n'
    path.write_bytes(old + new)
    assert [row["update"] for row in Run(run).read_metrics()] == [1, 3, *range(1, 10)]
    Run(run).cut_metrics(3)
    assert path.read_bytes() == old + b"".join(new.splitlines(keepends=True)[:3])


@pytest.mark.parametrize(
    "line",
    [b"[" * 10**5, b'{"update": ' + b"9" * 5000 + b"}", b'{"update": true}', b'{"update": 1, "x": "y"}', b"\xff"],
)
def test_strange_lines_are_left_out(run, capsys, line):
    rows = Run(run).read_metrics()
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n" + line)
    capsys.readouterr()
    assert Run(run).read_metrics() == rows
    assert capsys.readouterr().err == f"{run / 'metrics.jsonl'}: 2 damaged lines are left out\n"


def test_what_is_said_above_the_progress_line_controls_no_terminal(run, capsys):
    with log.Log(Run(run), 9, 10) as out:
        out.log("a \x1b]0;title\x07 [b] \u202e")
    assert capsys.readouterr().out == "a \ufffd]0;title\ufffd [b] \ufffd\n"
    assert all(json.loads(line)["checksum"] for line in (run / "metrics.jsonl").read_text().splitlines())
