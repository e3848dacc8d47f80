"""How a program ends: errors, signals, a reader that has gone."""

import atexit
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from shlex import quote

from mlstm_jax import signals, storage
from mlstm_jax.config import Config, MeshConfig, ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.signals import mute
from mlstm_jax.text import printable
from mlstm_jax.unit_record import UnitRecord, is_weak, verdict

logger = logging.getLogger(__name__)


class _Lines(logging.Handler):
    """What the package logs, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one; an error, as that of a reader that has gone, is the program's."""
        print(printable(storage.shown(flags(record.getMessage()))), file=sys.stderr)


def listen(quiet: bool = False) -> None:
    """Show what the package logs: all of it, or warnings only."""
    package = logging.getLogger("mlstm_jax")
    package.handlers, package.propagate = [_Lines()], False
    package.setLevel(logging.WARNING if quiet else logging.INFO)


def log(text: str) -> None:
    """Print a line of results; what is not ours in it is shown as `printable` has it."""
    print(printable(storage.shown(text)))


def note(text: str) -> None:
    """Print a line that is no result: not with --quiet."""
    if logger.isEnabledFor(logging.INFO):
        log(text)


def script(main: Callable[[], int | None]) -> None:
    """Run a script's main; a UserError becomes one line and exit status 2, a signal ends with 128 + its number.

    --quiet, which every program takes, is read and taken away here.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # samples are UTF-8, whatever the locale
    listen("--quiet" in sys.argv)
    sys.argv[1:] = [at_home(arg) for arg in sys.argv[1:] if arg != "--quiet"]
    atexit.register(signals.ignore)  # runs after all that is registered later
    asked = signals.Asked()
    try:
        asked.watch()
        status = main()
        asked.done()
    except BaseException as error:
        asked.done()
        status = 0 if asked.number else _status(error)
    if asked.number:
        signals.leave(asked.number)
    sys.exit(status)


def _status(error: BaseException) -> int | str | None:
    """The exit status after an error that a user can do something about, which becomes one line; others are raised."""
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        mute()
        return 141
    if isinstance(error, UserError):
        line = explain(error)
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        line = (
            "there is not enough memory; take a smaller --batch-size, --seq-length or model, or a larger machine (to "
            "train, a larger --grad-accumulation or --remat-every 32 take less and may change in a run)"
        )
    elif isinstance(error, RuntimeError) and re.search("initialize backend|known backends", str(error)):
        asked = os.environ.get("JAX_PLATFORMS", "")
        line = f"jax finds no device for JAX_PLATFORMS={asked}; unset it, or name what is there, as JAX_PLATFORMS=cpu"
    elif isinstance(error, OSError):  # a folder that cannot be written, a name that is too long
        line = f"{error.filename or 'the system'}: {error.strerror or error}"
    else:
        raise error
    print(printable(storage.shown(f"error: {' '.join(line.splitlines())}")), file=sys.stderr)
    return 2


# The parameters that messages name: the fields of a config, and what the other programs have besides.
PARAMETERS = {f.name for f in fields(Config)} | {"label_key", "negative", "positive", "runner_options", "workers"}
PARAMETERS |= {"clamp", "clamp_feature", "dtype", "json", "sentiment", "task", "threshold"}
PARAMETERS |= {f"model.{f.name}" for f in fields(ModelConfig)} | {f"mesh.{f.name}" for f in fields(MeshConfig)}
SCRIPTS = {"train": "python train.py", "eval": "python eval_sst.py", "sample": "python sample.py"}


def explain(error: UserError) -> str:
    """An error as a line: parameters are named as flags, and a command that mends it comes last."""
    line = flags(str(error))
    return f"{line}; try: {command(*error.command, **error.parameters)}" if error.command else line


def flags(text: str) -> str:
    """A library's text for the command line: `seq_length`, a parameter in backticks, becomes --seq-length."""
    return re.sub("`([a-z][a-z_.]*)`", lambda name: _flag(name[1]) if name[1] in PARAMETERS else name[0], text)


def announce(record: UnitRecord) -> None:
    """Say how good a unit is; of one that is hardly better than guessing, as a warning."""
    level = logging.WARNING if is_weak(record) else logging.INFO
    logger.log(level, verdict(record))


def command(program: str, *arguments: str | Path, **parameters: object) -> str:
    """A command to copy: `mlstm PROGRAM ...` where that was started, else one of the three scripts."""
    installed = sys.argv[0].startswith("mlstm ") or program not in SCRIPTS
    typed = lambda value: as_argument(storage.name(value)) if isinstance(value, Path) else quote(str(value))
    named = (part for name, value in parameters.items() for part in (_flag(name), typed(value)))
    return " ".join([f"mlstm {program}" if installed else SCRIPTS[program], *map(typed, arguments), *named])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def at_home(argument: str) -> str:
    """An argument with ~ for the user's folder where a shell leaves it: behind the = of --run-dir=~/x."""
    flag, equals, value = argument.partition("=")
    named = flag.startswith("--") and equals and value.startswith("~")
    return f"{flag}={os.path.expanduser(value)}" if named else argument


def as_argument(path: str | Path) -> str:
    """A path as it is typed in a suggested command: quoted, and never taken for an option."""
    return quote(f"./{path}" if str(path).startswith("-") else str(path))
