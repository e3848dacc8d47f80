"""The command line of training: config files and flags to a Config."""

import dataclasses
import difflib
import os
import re
import runpy
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from mlstm_jax import storage
from mlstm_jax.cli.program import log
from mlstm_jax.config import Config, MeshConfig, ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run
from mlstm_jax.text import printable

# Ours alone have names: whatever else lies beside them, or beside the package, was not written to be run by name.
CONFIGS = ("amazon", "amazon_2048", "neuron", "quickstart", "tiny")
QUICKSTART = "quickstart"
_INSTALLED, _CHECKOUT = Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"


def find_config(name: str) -> Path:
    """The file of a config: one of ours by its name, as "amazon", or any file by its path, as "mine.py".

    Raises UserError for a name that none of ours has.
    """
    if name.endswith(".py") or os.sep in name:
        if storage.is_remote(path := storage.local(name)):
            raise UserError(f"a config is executed, and read from this machine only; copy {name} here first")
        return path
    if name not in CONFIGS:
        listed = ", ".join(CONFIGS)
        raise UserError(f"no config {name!r}; there are: {listed}. Name a file of your own by its path: ./{name}.py")
    return (_INSTALLED if _INSTALLED.is_dir() else _CHECKOUT) / f"{name}.py"


def load_file(path: str | Path) -> Config:
    """The object `config` of a config file, its run folder named after the file.

    Raises UserError for a missing file, a file that fails (a misspelt field: with the nearest name) or has no `config`.
    """
    path = Path(path)
    folder = path.parent if path.parent.name else Path("configs")
    found = ", ".join(map(str, sorted(folder.glob("*.py")))) or "none"
    if not path.is_file():
        raise UserError(f"no config file {path}; those in {folder}: {found}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:
        raise UserError(_complaint(path, error)) from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: no object `config = Config(...)` in this file")
    return config if config.run_dir else dataclasses.replace(config, run_dir=f"runs/{path.stem}")


def _complaint(path: Path, error: BaseException) -> str:
    """One line on a config file that fails: where, and why."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno or 1}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown:
        owner = {"ModelConfig": ModelConfig, "MeshConfig": MeshConfig}.get(unknown[1], Config)
        nearest = difflib.get_close_matches(unknown[2], [f.name for f in dataclasses.fields(owner)], 1, 0)
        return f"{where}: {owner.__name__} has no field {unknown[2]!r}; the nearest is {nearest[0]!r}"
    return f"{where}: {error}" if isinstance(error, UserError) else f"{where}: {type(error).__name__}: {error}"


def from_command_line(args: list[str], stored: Callable[[Run], Config | None]) -> tuple[Config, Config | None]:
    """The config to run, and the stored config of the run it continues, if there is one.

    `stored(run)` reads a run's own config, which is then the default for all that the command line does not name.
    """
    import tyro

    known = ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config")
    known.add_argument("--init")
    known.add_argument("--run-dir", "--run_dir", dest="run_dir")
    named, _ = known.parse_known_args(args)
    default = load_file(find_config(named.config or QUICKSTART))
    run_dir = str(default.run_dir if named.run_dir in (None, "None") else named.run_dir)
    if named.init not in (None, "None"):
        # A config's updates were chosen for its own data, from drawn weights. Fine-tuning data may be few, which
        # trained weights learn by heart when they see them again: in one pass they see none twice.
        default = dataclasses.replace(default, updates=None, epochs=1.0)
    old = stored(Run(storage.local(run_dir)))
    source = named.config or QUICKSTART
    if old and not named.config:
        default = dataclasses.replace(old, run_dir=run_dir)  # the folder may have been moved
        source = f"the run in {run_dir}"
    # tyro names the flag nearest to a misspelt one only where flag and value are apart.
    apart = lambda arg: arg.split("=", 1) if re.match("--[^=]+=[^-]", arg) else [arg]
    rest = [part for arg in _without(args, "--config") for part in apart(arg)]
    if {"-h", "--help"} & set(rest):  # which shows what a run holds that may be a stranger's
        texts = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
        default = dataclasses.replace(default, **{k: printable(v) for k, v in texts.items() if isinstance(v, str)})
    description = (
        f"Train an mLSTM byte by byte. --config NAME or FILE sets the defaults below (now: {source}). "
        "With --plan, --json prints one JSON object. --quiet shows warnings and results only."
    )
    config = tyro.cli(Config, default=default, args=rest, prog="mlstm train", description=description)
    return config if config.run_dir else dataclasses.replace(config, run_dir=run_dir), old


class Named(NamedTuple):
    """What a command line names of the groups of a config; what it does not name may be fitted to what is there."""

    sizes: Collection[str] = ()  # fields of the model
    axes: Collection[str] = ()  # of the mesh


def named(args: list[str]) -> Named:
    """The fields of the model and of the mesh that a command line names."""
    flags = {arg.split("=", 1)[0] for arg in args}
    of = lambda group, kind: [f.name for f in dataclasses.fields(kind) if f"--{group}.{f.name}" in flags]
    return Named(of("model", ModelConfig), of("mesh", MeshConfig))


def stored_config(run: Run) -> Config | None:
    """The config that a run was started with: its config.json, or where that is lost, what a checkpoint holds of it."""
    error = None
    storage.fetch(run.config_file)
    try:
        return run.read_config()
    except (FileNotFoundError, NotADirectoryError):
        if not run.steps() and not run.checkpoints.is_dir():
            return None
    except (ValueError, TypeError, KeyError) as caught:
        error = caught
    from mlstm_jax.training import checkpoint  # slow, and seldom needed here

    if saved := checkpoint.saved_meta(run):
        state = "damaged" if error else "missing"
        log(f"{run.config_file} is {state}: taking the config that checkpoint {saved.update} holds")
        return saved.config
    if error:
        raise UserError(f"{run.config_file} cannot be read ({error}); restore it, or name a new folder with --run-dir")
    return None


def take_json(args: list[str]) -> tuple[bool, list[str]]:
    """Whether --json is on a command line, and the rest; it is no field of a Config, as a run knows nothing of it."""
    return "--json" in args, [arg for arg in args if arg != "--json"]


def _without(args: list[str], flag: str) -> list[str]:
    """The command line less one flag and its value."""
    rest, skip = [], False
    for arg in args:
        if skip or arg.startswith(flag + "="):
            skip = False
        elif arg == flag:
            skip = True
        else:
            rest.append(arg)
    return rest
