"""Training itself: prepare (a new state, or a restored one), fit (updates, and what is due between them), finish."""

import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from types import FrameType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Int

from mlstm_jax import config as configs
from mlstm_jax import hardware, signals
from mlstm_jax.cli import program
from mlstm_jax.cli.arguments import Named, stored_config
from mlstm_jax.cli.program import log, note
from mlstm_jax.config import Config, ModelConfig, Precision
from mlstm_jax.corpus import batches
from mlstm_jax.corpus.batches import Batch
from mlstm_jax.corpus.build import Data
from mlstm_jax.disk import cache_dir
from mlstm_jax.errors import UserError
from mlstm_jax.inference import generate, language_model
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model import parameters
from mlstm_jax.planning import plan
from mlstm_jax.report import plots
from mlstm_jax.run import Run
from mlstm_jax.tasks import sst
from mlstm_jax.text import printable, show
from mlstm_jax.training import checkpoint, processes, sharding, updates, validation
from mlstm_jax.training.checkpoint import Meta
from mlstm_jax.training.log import Log
from mlstm_jax.training.updates import TrainState

PRIMES = ("I ", "This movie ", "The ")
HOPELESS_AFTER = 100  # updates; until then a loss above that of guessing may still come down


@dataclass
class Training:
    """A run while it is trained: what does not change, and the state and meta, which every update replaces."""

    config: Config
    run: Run
    data: Data
    mesh: Mesh
    precision: Precision
    state: TrainState
    meta: Meta
    update: int  # the number of updates done


def is_finished(run: Run, config: Config, named: Named) -> bool:
    """Whether the newest checkpoint is the last one, which is said then; no device and no data are looked at.

    Raises UserError where the config is another run's.
    """
    saved = checkpoint.saved_meta(run)
    if saved is None or saved.update < saved.end or saved.update != run.steps()[-1]:
        return False
    try:
        run.read_config()
    except (OSError, ValueError, TypeError, KeyError):
        return False  # lost or damaged: it is written again where the run is opened
    require_same_run(run, of_weights(config, saved.config.model, named.sizes) if config.init else config, saved)
    if processes.is_first_named(config):
        say_finished(run, saved.update)
    return True


def say_finished(run: Run, update: int) -> None:
    """Print that a run is finished, and what to do with it."""
    log(f"{run.path} is finished ({update:,} updates); --more-updates N trains it on. Try:")
    log(next_steps(run))


def train(config: Config, run: Run, data: Data, named: Named) -> int:
    """Train a run to its end, or until a signal. Returns the exit status.

    Initial weights must agree with the sizes that are `named`, and the mesh with the axes.
    """
    training = prepare(config, run, data, named)
    if training.update == training.meta.end:  # known only now where a newer checkpoint was damaged
        say_finished(run, training.update)
        return 0
    compiled = programs(training)
    return finish(training, compiled, fit(training, compiled))


def prepare(config: Config, run: Run, data: Data, named: Named) -> Training:
    """A training at its first update, or at the newest checkpoint's. Raises UserError where the two do not fit."""
    precision = hardware.default_precision() if config.precision == "auto" else config.precision
    saved, first = checkpoint.saved_meta(run), None
    if config.init and saved:
        config = of_weights(config, saved.config.model, named.sizes)  # taken from the weights then
    elif config.init:
        first = initial_weights(config.init)
        config = of_weights(config, ModelConfig(hidden=first.hidden, embed=first.embed), named.sizes)
    if saved:
        require_same_run(run, config, saved)
    mesh, change = sharding.fitted(config, named.axes)
    if change:
        note(change)
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (set while jax runs)
    if jax.default_backend() != "cpu" and not cache:  # another CPU's programs may crash
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    restored = checkpoint.restore(run, log, mesh)
    kept, planned = configs.kept(config), planned_updates(config, data)
    if first:
        note(f"passes over the data: {planned / len(data.batches):.3g}, in {planned:,} updates")
    if restored:
        state = restored.state
        resume(run, config, data, restored.meta)
        meta = restored.meta._replace(config=kept)
        note(f"resuming {run.path} after update {int(state.update):,}")
    else:
        if run.metrics_file.exists():
            log(f"{run.path} has no checkpoint: starting again from update 0")
        state, meta = new_state(config, mesh, first), Meta(kept, data.corpus.digest, start=0, end=planned)
    training = Training(config, run, data, mesh, precision, state, meta, int(state.update))
    if config.more_updates:
        extend(training)
    if processes.is_first():
        run.write_config(kept)  # not before all that could refuse it
        for file in first.licences if first else ():
            shutil.copyfile(file, run.path / file.name)  # what is learnt from weights is given out as they are
    return training


