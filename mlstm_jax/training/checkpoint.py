"""What a checkpoint holds, how it is saved and restored: the only file that knows Orbax.

A run's folder holds `config.json` and `checkpoints/<update>/` with three parts: params, train (the rest of TrainState)
and meta (Meta, with the digests of all three). Orbax does not notice flipped bytes, so digests are checked on load; a
damaged checkpoint falls back to the one before it. An error of the system, which may pass, is not damage: reading and
saving are tried again, and then end with one line. Arrays are saved from the devices they are on, and may be restored
to another mesh, by another number of processes.
"""

import errno
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from mlstm_jax import storage
from mlstm_jax.config import Config, from_dict, to_dict
from mlstm_jax.disk import read_json
from mlstm_jax.errors import UserError
from mlstm_jax.model import parameters
from mlstm_jax.run import Run
from mlstm_jax.training import processes, sharding, updates
from mlstm_jax.training.updates import TrainState

T = TypeVar("T")
PAUSES = (0.5, 2.0)  # seconds before a read or a save that failed is tried again


class Meta(NamedTuple):
    """What a checkpoint holds beside the arrays of the state."""

    config: Config
    data: str  # digest of the corpus
    start: int  # the update at which the learning rate begins to fall
    end: int  # the update at which the run is finished
    position: int = 0  # batches taken
    update: int = 0  # updates done
    validation_bits_per_byte: float | None = None  # when last measured


class Checkpoint(NamedTuple):
    """All that a run goes on from."""

    state: TrainState
    meta: Meta


