"""Train an mLSTM byte by byte: `python train.py --config configs/amazon.py`. See --help for every field."""

import glob
import re
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from mlstm_jax import config as configs
from mlstm_jax import signals
from mlstm_jax.cli import arguments
from mlstm_jax.config import Config
from mlstm_jax.disk import locked, raise_file_limit, read_json
from mlstm_jax.errors import UserError
from mlstm_jax.text import log

PRIMES = ("I ", "This movie ", "The ")
HOPELESS_AFTER = 100  # updates; until then a loss above that of guessing may still come down


def stored_config(run_dir: Path) -> Config | None:
    """The config that a run was started with: its config.json, or where that is lost, what a checkpoint holds of it."""
    path, error = run_dir / "config.json", None
    try:
        return configs.from_dict(read_json(path, {"model": dict}))
    except (FileNotFoundError, NotADirectoryError):
        if not (run_dir / "checkpoints").is_dir():
            return None
    except (ValueError, TypeError, KeyError) as caught:
        error = caught
    from mlstm_jax.training import checkpoint  # slow, and seldom needed here

    if found := checkpoint.saved_config(run_dir):
        config, update = found
        log(f"{path} is {'damaged' if error else 'missing'}: taking the config that checkpoint {update} holds")
        return config
    if error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or name a new folder with --run-dir")
    return None


def run(args: list[str]) -> int:
    """Train, or resume, the run that the command line describes. Returns the exit status."""
    raise_file_limit()
    config, old = arguments.from_command_line(args, stored_config)
    if config.plan:
        from mlstm_jax.planning import plan

        return plan.plan(config)
    run_dir = Path(config.run_dir)
    if not old and run_dir.exists():
        empty = run_dir.is_dir() and all(path.name == ".lock" for path in run_dir.iterdir())
        if not empty:
            raise UserError(f"{run_dir} exists and is not a run; name a new folder with --run-dir")

    found = old or not config.init or Path(config.init).exists()
    if not found:
        raise UserError(f"--init {config.init} does not exist; name a run's folder, or another program's weights")
    config = find_data(config, old)
    path = str(run_dir.absolute())
    if (
        glob.escape(path) != path or "\\" in path
    ):  # Orbax takes the name for a pattern, and what it saves there could not be read again
        raise UserError(
            f"{path}: no checkpoint can be kept where a name has [ * ? or a backslash in it; choose another --run-dir"
        )

    # Data first: what is wrong with it should be known before the slow imports.
    from mlstm_jax.corpus.batches import Batches
    from mlstm_jax.corpus.build import build, is_prepared

    if config.verify and not is_prepared(config.data):
        raise UserError(
            f"there is nothing to verify: {config.data} is no folder made by mlstm corpus, whose shards have checksums"
        )
    corpus = build(config)
    batches = Batches(corpus.train, config.batch_size, config.seq_length)
    for name, part in (("validation", corpus.validation), ("test", corpus.test)):
        if len(part) <= config.eval_batch_size:
            raise UserError(
                f"only {len(part)} bytes are held out for {name}, fewer than one for each of {config.eval_batch_size} "
                "rows; "
                "raise --validation-fraction or lower --eval-batch-size"
            )
    if config.verify:
        for shard in range(len(corpus.train)):
            corpus.check(shard)
        log(corpus.summary)
        log(f"all {len(corpus.train)} shards, validation and test bytes are as they were written")
        return 0

    from mlstm_jax.training import processes

    processes.start(config)
    if not processes.is_first():
        signals.mute()  # one process speaks for all
        return _train(config, run_dir, corpus, batches)
    for note in corpus.notes:
        log(note, sys.stderr)
    log(corpus.summary)
    log(
        f"one pass is {len(batches):,} updates of {config.batch_size} sequences x {config.seq_length} bytes; "
        f"{batches.unused:,} bytes at shard ends are unused"
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir, "trained"):
        return _train(config, run_dir, corpus, batches)