def initial_weights(path: str) -> language_model.LanguageModel:
    """The model that a new run starts from."""
    first = language_model.load(path)
    first.require_bytes()
    note(f"starting from {path}: {first.hidden} units, embedding of {first.embed}, a fresh optimizer")
    return first


def of_weights(config: Config, model: ModelConfig, sizes: Collection[str]) -> Config:
    """The config with the model that its initial weights are. Raises UserError where another size was asked for."""
    named = [
        f"`model.{name}` {getattr(config.model, name)}"
        for name in sizes
        if getattr(config.model, name) != getattr(model, name)
    ]
    if named:
        raise UserError(
            f"{' and '.join(named)} contradict `init`, whose weights are {model.hidden} units and an embedding of "
            f"{model.embed} with gains of their own; leave out what contradicts them"
        )
    return replace(config, model=model)


def planned_updates(config: Config, data: Data) -> int:
    """How many updates a new run is to do. Raises UserError where that is more than can be counted."""
    planned = config.updates or max(1, round(min(config.epochs * len(data.batches), 2**31)))
    if planned >= 2**31:
        raise UserError("that many epochs are more than 2**31 - 1 updates; lower --epochs or name --updates")
    return planned


def new_state(config: Config, mesh: Mesh, first: language_model.LanguageModel | None) -> TrainState:
    """The state before the first update, from drawn weights or a model's, in its place on the mesh."""
    if first is None:
        return updates.draw_state(config, mesh)
    state = updates.init_state(first.params, config.batch_size)
    return sharding.spread_tree(state, updates.shardings(config, mesh))


def require_same_run(run: Run, config: Config, saved: Meta) -> None:
    """Raise UserError where the config differs from a checkpoint's in what may not change once a run has started."""
    old = saved.config
    fixed = {k: pair for k, pair in configs.differences(old, config).items() if k.split(".")[0] in configs.FIXED}
    if fixed:
        edited = configs.differences(old, stored_config(run) or old)
        undo = f"remove {run.config_file}, which was edited; then " * bool(fixed.keys() & edited.keys())
        raise UserError(
            f"{run.path} is another run: {_described(fixed)} may not change once a run has started; {undo}"
            f"{program.command('train', run_dir=run.path)} resumes it as it is, another --run-dir starts anew"
        )


def _described(changed) -> str:
    return ", ".join(f"{name} ({a} -> {b})" for name, (a, b) in changed.items())


def resume(run: Run, config: Config, data: Data, saved: Meta) -> None:
    """Print what changes in a run that has started. Raises UserError for what may not, and for other data."""
    every = configs.differences(saved.config, config)
    if changed := {k: pair for k, pair in every.items() if k not in ("run_dir", *configs.ONCE)}:
        log(f"changed for this run from now on: {_described(changed)}")
    if saved.data != data.corpus.digest:
        raise UserError(
            f"the data of {run.path} have changed: {config.data} does not give the bytes that this run was trained on"
        )


def extend(training: Training) -> None:
    """Let a finished run do more updates, with a new decay. Raises UserError for one that is not finished."""
    if training.update < training.meta.end:
        left = training.meta.end - training.update
        raise UserError(f"--more-updates goes with a finished run; this one has {left:,} of its updates to do")
    more = training.config.more_updates
    training.meta = training.meta._replace(start=training.update, end=training.update + more)


class Compiled(NamedTuple):
    """The programs of a training, none of them compiled before its first call."""

    train_step: Callable
    prepare: Callable  # the weights for validation, in their places
    prepare_whole: Callable  # and for sampling, whole on every device


def programs(training: Training) -> Compiled:
    """The programs of a training."""
    config, mesh, precision = training.config, training.mesh, training.precision
    alone = sharding.named(mesh, PartitionSpec())
    return Compiled(
        train_step=updates.jitted(config, precision, mesh),
        prepare=jax.jit(parameters.prepare, out_shardings=sharding.named(mesh, sharding.PREPARED)),
        prepare_whole=jax.jit(partial(parameters.prepare_to_read, precision=precision), out_shardings=alone),
    )


class Duty(NamedTuple):
    """What is due every so many updates (0: never), and at the end of the run."""

    every: int
    do: Callable[[], None]
    at_end: bool = True

    def is_due(self, update: int, end: int) -> bool:
        """Whether it is due after this update."""
        return self.every > 0 and (self.at_end if update == end else update % self.every == 0)


class Stopped(NamedTuple):
    """Why the updates stopped: at the end, with the bits per byte of the test, or by a signal."""

    test_bits_per_byte: float | None = None
    signal: int = 0


