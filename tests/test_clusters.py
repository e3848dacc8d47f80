"""docs/clusters.md and examples/slurm.sbatch: commands that parse, and a job that queues again only when it should."""

import functools
import importlib
import os
import re
import shlex
import subprocess

import pytest

from helpers.programs import ROOT
from mlstm_jax import cli, storage
from mlstm_jax.cli import arguments
from mlstm_jax.planning import plan, topology

PAGE = (ROOT / "docs" / "clusters.md").read_text()
JOB = ROOT / "examples" / "slurm.sbatch"


def commands(text):
    """The commands of ours in a text: the program, and its arguments as a shell gives them."""
    found = re.findall(rf"\bmlstm ({'|'.join(cli.COMMANDS)}) ([^'`\n>|&]*)", text.replace("\\\n", " "))
    return [(program, shlex.split(rest)) for program, rest in found if rest.strip()]


def flags_of(text):
    """Every option of `mlstm` that prose or code names with a value or alone."""
    return set(re.findall(r"`(--[a-z][a-z.-]*[a-z])", text))


ALL = commands(PAGE) + commands(JOB.read_text())


def test_the_page_has_commands_of_all_three_places():
    assert len(ALL) >= 8 and {program for program, _ in ALL} == {"train", "corpus"}
    assert any("--coordinator" in given for _, given in ALL) and any("gs://$BUCKET/data/amazon" in g for _, g in ALL)


@pytest.mark.parametrize("program, given", ALL, ids=[" ".join([program, *given]) for program, given in ALL])
def test_every_command_parses(program, given, monkeypatch):
    monkeypatch.setattr(storage, "EXTRAS", {"gs": ("json", "gcs")})  # as if gcsfs were installed
    if program == "train":
        config, _ = arguments.from_command_line(given, lambda run: None)
        assert config.model.hidden == 4096
        assert config.plan in (None, "all") or topology.parse(config.plan).devices >= 8
        return
    module, called = importlib.import_module(f"mlstm_jax.cli.{cli.COMMANDS[program][0]}"), []
    monkeypatch.setattr(module, "main", functools.wraps(module.main)(lambda *_, **named: called.append(named)))
    module.run(given)
    assert len(called) == 1


OTHERS = {"--signal", "--requeue", "--gres", "--gpus-per-task"}  # Slurm's


def test_every_option_that_the_text_names_is_one_of_training(capsys):
    with pytest.raises(SystemExit):
        arguments.from_command_line(["--help"], lambda run: None)
    known = set(re.findall(r"--[a-z][a-z.-]*[a-z]", capsys.readouterr().out))
    named = flags_of(PAGE)
    assert {"--save-every", "--grad-accumulation", "--mesh.model"} <= named and named - OTHERS <= known


def test_hardware_of_the_table_is_known():
    assert all(topology.parse(name).chip.flops > 0 for name in plan.ALL)


def test_the_job_is_a_script_that_slurm_signals_before_its_limit():
    assert subprocess.run(["bash", "-n", JOB]).returncode == 0
    text = JOB.read_text()
    directives = set(re.findall(r"^#SBATCH (.*)$", text, re.M))
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= directives
    assert text.startswith("#!/bin/bash\n") and text.rfind("#SBATCH") < text.find("\nsource "), "directives come first"


@pytest.mark.parametrize("status, requeued", [(143, True), (0, False), (2, False), (137, False)])
def test_the_job_queues_again_where_it_was_stopped_and_only_there(status, requeued, tmp_path):
    for name, body in {
        "srun": f'echo "srun $*"; exit {status}',
        "scontrol": 'echo "scontrol $*"',
        "activate": "",
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"MLSTM_VENV": str(tmp_path), "MLSTM_RUN": "runs/my run", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", JOB], env=os.environ | job | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == status and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "srun mlstm train --config amazon_2048 --data data/amazon --run-dir runs/my run"
    assert lines[1:] == ["scontrol requeue 7"] * requeued