def find_data(config: Config, old: Config | None) -> Config:
    """The config with the whole path of its data. Raises UserError where a run's leads nowhere from here."""
    data = Path(config.data)
    if data.exists():
        return replace(config, data=str(data.absolute()))
    named_otherwise = config.data in (Config.data, "-") or re.search(r"[:*?[]", config.data)  # tfds:NAME, patterns
    if old and config.data == old.data and not data.is_absolute() and not named_otherwise:
        raise UserError(
            f"{config.data} is not here: this run's data were named so from the folder where it was started; "
            "name where they lie now with --data"
        )
    return config


def compare(run_dir: Path, old: Config, config: Config) -> None:
    """Announce what changes in a run that has started; what may not change is a UserError with the fields."""
    changed = {k: pair for k, pair in configs.differences(old, config).items() if k not in ("run_dir", *configs.ONCE)}
    fixed = {k: pair for k, pair in changed.items() if k.split(".")[0] in configs.FIXED}
    described = ", ".join(f"{name} ({a} -> {b})" for name, (a, b) in (fixed or changed).items())
    if fixed:
        edited = configs.differences(old, stored_config(run_dir) or old)
        undo = f"remove {run_dir / 'config.json'}, which was edited; then " * bool(fixed.keys() & edited.keys())
        raise UserError(
            f"{run_dir} is another run: {described} may not change once a run has started; {undo}"
            f"python train.py --run-dir {configs.as_argument(run_dir)} resumes it as it is, "
            "another --run-dir starts anew"
        )
    if changed:
        log(f"changed for this run from now on: {described}")