def fit(training: Training, compiled: Compiled) -> Stopped:
    """Update until the end, or until a signal; between updates log, validate, sample and save; save at last."""
    run, begun, mesh = training.run, training.update, training.mesh
    for line in plan.explain(training.config, training.state, mesh, training.precision, training.meta.end - begun):
        note(program.flags(line))
    own = sharding.own_rows(mesh, training.config.batch_size)
    check, position = training.data.corpus.check, training.meta.position
    with (
        closing(batches.stream(training.data.batches, position, check, own)) as stream,
        Interrupt() as interrupt,
        Log(run, begun, training.meta.end, keep=processes.is_first()) as out,
        checkpoint.Saver(run, training.config.keep, out.warn, mesh) as saver,
        processes.ending_with_others(),
    ):
        recent, duties = periodic(training, compiled, out, saver)
        out.log("compiling ...")
        if training.config.init and begun == 0 and training.config.eval_every:
            validate(training, compiled, out)  # what the initial weights know of these data, to compare with
        while training.update < training.meta.end:
            if training.update > training.meta.start and (number := processes.highest(interrupt.signal)):
                saver.save(training.state, training.meta, wait=True)
                return Stopped(signal=number)
            saver.check(training.state, training.meta)
            recent.append(take_update(training, compiled, stream, own))
            out.tick(training.update)
            if training.update == begun + 1:
                out.log(f"the first update took {recent[-1].seconds:.1f} seconds, most of it compilation")
            trace(training, training.update - begun)
            report_skipped(training, recent[-1], out, saver)
            for duty in duties:
                if duty.is_due(training.update, training.meta.end):
                    duty.do()
        test = bits_per_byte(training, compiled, training.data.corpus.test)
        out.metrics(training.update, {"test_bits_per_byte": test})
        saver.save(training.state, training.meta, wait=True)  # after the test: a finished run has one
    return Stopped(test_bits_per_byte=test)


class Done(NamedTuple):
    """An update that was done: its metrics, its learning rate, and its seconds, with the wait for its data."""

    metrics: dict[str, np.ndarray]
    learning_rate: float
    seconds: float

    @property
    def was_skipped(self) -> bool:
        """Whether it was not finite and changed nothing."""
        return bool(self.metrics["skipped_in_a_row"])


def take_update(training: Training, compiled: Compiled, stream: Iterator[Batch], own: Int[np.ndarray, "own"]) -> Done:
    """Do one update on the next batch, and wait for it."""
    since = time.monotonic()
    rows, fresh = next(stream)
    batch = sharding.place(rows, own, training.mesh, training.config.batch_size)
    rate = np.float32(
        updates.learning_rate(
            training.config.learning_rate,
            training.update,
            training.meta.start,
            training.meta.end,
            training.config.decay_fraction,
        )
    )
    training.state, metrics = compiled.train_step(training.state, batch, fresh, rate)
    training.meta = training.meta._replace(position=training.meta.position + 1)
    training.update += 1
    metrics = jax.device_get(metrics)  # waits for the update
    return Done(metrics, float(rate), time.monotonic() - since)


def periodic(
    training: Training, compiled: Compiled, out: Log, saver: checkpoint.Saver
) -> tuple[list[Done], list[Duty]]:
    """The list that updates are added to, and what is due between them, in this order.

    Validation comes before saving: a checkpoint holds the newest figure.
    """
    config, recent, warned = training.config, [], []

    def log_progress() -> None:
        if values := summarize(training, recent):
            out.training(training.update, values, whole=config.log_every)
            if training.update >= HOPELESS_AFTER and values["bits_per_byte"] > 8 and not warned:
                warned.append(training.update)
                out.warn(worse_than_guessing(config, values["bits_per_byte"]))
        recent.clear()

    return recent, [
        Duty(config.log_every, log_progress),
        Duty(config.eval_every, lambda: validate(training, compiled, out)),
        Duty(config.sample_every, lambda: out.log(sample(training, compiled, 0))),
        Duty(config.save_every, lambda: saver.save(training.state, training.meta), at_end=False),
    ]


def summarize(training: Training, recent: list[Done]) -> dict[str, float]:
    """The metrics of the last updates, averaged over those that were not skipped; none where all were."""
    finite = [done.metrics for done in recent if not done.was_skipped]
    if not finite:
        return {}
    config, devices = training.config, training.mesh.size
    rate = len(recent) * config.batch_size * config.seq_length / sum(done.seconds for done in recent)
    values = {
        "bits_per_byte": fmean(metrics["bits_per_byte"] for metrics in finite),
        "gradient_norm": fmean(metrics["gradient_norm"] for metrics in finite),
        "learning_rate": recent[-1].learning_rate,
        "bytes_per_second": rate,
        "bytes_per_second_per_chip": rate / devices,
        "skipped": int(recent[-1].metrics["skipped"]),
        "averaged": len(finite),
    }
    if chip := hardware.chip_of(jax.devices()[0].device_kind):
        values["model_flops_utilization"] = rate * hardware.flops_per_byte(config.model) / devices / chip.flops
    return values


