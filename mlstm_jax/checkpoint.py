"""Checkpoints: the only file that knows Orbax.

A run folder holds `config.json` and `checkpoints/<update>/` with three parts: params, train (Adam's moments, carried
state, counters) and meta (config, place in the data, schedule, digests). Orbax does not notice flipped bytes, so every
part's fingerprint is kept in meta and checked on load; a damaged step falls back to the one before it. Arrays are saved
from where they live, and loaded to where they shall live: on another mesh, by another number of processes.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from mlstm_jax import model, sharding, training
from mlstm_jax.config import Config, UserError, from_dict, require, to_dict
from mlstm_jax.disk import atomic
from mlstm_jax.training import TrainState

Meta = dict[str, Any]


def digest(tree: Any) -> str:
    """SHA-256 of a tree of arrays: every leaf's path, type, shape and bytes, in the order of the paths."""
    sha = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        sha.update(f"{name} {array.dtype} {array.shape};".encode())
        sha.update(array.reshape(-1).view(np.uint8))
    return sha.hexdigest()


def fingerprint(tree: Any) -> str:
    """A digest of a tree of arrays that is formed where they live, and is the same on every mesh.

    A change of any one number changes it, other changes but for one in 2**64.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    names = sorted(leaves)
    sums = np.asarray(_sums([leaves[name] for name in names])).tolist()
    told = [f"{name} {leaves[name].dtype} {leaves[name].shape} {s}" for name, s in zip(names, sums, strict=True)]
    return hashlib.sha256(";".join(told).encode()).hexdigest()[:32]


@jax.jit
def _sums(arrays):
    """Two sums for each array, of its numbers' bits scrambled with their places (MurmurHash3's last step)."""

    def scramble(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def sums(a):
        bits = jax.lax.bitcast_convert_type(a, f"uint{8 * a.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(a.shape, jnp.uint32)
        for axis, size in enumerate(a.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, a.shape, axis)
        first = scramble(bits + place * jnp.uint32(0x9E3779B9))
        second = scramble(bits ^ scramble(place + jnp.uint32(1)))
        return jnp.stack([first.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32)])

    return jnp.stack([sums(a) for a in arrays])


@jax.jit
def _all_finite(tree):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


class Saver:
    """Writes the checkpoints of one run, asynchronously; each appears whole or not at all, the last `keep` remain."""

    def __init__(self, run_dir: Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(folder(run_dir), options=options)

    def save(self, state: TrainState, meta: Meta) -> None:
        """Save in the background as step `state.update`; a step that is there already is left as it is.

        Raises FloatingPointError for params that are not finite: they are never saved.
        """
        step = int(state.update)
        if step in self.manager.all_steps():
            return
        params, train = _parts(state)
        if not _all_finite(params):
            raise FloatingPointError(f"parameters at update {step} are not finite; they are not saved")
        meta = meta | {"update": step, "digests": {"params": fingerprint(params), "train": fingerprint(train)}}
        meta["digests"]["meta"] = _meta_digest(meta)
        args = {
            "params": ocp.args.StandardSave(params),
            "train": ocp.args.StandardSave(train),
            "meta": ocp.args.JsonSave(meta),
        }
        self.manager.save(step, args=ocp.args.Composite(**args), force=True)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_) -> None:
        """Wait until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def restore(run_dir: Path, say: Callable[[str], None], mesh: Mesh | None = None) -> tuple[TrainState, Meta] | None:
    """The newest whole checkpoint of a run, on a mesh or on one device; None where there is none yet.

    A damaged one is named through `say` and moved out of the way, into `damaged/`, so that its update can be saved
    again. Raises UserError where every checkpoint is damaged; then nothing is moved.
    """
    found, damaged = _newest_whole(run_dir, say, ("params", "train"), mesh, steps(run_dir))
    for step in damaged if sharding.is_first() else ():
        aside = run_dir / "damaged" / str(step)
        aside.parent.mkdir(exist_ok=True)
        while aside.exists():
            aside = aside.with_name(aside.name + "+")
        os.replace(folder(run_dir) / str(step), aside)
        say(f"checkpoint {step} was moved to {aside}")
    sharding.highest(0)  # no process goes on before that is done
    if found is None:
        return None
    parts, meta = found
    return TrainState(params=parts["params"], **parts["train"]), meta


