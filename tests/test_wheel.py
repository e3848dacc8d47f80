"""The installed program: a wheel in an environment of its own, used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from helpers.programs import ROOT, write_reviews
from mlstm_jax.cli import arguments

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

pytestmark = pytest.mark.skipif(
    int(metadata.version("setuptools").partition(".")[0]) < 77, reason="setuptools is too old to build the wheel"
)


def quietly(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment's folder. It finds what the package depends on, but not this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, env = folder / "source", folder / "wheels", folder / "env"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("mlstm_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-index", "--no-deps", "--disable-pip-version-check")
    quietly(sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", wheels, source)
    (wheel,) = wheels.iterdir()
    shutil.rmtree(source)
    quietly(sys.executable, "-m", "venv", "--without-pip", env)
    quietly(sys.executable, "-m", "pip", "--python", env / "bin" / "python", "install", *offline, wheel)
    # A folder on the path by a .pth file is searched, but .pth files in it, as of this checkout, are not read.
    (site_packages(env) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return env


def site_packages(env):
    (found,) = env.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def run(installed, tmp_path):
    """Runs an installed program in an empty folder."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ours |= {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    here = tmp_path / "empty"
    here.mkdir()
    return lambda name, *args: subprocess.run(
        [str(installed / "bin" / name), *map(str, args)],
        cwd=here,
        env=ours,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_package_is_the_installed_one(run, installed):
    done = run("python", "-c", "import mlstm_jax; print(mlstm_jax.__version__); print(mlstm_jax.__file__)")
    version, path = done.stdout.splitlines()
    assert version == VERSION and Path(path).is_relative_to(site_packages(installed))
    assert run("mlstm", "--version").stdout == f"mlstm_jax {VERSION}\n"


def test_help_shows_the_defaults_of_a_named_config(run):
    plain, named = run("mlstm", "train", "--help"), run("mlstm", "train", "--config", "amazon", "--help")
    assert plain.returncode == named.returncode == 0
    for done, name in ((plain, "quickstart"), (named, "amazon")):
        config = arguments.load_file(arguments.find_config(name))
        assert f"(now: {name})" in done.stdout and f"(default: {config.model.hidden})" in done.stdout
        assert f"(default: runs/{name})" in done.stdout


def test_a_model_is_trained_and_writes(run, tmp_path):
    reviews = write_reviews(tmp_path / "reviews.txt")
    done = run("mlstm", "train", "--config", "tiny", "--data", reviews, "--updates", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "empty" / "runs" / "tiny" / "config.json").is_file()
    done = run("mlstm", "sample", "runs/tiny", "--length", 20, "--prime", "It is")
    assert done.returncode == 0, done.stderr
    assert "It is" in done.stdout


def test_the_model_of_the_package_is_installed_and_used_where_there_is_no_run(run, installed):
    done = run("mlstm", "sample", "--sentiment", "+3", "--prime", "This ", "--num", 1, "--length", 20)
    assert done.returncode == 0 and done.stdout.startswith("This "), done.stderr
    assert "no run in runs/: using the model that comes with the package" in done.stderr
    assert "sentiment unit" in done.stderr and "alone on amazon" in done.stderr
    assert (site_packages(installed) / "mlstm_jax/pretrained/LICENSE-weights").is_file()


def test_every_config_of_the_checkout_is_installed_and_named(run, installed):
    ours = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert sorted(arguments.CONFIGS) == ours
    assert sorted(path.stem for path in (site_packages(installed) / "mlstm_jax" / "configs").glob("*.py")) == ours


def test_a_file_that_merely_lies_in_site_packages_is_no_config(run, installed, tmp_path):
    site, ran = site_packages(installed), tmp_path / "ran"
    folders = [site, site / "configs", site / "mlstm_jax", tmp_path / "empty", tmp_path / "empty" / "configs"]
    strays = [folder / f"{name}.py" for folder in folders for name in ("stray", "quickstart")]
    strays += [site / "mlstm_jax" / "configs" / "stray.py", site / "pyproject.toml"]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_text(f"open({str(ran)!r}, 'w')\n" * (stray.suffix == ".py"))
    try:
        done = run("mlstm", "train", "--config", "stray")
        assert done.returncode == 2 and "no config 'stray'; there are: amazon, " in done.stderr
        done = run("mlstm", "train", "--config", "quickstart", "--help")
        assert done.returncode == 0 and "(default: runs/quickstart)" in done.stdout
        assert not ran.exists()
        assert run("mlstm", "train", "--config", "./stray.py").returncode == 2
        assert ran.exists(), "by its path any file is run"
    finally:
        for stray in strays:
            stray.unlink()
