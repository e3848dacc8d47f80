"""Train an mLSTM byte by byte: `python train.py --config configs/amazon.py`. See --help for every field."""

import glob
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from mlstm_jax import signals, storage
from mlstm_jax.cli import arguments, program
from mlstm_jax.cli.program import log, note
from mlstm_jax.config import Config
from mlstm_jax.disk import raise_file_limit
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mlstm_jax.corpus.build import Data


def run(args: list[str]) -> int:
    """Train, or resume, the run that the command line describes. Returns the exit status."""
    raise_file_limit()
    as_json, args = arguments.take_json(args)
    config, old = arguments.from_command_line(args, arguments.stored_config)
    named = arguments.named(args)
    if config.plan:
        from mlstm_jax.cli import plan

        return plan.run(config, as_json, named.axes)
    if as_json:
        raise UserError("--json goes with --plan")
    if config.run_dir is None:
        raise UserError("a run needs a folder; name one with --run-dir")
    run = Run(storage.local(run_dir := config.run_dir))
    check_folder(run, config, is_new=old is None)
    if old and not config.more_updates and not config.verify:
        from mlstm_jax.cli import train_loop

        if train_loop.is_finished(run, config, named):
            return 0
    config = find_data(config, old)
    data = open_data(config)  # before the slow imports: what is wrong with it should be known at once
    if config.verify:
        return verify(data)

    from mlstm_jax.cli import train_loop
    from mlstm_jax.training import processes

    processes.start(config)
    if not processes.is_first():
        signals.mute()  # the first process prints and locks for all
        run = Run(storage.local(run_dir, f"process-{processes.number()}"))
        processes.highest(0)  # what the first one had still to send is there
        with storage.passing(run.path):
            return train_loop.train(config, run, data, named)
    describe_data(data, config)
    run = Run(storage.local(run_dir, "train"))
    with run.lock(config.keep):
        processes.highest(0)
        return train_loop.train(config, run, data, named)


def check_folder(run: Run, config: Config, is_new: bool) -> None:
    """Raise UserError where no run can be kept in this folder, or its initial weights are missing."""
    if is_new and not run.is_free():
        raise UserError(f"{run.path} exists and is not a run; name a new folder with --run-dir")
    first = storage.local(config.init or "")
    if is_new and config.init not in (None, "pretrained") and not (storage.is_remote(first) or first.exists()):
        raise UserError(f"--init {config.init} does not exist; name a run's folder, or another program's weights")
    path = str(run.path.absolute())
    if glob.escape(path) != path or "\\" in path:  # Orbax takes the name for a pattern, and would not find it again
        raise UserError(
            f"{path}: no checkpoint can be kept where a name has [ * ? or a backslash in it; choose another --run-dir"
        )


def find_data(config: Config, old: Config | None) -> Config:
    """The config with the whole path of its data. Raises UserError where a run's leads nowhere from here."""
    data = storage.local(config.data)
    if storage.is_remote(data):
        return config
    if data.exists():
        return replace(config, data=str(data.absolute()))
    is_name = config.data in (Config.data, "-") or re.search(r"[:*?[]", config.data)  # tfds:NAME, patterns
    if old and config.data == old.data and not data.is_absolute() and not is_name:
        raise UserError(
            f"{config.data} is not here: this run's data were named so from the folder where it was started; "
            "name where they lie now with --data"
        )
    return config


def open_data(config: Config) -> "Data":
    """The corpus, cut into batches. Raises UserError where there is too little of it, or nothing to verify."""
    from mlstm_jax.corpus.batches import Batches
    from mlstm_jax.corpus.build import Data, build, is_prepared

    if config.verify and not is_prepared(config.data):
        raise UserError(
            f"there is nothing to verify: {config.data} is no folder made by mlstm corpus, whose shards have checksums"
        )
    corpus = build(config)
    for name, part in (("validation", corpus.validation), ("test", corpus.test)):
        if len(part) <= config.eval_batch_size:
            raise UserError(
                f"only {len(part)} bytes are held out for {name}, fewer than one for each of {config.eval_batch_size} "
                "sequences; raise --validation-fraction or lower --eval-batch-size"
            )
    return Data(corpus, Batches(corpus.train, config.batch_size, config.seq_length, corpus.sizes))


def verify(data: "Data") -> int:
    """Check every shard of a prepared corpus. Raises UserError for one that has changed."""
    for shard in range(len(data.corpus.train)):
        data.corpus.check(shard)
    log(data.corpus.summary)
    log(f"all {len(data.corpus.train)} shards, validation and test bytes are as they were written")
    return 0


def describe_data(data: "Data", config: Config) -> None:
    """Print what is trained on."""
    for line in data.corpus.notes:
        logger.warning(program.flags(line))
    note(data.corpus.summary)
    note(
        f"one pass is {len(data.batches):,} updates of {config.batch_size} sequences x {config.seq_length} bytes; "
        f"{data.batches.unused:,} bytes at shard ends are unused"
    )
