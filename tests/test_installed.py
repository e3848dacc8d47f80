"""The package as a wheel lays it out, in an empty folder: the command, and configs by name."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.programs import ROOT

SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of packages, without what a checkout has beside them."""
    site = tmp_path_factory.mktemp("site")
    for package in SETUP["packages"]:
        source = ROOT / SETUP["package-dir"].get(package, package.replace(".", "/"))
        target = site / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.py", *SETUP["package-data"].get(package, ())):
            for file in filter(Path.is_file, source.glob(pattern)):
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    return site


@pytest.fixture
def mlstm(installed, tmp_path):
    def run(*arguments):
        env = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}
        command = [sys.executable, "-m", "mlstm_jax", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_every_package_is_installed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mlstm_jax").rglob("*.py")}
    assert {*SETUP["packages"]} == found | {"mlstm_jax.configs"}


def test_the_command_lists_its_programs(mlstm):
    shown = mlstm("--help")
    assert shown.returncode == 0
    assert all(f"\n  {name} " in shown.stdout for name in "train eval sample score heatmap demo convert corpus".split())
    wrong = mlstm("trian")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: no command 'trian'")


@pytest.mark.parametrize("program", "train eval sample score heatmap demo convert corpus".split())
def test_every_program_has_help(mlstm, program):
    shown = mlstm(program, "--help")
    assert shown.returncode == 0 and f"mlstm {program}" in shown.stdout, shown.stderr


def test_a_model_is_trained_and_read_in_an_empty_folder(mlstm, tmp_path):
    (tmp_path / "reviews.txt").write_text("".join(f"Number {i} was a good film\n" for i in range(300)))
    settings = "--config tiny --data reviews.txt --updates 2 --eval-every 0 --sample-every 0".split()
    trained = mlstm("train", *settings)
    assert trained.returncode == 0, trained.stderr
    sampled = mlstm("sample", "--length", "5", "--prime", "Number")
    assert sampled.returncode == 0 and "Number" in sampled.stdout, sampled.stderr


def test_a_config_is_one_of_ours_or_a_file_that_is_named_as_one(mlstm, installed, tmp_path):
    for folder in (installed, installed / "mlstm_jax", tmp_path):  # none of these is looked at for a bare name
        (folder / "mine.py").write_text("print('executed')")
    refused = mlstm("train", "--config", "mine")
    assert refused.returncode == 2 and "executed" not in refused.stdout
    assert "no config 'mine'; there are: amazon, amazon_2048, neuron, quickstart" in refused.stderr
    assert "executed" in mlstm("train", "--config", "./mine.py").stdout
