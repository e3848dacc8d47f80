"""Names and texts of others reach the terminal without what controls it, through every program."""

import dataclasses
import json
import unicodedata

import pytest

from helpers import planted_model
from mlstm_jax.config import Config
from mlstm_jax.run import Run

EVIL = "\x1b]0;title\x07\x9b31m\u202eevil"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / f"weights{EVIL}"
    planted_model.smileys().save(folder)
    return folder


@pytest.fixture
def shown(run_here, monkeypatch):
    """Gives all that a program prints."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*command, status):
        ended = run_here(*command)
        text = ended.out + ended.err
        assert ended.status == status, text
        assert "Traceback" not in text and "evil" in text, text
        controls = [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"]
        assert not controls, (controls, text)
        return text

    return run


def labelled(path, labels):
    """Reviews with smileys and these two labels."""
    text = planted_model.write_labelled(path, n=120).read_text()
    for place, label in enumerate(labels):
        text = text.replace(f",{place}\n", f",{label}\n")
    path.write_text(text)
    return path


def test_evaluation_and_score(weights, tmp_path, shown):
    file = labelled(tmp_path / f"{EVIL}.csv", (f"bad{EVIL}", f"good{EVIL}"))
    assert "with --positive" in shown("eval_sst.py", weights, "--task", file, status=2)
    arguments = ("--task", file, "--positive", f"good{EVIL}", "--report", tmp_path / f"report{EVIL}")
    arguments += ("--samples", "2", "--sample-length", "20")
    assert "positive = good\ufffd" in shown("eval_sst.py", weights, *arguments[:4], status=0)
    shown("mlstm score", weights, file, "--out", tmp_path / f"out{EVIL}.csv", status=0)
    empty = tmp_path / f"empty{EVIL}.jsonl"
    empty.write_text('{"text": ""}\n{broken' + EVIL)
    shown("mlstm score", weights, empty, "--out", tmp_path / f"none{EVIL}.csv", status=2)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", f"text{EVIL},mood{EVIL}\nx,y\n"),
        ("a.jsonl", json.dumps({f"body{EVIL}": "x", "label": 1})),
        (f"a.{EVIL}", "x"),
        ("a.csv", f"text,label\nx,1{EVIL}\n"),
    ],
)
def test_keys_columns_and_labels_in_errors(weights, tmp_path, shown, name, content):
    (tmp_path / name).write_text(content)
    assert shown("eval_sst.py", weights, "--task", tmp_path / name, status=2).count("error: ") == 1


def test_a_strangers_run(tmp_path, shown):
    run = tmp_path / "run"
    config = Config(data=f"none{EVIL}", run_dir=str(run))
    run.mkdir()
    Run(run).write_config(config)
    shown("train.py", "--run-dir", run, status=2)
    shown("train.py", "--run-dir", run, "--help", status=0)
    Run(run).write_config(dataclasses.replace(config, init=f"none{EVIL}"))
    shown("train.py", "--run-dir", run, "--data", "movie-reviews", status=2)