def _train(config, run_dir, corpus, batches) -> int:
    """The run itself: state, resume, loop, end."""
    import jax
    import numpy as np

    from mlstm_jax import hardware
    from mlstm_jax import run as run_folder
    from mlstm_jax.corpus.batches import scoring_batches, stream
    from mlstm_jax.disk import cache_dir
    from mlstm_jax.inference import generate, language_model
    from mlstm_jax.model import parameters
    from mlstm_jax.planning import plan
    from mlstm_jax.text import printable, show
    from mlstm_jax.training import checkpoint, processes, sharding, updates, validation
    from mlstm_jax.training.log import Log

    precision = hardware.default_precision() if config.precision == "auto" else config.precision
    mesh = sharding.make(config)
    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # another CPU's programs may crash
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))

    # State: a new one, one that starts from other weights, or the newest whole checkpoint's.
    restored = checkpoint.restore(run_dir, log, mesh)
    if config.init and restored:
        config = replace(config, model=configs.from_dict(restored[1]["config"]).model)  # taken from the weights then
    elif config.init:
        first = language_model.load(config.init)
        first.require_bytes()
        size = {"hidden": first.hidden, "embed": first.embed}
        config = replace(config, model=replace(config.model, **size))
        log(f"starting from {config.init}: {first.hidden} units, embedding of {first.embed}, a fresh optimizer")
    planned = config.updates or max(1, round(min(config.epochs * len(batches), 2**31)))
    if planned >= 2**31:
        raise UserError("that many epochs are more than 2**31 - 1 updates; lower --epochs or name --updates")
    kept = configs.kept(config)
    meta = {
        "config": configs.to_dict(kept),
        "data": corpus.digest,
        "position": 0,
        "schedule": [0, planned],
        "validation_bits_per_byte": None,
    }
    if restored:
        state, saved = restored
        compare(run_dir, configs.from_dict(saved["config"]), config)
        if saved["data"] != corpus.digest:
            raise UserError(
                f"the data of {run_dir} have changed: {config.data} does not give the bytes that this run was trained "
                "on"
            )
        meta |= {name: saved[name] for name in ("position", "schedule", "validation_bits_per_byte")}
        log(f"resuming {run_dir} after update {int(state.update):,}")
    else:
        if (run_dir / "metrics.jsonl").exists():
            log(f"{run_dir} has no checkpoint: starting again from update 0")
        if config.init:
            state = updates.init_state(first.params, config.batch_size)
            state = sharding.spread_tree(state, updates.shardings(config, mesh))
        else:
            state = updates.draw_state(config, mesh)
    update, (start, end) = int(state.update), meta["schedule"]
    if config.more_updates:
        if update != end:
            raise UserError(
                f"--more-updates goes with a finished run; this one has {end - update:,} of its updates to do"
            )
        start, end = meta["schedule"] = [update, update + config.more_updates]
    if processes.is_first():
        run_folder.write_config(run_dir, kept)  # not before all that could refuse it
    if update == end:
        log(f"{run_dir} is finished ({end:,} updates); --more-updates N trains it on. Try:\n{next_steps(run_dir)}")
        return 0

    for line in plan.explain(config, state, mesh, precision, end - update):
        log(line)
    per_byte, chip = hardware.flops_per_byte(config.model), hardware.chip_of(jax.devices()[0].device_kind)

    # What is compiled: an update, and the weights for scoring and, whole on every device, for sampling.
    alone = sharding.named(mesh, jax.sharding.PartitionSpec())
    train_step = updates.jitted(config, precision, mesh)
    prepare = jax.jit(parameters.prepare, out_shardings=sharding.named(mesh, sharding.PREPARED))
    prepare_whole = jax.jit(partial(parameters.prepare_to_read, precision=precision), out_shardings=alone)
    own = sharding.own_rows(mesh, config.batch_size)

    def score(part) -> float:
        batches = scoring_batches(part[: config.eval_bytes], config.eval_batch_size, 128)
        return validation.bits_per_byte(prepare(state.params), batches, precision, mesh)

    def sample(number) -> str:
        whole = prepare_whole(state.params)
        if not processes.is_first():
            return ""
        prime, weights = PRIMES[number], jax.tree.map(lambda w: w.addressable_data(0), whole)
        seed = config.seed + update + number
        (text,) = generate.generate(weights, b"\n " + prime.encode(), 1, 160, temperature=0.7, seed=seed)
        return "sample: " + printable(" ".join((prime + show(text)).split()))

    def every(interval: int) -> bool:
        return interval > 0 and (update % interval == 0 or update == end)

    recent, since, begun, hopeless = [], time.monotonic(), update, False
    with (
        closing(stream(batches, meta["position"], corpus.check, own)) as ready,
        Interrupt() as interrupted,
        Log(run_dir, update, end, keep=processes.is_first()) as out,
        checkpoint.Saver(run_dir, config.keep, out.log, mesh) as saver,
    ):
        out.log("compiling ...")
        first_update = time.monotonic()
        while update < end and not (stopped := processes.highest(interrupted.signal) if update > start else 0):
            saver.check(state, meta)
            rows, fresh = next(ready)
            batch = sharding.place(rows, own, mesh, config.batch_size)
            rate = np.float32(updates.learning_rate(config.learning_rate, update, start, end))
            state, metrics = train_step(state, batch, fresh, rate)
            meta["position"] += 1
            update += 1
            recent.append(jax.device_get(metrics))  # waits for the update
            out.tick(update)
            if first_update:
                out.log(f"the first update took {time.monotonic() - first_update:.1f} seconds, most of it compilation")
                first_update = None
            trace(config.profile, update - begun, run_dir, update == end)

            if recent[-1]["skipped_in_a_row"]:
                out.log(f"update {update:,} was not finite: skipped, {recent[-1]['skipped']} so far")
            if recent[-1]["skipped_in_a_row"] >= 10:
                saver.save(state, meta)
                raise UserError(
                    f"ten updates in a row were not finite, so the run was stopped; {run_dir} holds the state before "
                    "them. A new run with a lower --learning-rate or a --clip-norm may go better"
                )
            if every(config.log_every):
                done = [m for m in recent if not m["skipped_in_a_row"]]
                if done:
                    rate_of_bytes = len(recent) * config.batch_size * config.seq_length / (time.monotonic() - since)
                    values = {
                        "bits_per_byte": fmean(m["bits_per_byte"] for m in done),
                        "gradient_norm": fmean(m["gradient_norm"] for m in done),
                        "learning_rate": float(rate),
                        "bytes_per_second": rate_of_bytes,
                        "bytes_per_second_per_chip": rate_of_bytes / mesh.size,
                        "skipped": int(recent[-1]["skipped"]),
                        "averaged": len(done),
                    }
                    if chip:
                        values["model_flops_utilization"] = rate_of_bytes * per_byte / mesh.size / chip.flops
                    out.training(update, values, whole=config.log_every)
                    if not hopeless and update >= HOPELESS_AFTER and values["bits_per_byte"] > 8:
                        hopeless = True
                        out.log(worse_than_guessing(config, values["bits_per_byte"]))
                recent, since = [], time.monotonic()
            if every(config.eval_every):
                meta["validation_bits_per_byte"] = score(corpus.validation)
                out.metrics(update, {"validation_bits_per_byte": meta["validation_bits_per_byte"]})
                out.log(f"update {update:,}: {meta['validation_bits_per_byte']:.4f} validation bits per byte")
            if every(config.sample_every):
                out.log(sample(0))
            if every(config.save_every) and update < end:  # the last one comes after the test
                saver.save(state, meta)
            if not recent:
                since = time.monotonic()  # what follows a line of progress does not count as training time

        if update == end:
            test = score(corpus.test)
            out.metrics(update, {"test_bits_per_byte": test})
        saver.save(state, meta, wait=True)

    if update < end:
        again = f"python train.py --run-dir {configs.as_argument(run_dir)}"
        log(f"stopped and saved after update {update:,} of {end:,}; {again} goes on")
        return 128 + stopped
    samples = [sample(number) for number in range(len(PRIMES))]  # every process has a part in them
    if not processes.is_first():
        return 0
    metrics = run_folder.read_metrics(run_dir)
    first = f"validation: {meta['validation_bits_per_byte']:.4f} bits per byte; " if config.eval_every else ""
    log(f"{first}test: {test:.4f} bits per byte")
    picture(metrics, run_dir / "loss_curve.png")
    log("\n".join(samples))
    log(f"the run is in {run_dir}. Try:\n{next_steps(run_dir)}")
    return 0