def load_params(run_dir: Path, say: Callable[[str], None], update: int | None = None) -> tuple[model.Params, Meta]:
    """Parameters and meta of the checkpoint of an update, or of the newest whole one; nothing in the run is touched.

    Raises UserError where there is none.
    """
    known = steps(run_dir)
    kept = ", ".join(map(str, known)) or "none"
    require(update in (None, *known), f"{run_dir} holds no checkpoint {update}; there are: {kept}")
    found, _ = _newest_whole(run_dir, say, ("params",), None, known if update is None else [update])
    require(found is not None, f"{run_dir} holds no checkpoint yet; python train.py --run-dir {run_dir} trains on")
    return found[0]["params"], found[1]


def _newest_whole(run_dir, say, names, mesh, among):
    damaged, causes = [], []
    for step in reversed(among):
        try:
            return _load(folder(run_dir) / str(step), names, mesh), damaged
        except UserError:
            raise
        except Exception as error:  # Orbax raises many kinds; whatever it is, the step cannot be read
            while error.__cause__ or error.__context__:
                error = error.__cause__ or error.__context__
            cause = str(error).strip().splitlines()
            causes.append(f"checkpoint {step} is damaged ({cause[0][:200] if cause else type(error).__name__})")
            damaged.append(step)
            say(causes[-1] + "; trying the one before it" * (step > among[0]))
    require(not damaged, f"no checkpoint of {run_dir} can be read: {'; '.join(causes)}")
    return None, []


def _load(step_dir, names, mesh):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        meta = reader.restore(step_dir, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if _meta_digest(meta) != meta["digests"]["meta"]:
            raise ValueError("meta does not match its digest")
        try:
            config = from_dict(meta["config"])
        except TypeError as error:
            raise UserError(f"{step_dir} was written by a newer version of this program ({error})") from None
        mesh = mesh or sharding.one_device()
        state, *_ = training.shapes(config, mesh)
        abstract = dict(zip(("params", "train"), _parts(state), strict=True))
        args = {name: ocp.args.StandardRestore(abstract[name]) for name in names}
        parts = reader.restore(step_dir, args=ocp.args.Composite(**args))
    for name in names:
        kind = fingerprint if len(meta["digests"][name]) == 32 else digest  # of the first runs
        if meta["digests"][name] != kind(parts[name]):
            raise ValueError(f"{name} do not match their digest: bytes have changed")
    return {name: parts[name] for name in names}, meta


def _parts(state: TrainState):
    """A state as the two parts of a checkpoint."""
    fields = state._asdict()
    return fields.pop("params"), fields


def _meta_digest(meta: Meta) -> str:
    digests = {k: v for k, v in meta["digests"].items() if k != "meta"}
    return hashlib.sha256(json.dumps(meta | {"digests": digests}, sort_keys=True).encode()).hexdigest()


def steps(run_dir: Path) -> list[int]:
    """The updates of which a run has checkpoints, in order."""
    checkpoints = folder(run_dir)
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def folder(run_dir: Path) -> Path:
    """Where a run's checkpoints lie; absolute, as Orbax wants it."""
    return run_dir.absolute() / "checkpoints"


def is_run(path: Path) -> bool:
    """Whether a folder is a run of ours; weights for a model hub have a config.json too, but no lanes in it."""
    config = path / "config.json"
    return config.is_file() and (folder(path).is_dir() or b'"lanes"' in config.read_bytes())


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run with the newest checkpoint. Raises UserError where there is none."""
    newest = {
        run.parent: max((folder(run.parent) / str(step)).stat().st_mtime for step in steps(run.parent))
        for run in runs.glob("*/config.json")
        if steps(run.parent)
    }
    require(newest, f"no run with a checkpoint in {runs}/; python train.py makes one, or name a run's folder")
    return max(newest, key=newest.get)


def write_config(run_dir: Path, config: Config) -> None:
    """Keep the config beside the checkpoints, so that a run resumes without its config file."""
    with atomic(run_dir / "config.json") as file:
        file.write((json.dumps(to_dict(config), indent=2) + "\n").encode())
