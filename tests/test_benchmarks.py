"""Every benchmark runs at toy size and prints its table; what it writes can be drawn."""

import json
import shutil
import subprocess
import sys

import matplotlib.image
import pytest

from benchmarks import common, compiled, demo, encode, plot, products, quick, sample, start, train_step


def test_train_step_tells_its_figures_and_they_are_drawn(capsys, tmp_path):
    figures, picture = tmp_path / "figures.jsonl", tmp_path / "picture.png"
    train_step.main(hidden=(8,), batch_size=2, seq_length=4, rounds=1, peers=False, json=figures)
    printed = capsys.readouterr().out
    assert "8 units, 2 sequences x 4 bytes" in printed and "│ ours" in printed
    rows = [json.loads(line) for line in figures.read_text().splitlines()]
    assert [(row["program"], row["hidden"], len(row["ms"])) for row in rows] == [("ours", 8, 1)]
    plot.main(figures, picture)
    assert matplotlib.image.imread(picture).shape[:2] == (630, 1500)


def test_quick_says_how_both_precisions_compare_in_one_line(capsys):
    quick.main(hidden=(8,), batch_size=2, seq_length=4, rounds=1)
    last = " ".join(capsys.readouterr().out.split()).rpartition("speed of an update of ours: ")[2]
    assert last.startswith("8 units: ") and "8 units, bfloat16: " in last and last.endswith(" x float32")


def test_encode_tells_every_number_of_texts(capsys):
    encode.main(hidden=8, texts=(1, 2), peers=False)
    printed = capsys.readouterr().out
    assert "8 units, 1 reviews" in printed and "8 units, 2 reviews" in printed and printed.count("│ ours") == 2


def test_sample_tells_every_number_of_samples_and_compiles_nothing_twice(capsys):
    sample.main(hidden=8, batch_size=(1, 2), length=4, rounds=1)
    printed = capsys.readouterr().out
    assert "8 units, 4 bytes a sample" in printed and "│ 1 " in printed and "│ 2 " in printed
    assert "another length, temperature, clamp, seed, limit: 0 times" in printed


@pytest.mark.skipif(not any(map(shutil.which, demo.NAMES)), reason="no Chromium is installed")
def test_demo_tells_how_soon_the_curve_is_drawn(capsys):
    demo.main(hidden=8, length=20, rounds=1)
    printed = capsys.readouterr().out
    assert "a key at the end of 20 characters" in printed and "written at full speed: " in printed


def test_start_watches_a_run(capsys):
    start.main(updates=60, rounds=1, first=False)
    printed = capsys.readouterr().out
    assert "train.py --help" in printed and "MB at update" in printed


def test_products_of_an_update_are_those_of_its_shapes(capsys):
    products.main(hidden=8, batch_size=2, seq_length=4, rounds=1)
    printed = capsys.readouterr().out
    assert "[2, 8] x [8, 32]" in printed and "[8, 8] x [8, 32]" in printed and "jax / fastest" in printed


def test_what_a_plan_says_becomes_a_row(monkeypatch):
    """The plan is made up: test_compiled.py has real ones, where the plugin is installed."""
    loop = lambda backward, others: {"backward": backward, "products": 2, "others": others}
    plan = {
        "memory": {"argument_bytes": 10**9, "peak_bytes": 3.15e9},
        "time_loops": [loop(False, 7), loop(True, 1)],
        "writes_weight_every_byte": True,
        "compile_seconds": 9.2,
    }
    said = json.dumps(plan)
    monkeypatch.setattr(compiled, "environment", lambda hardware: sys.executable)
    ran = []
    answer = lambda command, **_: ran.append(command) or subprocess.CompletedProcess(command, 0, said, "")
    monkeypatch.setattr(subprocess, "run", answer)
    row = compiled.planned("h200", "--batch-size 128")
    assert row == {
        "hardware": "h200",
        "settings": "--batch-size 128",
        "GB": "2.15",
        "forward": "2 + 7",
        "backward": "2 + 1",
        "of a weight's size": "some",
        "s": 9,
    }
    assert ran[0][-5:] == ["--plan", "h200", "--json", "--batch-size", "128"]
    said = json.dumps(plan | {"memory": None, "compiler_error": "it does not fit"})
    with pytest.raises(SystemExit, match="it does not fit"):
        compiled.planned("h200", "--batch-size 128")


def test_a_spread_has_the_median_and_both_ends():
    assert common.spread([0.5, 0.25, 1.0]) == "0.500 (0.250–1.000)" and common.spread([1234.4] * 2) == "1,234"