def digest(tree: Any) -> str:
    """SHA-256 of a tree of arrays: every leaf's path, type, shape and bytes, in the order of the paths."""
    sha = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        sha.update(f"{name} {array.dtype} {array.shape};".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def fingerprint(tree: Any) -> str:
    """A digest of a tree of arrays that is formed where they live, and is the same on every mesh.

    A change of any one number changes it, other changes but for one in 2**64.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    names = sorted(leaves)
    sums = np.asarray(_sums([leaves[name] for name in names])).tolist()
    lines = [f"{name} {leaves[name].dtype} {leaves[name].shape} {s}" for name, s in zip(names, sums, strict=True)]
    return hashlib.sha256(";".join(lines).encode()).hexdigest()[:32]


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
    """Writes the checkpoints of one run in the background; each appears whole or not at all, the last `keep` remain.

    A save that fails is logged and tried again, with the state of that time; the third in a row ends the run. The first
    one is read back.
    """

    def __init__(self, run: Run, keep: int, log: Callable[[str], None] = print, mesh: Mesh | None = None):
        self.run, self.keep, self.log, self.mesh = run, keep, log, mesh
        self.gathers = _gathers(run)
        if self.gathers:
            self.mesh = None
        self.place: int | None = None  # of the folder on its disk
        self.manager: ocp.CheckpointManager | None = None
        self.saving: int | None = None  # the update that is being saved
        self.failures, self.read_back = 0, False

    def save(self, state: TrainState, meta: Meta, wait: bool = False) -> None:
        """Save in the background, or `wait` for it, as step `state.update`; one that is there is left as it is.

        Raises UserError for numbers that are not finite, which are never saved, and where saving fails for good.
        """
        self._settle()
        while not (self._start(state, meta) and (not wait or self._settle())):
            pass

    def check(self, state: TrainState, meta: Meta) -> None:
        """Save this state where the save in the background has failed; a moment's work otherwise.

        Several processes learn of it at their next save, together.
        """
        if self.saving is None or self.manager is None or jax.process_count() > 1:
            return
        if self.manager.is_saving_in_progress():
            return
        if not self._settle():
            self.save(state, meta)

    def _start(self, state, meta):
        """Begin to save; whether that went well."""
        step = int(state.update)
        if not self.gathers or processes.is_first():
            self._require_folder()
        params, train = _parts(state)
        if not _all_finite((params, train)):
            raise UserError(
                f"{self.run.path}: update {step} has left parameters, moments or a carried state that are not finite, "
                f"and that are not saved; {self._safe()}",
                "train",
                run_dir=self.run.path,
            )
        fields = _to_json(meta._replace(update=step), {"params": fingerprint(params), "train": fingerprint(train)})
        if self.gathers:
            params, train = processes.gathered((params, train))
            if not processes.is_first():
                return True
        args = {
            "params": ocp.args.StandardSave(params),
            "train": ocp.args.StandardSave(train),
            "meta": ocp.args.JsonSave(fields),
        }
        try:
            self.manager = self.manager or self._open()
            if step not in self.manager.all_steps():
                self.manager.save(step, args=ocp.args.Composite(**args), force=True)
                self.saving = step
        except Exception as error:  # Orbax raises many kinds
            self._try_again(step, error)
            return False
        return True

    def _open(self):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(self.keep),
            cleanup_tmp_directories=True,
            **({"multiprocessing_options": _alone(), "create": False} if self.gathers else {}),
        )
        if self.gathers:
            self.run.checkpoints.mkdir(exist_ok=True)
        return ocp.CheckpointManager(self.run.checkpoints, options=options)

    def _settle(self):
        """Wait for the save in the background; whether that went well."""
        step, error = self._wait()
        if error:
            self._try_again(step, error)
        return not error

    def _wait(self):
        """Wait for the save in the background: its update, and what it failed with."""
        step, self.saving = self.saving, None
        if step is not None and self.manager is not None:
            try:
                self.manager.wait_until_finished()
            except Exception as error:
                return step, error
            self._require_folder()
            self.failures = 0
            if not self.read_back:
                self._read_back(step)
        return step, None

    def _read_back(self, step):
        """Whatever keeps what is saved here from being read again should be known now, not when it is needed."""
        try:
            for name in ("params", "train"):  # one after the other, to take less memory
                _load(self.run.checkpoint(step), (name,), self.mesh)
            self.read_back = True
        except Exception as error:
            if not _may_pass(error):  # else the next one is read
                raise UserError(
                    f"{self.run.path}: checkpoint {step} was saved, but cannot be read again ({_cause(error)}); "
                    "choose another `run_dir`, on another disk"
                ) from None

    def _try_again(self, step, error):
        """Say what a save failed with, and drop its manager, which may be of no more use; UserError for the third."""
        self.failures += 1
        self._close()
        self._require_folder()
        if self.failures > len(PAUSES) or jax.process_count() > 1:
            raise self._failed(step, error) from None
        self.log(f"checkpoint {step} could not be saved ({_cause(error)}); trying again")
        time.sleep(PAUSES[self.failures - 1])

    def _require_folder(self):
        try:
            place = os.stat(self.run.path).st_ino
        except FileNotFoundError:
            place = None
        self.place = self.place or place
        if not place or place != self.place:  # TensorStore makes a folder anew
            raise UserError(
                f"{self.run.path} is gone, removed or moved while it was trained, and its checkpoints with it; "
                "move it back, or remove what is left, and the same command goes on"
            )

    def _failed(self, step, error):
        failed = f"{self.run.path}: checkpoint {step} could not be saved ({_cause(error)})"
        return UserError(f"{failed}; {self._safe()} once that is put right", "train", run_dir=self.run.path)

    def _safe(self):
        """What is left of the run, and how it goes on."""
        safe = self.run.steps()
        whole = f"checkpoint {safe[-1]} is safe, and" if safe else "there is no checkpoint yet, and"
        goes_on = "goes on from there" if safe else "starts again"
        return f"{whole} the same command {goes_on}"

    def _close(self):
        manager, self.manager = self.manager, None
        if manager is None:
            return
        with suppress(Exception):
            manager.wait_until_finished()
        with suppress(Exception):
            manager.close()

    def __enter__(self) -> "Saver":
        _hush()
        return self

    def __exit__(self, kind, *_) -> None:
        """Wait until everything is on disk. Raises UserError where it cannot be, unless there is another error."""
        try:
            step, error = self._wait()
            if error and not kind:
                raise self._failed(step, error)
        finally:
            self._close()


@cache
def _hush():
    """What Orbax raises becomes one line of ours. It also logs it, and its threads go on after that and print more."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    lost = lambda record: "never retrieved" in record.msg and re.search("(?i)ocdbt|tensorstore", str(record.exc_info))
    logging.getLogger("asyncio").addFilter(lambda record: not lost(record))
    orbax = "CheckpointHandler|run_sync|_read_array|_array_metadatas"
    warnings.filterwarnings("ignore", f"coroutine '.*({orbax}).*' was never awaited", RuntimeWarning)
    show, show_ignored = sys.excepthook, sys.unraisablehook
    late = lambda error: isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    code = lambda what: getattr(getattr(what.object, "cr_code", None), "co_filename", "")  # of a coroutine
    left = lambda what: "orbax" in code(what) or getattr(what.object, "__qualname__", "") == "BaseEventLoop.__del__"
    sys.excepthook = lambda kind, error, trace: None if late(error) else show(kind, error, trace)
    sys.unraisablehook = lambda what: None if late(what.exc_value) or left(what) else show_ignored(what)


def restore(run: Run, log: Callable[[str], None], mesh: Mesh | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run, on a mesh or on one device; None where there is none yet.

    A damaged one is named through `log` and moved out of the way, into `damaged/`, so that its update can be saved
    again. Raises UserError where every checkpoint is damaged, or one cannot be read now; then nothing is moved.
    """
    gathers = _gathers(run)
    found, damaged = _newest_whole(run, log, ("params", "train"), None if gathers else mesh)
    for step in damaged if processes.is_first() else ():
        aside = run.damaged / str(step)
        aside.parent.mkdir(exist_ok=True)
        while aside.exists():
            aside = aside.with_name(aside.name + "+")
        with suppress(FileNotFoundError):  # of one in a bucket there may be nothing here
            os.replace(run.checkpoint(step), aside)
        run.withdraw(step)
        log(f"checkpoint {step} was moved to {aside}")
    processes.highest(0)  # no process goes on before that is done
    if found is None:
        return None
    parts, meta = found
    if gathers and mesh is not None:
        whole = dict(zip(("params", "train"), _parts(updates.shapes(meta.config, mesh).state), strict=True))
        parts = sharding.spread_tree(parts, jax.tree.map(lambda shape: shape.sharding, whole))
    return Checkpoint(TrainState(params=parts["params"], **parts["train"]), meta)


def _gathers(run: Run) -> bool:
    """Whether every process has a folder of its own for this run, where the first one saves, and each restores, all."""
    return storage.is_remote(run.path) and jax.process_count() > 1


def _alone():
    """Orbax without the other processes."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def load_params(run: Run, log: Callable[[str], None], update: int | None = None) -> tuple[parameters.Params, Meta]:
    """Parameters and meta of the checkpoint of an update, or of the newest whole one; nothing in the run is touched.

    The run may be training: a checkpoint that makes way for a newer one is not a damaged one. Raises UserError where
    there is none.
    """
    found, _ = _newest_whole(run, log, ("params",), None, update)
    if found is None:
        raise UserError(f"{run.path} holds no checkpoint yet", "train", run_dir=run.path)
    return found[0]["params"], found[1]


def _newest_whole(
    run: Run, log: Callable[[str], None], names: tuple[str, ...], mesh: Mesh | None, update: int | None = None
) -> tuple[tuple[dict[str, Any], Meta] | None, list[int]]:
    """Parts and meta of the newest whole checkpoint, and the damaged ones after it."""
    jax.devices()  # that there are none is no damage
    known = _patiently(run.steps, run.checkpoints)
    kept = ", ".join(map(str, known)) or "none"
    if update not in (None, *known):
        raise UserError(f"{run.path} holds no checkpoint {update}; there are: {kept}")
    among, damaged, causes = known if update is None else [update], [], []
    for step in reversed(among):
        path = run.checkpoint(step)
        try:
            run.fetch(step, names)
            return _patiently(lambda path=path: _load(path, names, mesh), path), damaged
        except UserError:
            raise
        except Exception as error:  # Orbax raises many kinds; whatever it is, the step cannot be read
            if run.steps() != known:  # the run is training, and this step may have made way for a newer one
                return _newest_whole(run, log, names, mesh, update)
            causes.append(f"checkpoint {step} is damaged ({_cause(error)})")
            damaged.append(step)
            log(causes[-1] + "; trying the one before it" * (step > among[0]))
    if damaged:
        raise UserError(f"no checkpoint of {run.path} can be read: {'; '.join(causes)}")
    return None, []


def _patiently(read: Callable[[], T], path: Path) -> T:
    """What `read()` returns, tried again where an error may pass. Raises UserError where it stays."""
    _hush()
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except Exception as error:
            if not _may_pass(error):
                raise
            pause = next(pauses, None)
            if pause is None or jax.process_count() > 1:  # the others would not wait
                cause = _cause(error)
                raise UserError(f"{path} cannot be read now ({cause}); nothing was changed: try again later") from None
        time.sleep(pause)


def _chain(error):
    """An error and what it came from, outermost first."""
    while error is not None:
        yield error
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
        error = inner or error.__cause__ or error.__context__


def _system_errors(error):
    """The system's numbers of what an error came from, which TensorStore has in its text."""
    for one in _chain(error):
        if match := re.search(r"os_error_code='(\d+)'", str(one)):
            yield int(match[1])
        elif isinstance(one, OSError):
            yield one.errno or (errno.ENOENT if isinstance(one, FileNotFoundError) else errno.EIO)


MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
TRANSIENT = "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|can't start new thread"


def _may_pass(error):
    """Whether an error is the system's or for want of memory, and so proves nothing of what is on disk."""
    return any(number not in MISSING for number in _system_errors(error)) or any(
        isinstance(one, MemoryError) or re.search(TRANSIENT, str(one)) for one in _chain(error)
    )


def _cause(error):
    """What an error came from, in a few words."""
    if reasons := [os.strerror(number) for number in _system_errors(error) if number not in MISSING]:
        return reasons[0]
    *_, root = _chain(error)
    lines = str(root).strip().splitlines()
    return lines[0][:200] if lines else type(root).__name__


def _load(step_dir, names, mesh):
    options = _alone() if mesh is None and jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    composite = ocp.CompositeOptions(multiprocessing_options=options)
    handler = ocp.CompositeCheckpointHandler(composite_options=composite)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        fields = reader.restore(step_dir, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if _meta_digest(fields) != fields["digests"]["meta"]:
            raise ValueError("meta does not match its digest")
        try:
            meta = _from_json(fields)
        except TypeError as error:
            raise UserError(f"{step_dir} was written by a newer version of this program ({error})") from None
        mesh = mesh or sharding.one_device()
        state = updates.shapes(meta.config, mesh).state
        carry = "carry" if "batch_size" in fields["config"] else "lanes"  # as version 0.1.0 called it
        abstract = dict(zip(("params", "train"), _parts(state, carry), strict=True))
        args = {name: ocp.args.StandardRestore(abstract[name]) for name in names}
        parts = reader.restore(step_dir, args=ocp.args.Composite(**args))
    for name in names:
        known = fields["digests"][name]
        if known != (fingerprint if len(known) == 32 else digest)(parts[name]):  # a whole digest: the first runs
            raise ValueError(f"{name} do not match their digest: bytes have changed")
    if "train" in names:
        parts["train"]["carry"] = parts["train"].pop(carry)
    return {name: parts[name] for name in names}, meta


def _parts(state: TrainState, carry="carry"):
    """A state as the two parts of a checkpoint, with this name for the carry."""
    fields = state._asdict()
    fields[carry] = fields.pop("carry")
    return fields.pop("params"), fields


def _to_json(meta: Meta, digests: dict[str, str]) -> dict[str, Any]:
    """The meta as plain values, with the digests of all three parts."""
    fields = meta._asdict() | {"config": to_dict(meta.config), "digests": digests}
    fields["schedule"] = [fields.pop("start"), fields.pop("end")]
    return fields | {"digests": digests | {"meta": _meta_digest(fields)}}


def _from_json(fields: dict[str, Any]) -> Meta:
    """Inverse of `_to_json`, for version 0.1.0, too. Raises TypeError for fields that are not known."""
    start, end = fields["schedule"]
    same = {name: fields[name] for name in ("data", "position", "update")}
    bits = fields.get("validation_bits_per_byte", fields.get("heldout_bits_per_byte"))
    return Meta(from_dict(fields["config"]), start=start, end=end, validation_bits_per_byte=bits, **same)


def _meta_digest(fields: dict[str, Any]) -> str:
    digests = {k: v for k, v in fields["digests"].items() if k != "meta"}
    return hashlib.sha256(json.dumps(fields | {"digests": digests}, sort_keys=True).encode()).hexdigest()


def saved_meta(run: Run) -> Meta | None:
    """The meta of the newest checkpoint whose meta is whole; None where there is none.

    No device is used: processes that train together have not met when it is read.
    """
    for step in reversed(run.steps()):
        with suppress(UserError, OSError, TypeError, KeyError):
            run.fetch(step, ())
            meta = read_json(run.checkpoint(step) / "meta" / "metadata", {"config": dict, "digests": dict})
            if _meta_digest(meta) == meta["digests"]["meta"]:
                return _from_json(meta)
    return None