def trace(updates: int, done: int, run_dir: Path, last: bool) -> None:
    """Trace this many updates, from the third one of this start on: the ones before it compile."""
    import jax

    if updates and done == 2 and not last:
        jax.profiler.start_trace(str(run_dir / "profile"))
    elif updates and (done == 2 + updates or 2 < done < 2 + updates and last):
        jax.profiler.stop_trace()
        log(f"a trace of {done - 2} updates is in {run_dir / 'profile'}; look at it with TensorBoard or Perfetto")


def picture(metrics, path: Path) -> None:
    """Draw the loss curve, where that can be."""
    from mlstm_jax.report import plots

    plots.attempt(partial(plots.loss_curve, metrics, path), "loss curve")


def next_steps(run_dir: Path) -> str:
    """The two commands to try on a trained run."""
    name = configs.as_argument(run_dir)
    return f"  python eval_sst.py {name}\n  python sample.py {name} --prime 'This movie '"


def worse_than_guessing(config: Config, bits: float) -> str:
    """What to change in a run whose loss is above that of guessing."""
    clip_norm = f"a --clip-norm below {config.clip_norm:g}" if config.clip_norm else "a --clip-norm such as 1"
    return (
        f"warning: {bits:.4g} bits per byte are worse than guessing, which takes 8: stop this run, and start a new one "
        f"with a --learning-rate below {config.learning_rate:g}, or with {clip_norm}"
    )


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

    def remember(self, number, frame) -> None:
        """Note the signal; the terminal may have gone with it."""
        self.signal = number
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGHUP:
            signals.mute_what_is_gone()