def worse_than_guessing(config: Config, bits: float) -> str:
    """What to change in a run whose loss is above that of guessing."""
    clip_norm = f"a --clip-norm below {config.clip_norm:g}" if config.clip_norm else "a --clip-norm such as 1"
    return (
        f"warning: {bits:.4g} bits per byte are worse than guessing, which takes 8: stop this run, and start a new one "
        f"with a --learning-rate below {config.learning_rate:g}, or with {clip_norm}"
    )


def report_skipped(training: Training, last: Done, out: Log, saver: checkpoint.Saver) -> None:
    """Print that an update was skipped. Raises UserError where ten in a row were, once the run is saved."""
    if last.was_skipped:
        out.warn(f"update {training.update:,} was not finite: skipped, {last.metrics['skipped']} so far")
    if last.metrics["skipped_in_a_row"] >= 10:
        saver.save(training.state, training.meta)
        raise UserError(
            f"ten updates in a row were not finite, so the run was stopped; {training.run.path} holds the state before "
            "them. A new run with a lower --learning-rate or a --clip-norm may go better"
        )


def bits_per_byte(training: Training, compiled: Compiled, part: np.ndarray) -> float:
    """What the model costs on held-out bytes."""
    config = training.config
    scored = batches.scoring_batches(part[: config.eval_bytes], config.eval_batch_size, 128)
    weights = compiled.prepare(training.state.params)
    return validation.bits_per_byte(weights, scored, training.precision, training.mesh)


def validate(training: Training, compiled: Compiled, out: Log) -> None:
    """Measure the bits per byte of the validation set, for the log and the next checkpoint."""
    bits = bits_per_byte(training, compiled, training.data.corpus.validation)
    training.meta = training.meta._replace(validation_bits_per_byte=bits)
    out.metrics(training.update, {"validation_bits_per_byte": bits})
    when = f"update {training.update:,}" if training.update else "before update 1"
    out.log(f"{when}: {bits:.4f} validation bits per byte")


def sample(training: Training, compiled: Compiled, number: int) -> str:
    """A line that begins with one of `PRIMES`; all processes must call it, and the first one gets it."""
    whole = compiled.prepare_whole(training.state.params)
    if not processes.is_first():
        return ""
    prime, weights = PRIMES[number], jax.tree.map(lambda w: w.addressable_data(0), whole)
    options = SamplingOptions(seed=(training.config.seed + training.update + number) % 2**32)
    (text,) = generate.generate(weights, b"\n " + prime.encode(), 1, 160, options=options)
    return "sample: " + printable(" ".join((prime + show(text)).split()))


def finish(training: Training, compiled: Compiled, stopped: Stopped) -> int:
    """Print how the run ended, with its loss curve and samples where it is finished. Returns the exit status."""
    run = training.run
    if stopped.signal:
        again = program.command("train", run_dir=run.path)
        log(f"stopped and saved after update {training.update:,} of {training.meta.end:,}; {again} goes on")
        return 128 + stopped.signal
    samples = [sample(training, compiled, number) for number in range(len(PRIMES))]
    if not processes.is_first():
        return 0
    known = {"validation": training.meta.validation_bits_per_byte, "test": stopped.test_bits_per_byte}
    log("; ".join(f"{name}: {bits:.4f} bits per byte" for name, bits in known.items() if bits is not None))
    plots.attempt(partial(plots.loss_curve, run.read_metrics(), run.loss_curve), "loss curve")
    log("\n".join(samples))
    log(f"the run is in {run.path}. Try:\n{next_steps(run)}")
    return 0


def next_steps(run: Run) -> str:
    """The two commands to try on a trained run: neither needs a network."""
    task = {} if sst.is_at_hand() else sst.OTHERWISE
    return (
        f"  {program.command('eval', run.path, **task)}\n  {program.command('sample', run.path, prime='This movie ')}"
    )


def trace(training: Training, done: int) -> None:
    """Trace as many updates as asked for, from the third one of this start on: the ones before it compile."""
    count, folder, last = training.config.profile, training.run.profile, training.update == training.meta.end
    if count and done == 2 and not last:
        jax.profiler.start_trace(str(folder))
    elif count and (done == 2 + count or 2 < done < 2 + count and last):
        jax.profiler.stop_trace()
        log(f"a trace of {done - 2} updates is in {folder}; look at it with TensorBoard or Perfetto")


class Interrupt:
    """Remembers a signal that ends programs, so that the loop can save first; a second Ctrl-C or SIGTERM ends at once.

    The others may come twice: a terminal that closes sends SIGHUP itself, and so does its shell.
    """

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "Interrupt":
        self.before = {number: signal.signal(number, self.remember) for number in signals.ending()}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def remember(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; the terminal may have gone with it."""
        self.signal = number
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGHUP:
            signals.mute_what_is_gone()
