"""How a program ends: what an error says on the command line."""

import dataclasses
import inspect
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mlstm_jax import config as configs
from mlstm_jax import unit_record
from mlstm_jax.cli import convert, corpus, evaluate, program, sample, score
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.inference.options import SamplingOptions


def test_parameters_in_backticks_are_flags_on_the_command_line():
    said = program.flags("change `batch_size`, `mesh.fsdp` or (`data`); see `label_key`.")
    assert said == "change --batch-size, --mesh.fsdp or (--data); see --label-key."


@pytest.mark.parametrize(
    "text", ["a`b.csv", "`mine`", "`seq length`", "`Data`", "`../data`", "``", "`data", "the label `good`"]
)
def test_other_backticks_stay_as_they_are(text):
    assert program.flags(text) == text == program.explain(UserError(text))


def test_every_parameter_is_a_flag_of_a_program():
    known = {
        name
        for main in (evaluate.main, convert.main, corpus.main, sample.main, score.main)
        for name in inspect.signature(main).parameters
    }
    config = configs.to_dict(configs.Config())
    known |= {*config, *(f"{group}.{name}" for group in ("model", "mesh") for name in config[group])}
    known |= {field.name for field in dataclasses.fields(SamplingOptions)}
    assert program.PARAMETERS <= known


def test_a_command_is_that_of_the_program_which_was_started(monkeypatch):
    error = UserError("no unit", "eval", "RUN", task="two words", feature="cell")
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    assert program.explain(error) == "no unit; try: python eval_sst.py RUN --task 'two words' --feature cell"
    assert program.command("corpus", "in.txt", out="a b") == "mlstm corpus in.txt --out 'a b'"
    assert program.command("heatmap", Path("-x"), "--out", "a b") == "mlstm heatmap ./-x --out 'a b'"
    monkeypatch.setattr(sys, "argv", ["mlstm sample", "runs/x"])
    assert program.explain(error) == "no unit; try: mlstm eval RUN --task 'two words' --feature cell"


@pytest.mark.parametrize("kind", [UserError, Damaged])
def test_an_error_of_another_process_keeps_its_command(kind):
    error = pickle.loads(pickle.dumps(kind("no unit", "eval", "RUN", task="imdb")))
    assert type(error) is kind and program.explain(error).endswith("RUN --task imdb")


def test_a_program_ends_with_the_line_and_status_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        program.script(lambda: unit_record.load([tmp_path], "d1", "imdb") and 0)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no unit record ") and line.endswith("; try: python eval_sst.py RUN --task imdb")


@pytest.fixture
def loud():
    """Afterwards everything is shown again."""
    yield
    program.listen()


@pytest.mark.parametrize(
    "flags, shown", [([], ("note\nresult\n", "info\nwarn\ufffding\n")), (["--quiet"], ("result\n", "warn\ufffding\n"))]
)
def test_quiet_leaves_warnings_and_results(monkeypatch, capsys, loud, flags, shown):
    def main():
        logger = logging.getLogger("mlstm_jax.run")
        logger.info("info")
        logger.warning("warn\x1bing")
        program.note("note")
        program.log("result")
        assert sys.argv[1:] == ["RUN"]

    monkeypatch.setattr(sys, "argv", ["sample.py", *flags, "RUN"])
    with pytest.raises(SystemExit) as ended:
        program.script(main)
    assert not ended.value.code and capsys.readouterr() == shown


@pytest.mark.parametrize("asked, lines", [("", 0), ("logging.basicConfig()", 1)])
def test_in_python_the_package_says_nothing_unless_it_is_asked_to(tmp_path, asked, lines):
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    read = "run.Run(pathlib.Path(sys.argv[1])).read_metrics()"
    code = f"import logging, pathlib, sys, mlstm_jax.run as run\n{asked}\n{read}"
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr.count("\n")) == ("", lines)
