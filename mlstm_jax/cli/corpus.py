"""Prepare a corpus: reviews from files of any size to shuffled shards that train.py maps into memory.

mlstm corpus reviews.json.gz --out data/amazon --shards 1000
"""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mlstm_jax import storage
from mlstm_jax.cli import program
from mlstm_jax.corpus import prepare
from mlstm_jax.errors import UserError
from mlstm_jax.progress import progress
from mlstm_jax.text import printable


def main(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    out: Path,
    shards_: Annotated[int, tyro.conf.arg(name="shards")] = 1000,
    seed: int = 0,
    text_key: str | None = None,
    label_key: str | None = None,
    encoding: str | None = None,
    distinct: bool = False,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    workers: int | None = None,
    runner: str | None = None,
    runner_options: tuple[str, ...] = (),
) -> None:
    """Frame, shuffle and write reviews into shards, with validation and test reviews set apart.

    Args:
        inputs: Files (.json .jsonl .csv .tsv .parquet .xlsx .txt, also .gz .bz2 .zst), folders, globs, tfds:NAME, or -.
        out: The folder to write. Where a run was killed, the same command goes on.
        shards_: Training shards, of equal numbers of reviews; validation and test are one more each.
        seed: Seed of the shuffle.
        text_key: JSON key or column of the text; found by its usual names where it is not given.
        label_key: JSON key or column of the label, which is kept beside the bytes.
        encoding: Encoding of files of text, as windows-1252; by default UTF-8, and UTF-16 and UTF-32 are recognised.
        distinct: Keep one of several reviews with the same text.
        on_error: What to do with lines that cannot be read: write them to bad_lines.jsonl, or stop at the first.
        workers: Processes; by default one for each core.
        runner: Do it on many machines, with this runner of Apache Beam (FlinkRunner, SparkRunner ...; DirectRunner is
            this machine). All of them must see the inputs and the folder under the same names.
        runner_options: Options of the runner, as flink_master=HOST:8081 parallelism=64.
    """
    begun, options = time.monotonic(), prepare.Options(shards_, seed, text_key, label_key, distinct)
    if runner_options and not runner:
        raise UserError("--runner-options goes with --runner")
    if workers is not None and runner:
        raise UserError("--workers goes without --runner, which has workers of its own")
    if runner and "-" in inputs:
        raise UserError("standard input cannot be read by other machines; name files")
    out = storage.local(out, "corpus")
    if runner and any(storage.is_remote(path) for path in (out, *map(storage.local, inputs))):
        raise UserError("--runner works on folders that all its machines see: mount the bucket, and name those")
    out = out.absolute() if runner else out  # the runner's workers may have another folder of their own
    with _spread(workers, runner, runner_options, out) as spread:
        manifest = prepare.prepare(
            list(inputs), out, options, spread, on_error=on_error, log=program.log, progress=progress, encoding=encoding
        )
    reviews, seconds = manifest["reviews"], time.monotonic() - begun
    print(
        f"{reviews['read']:,} reviews read, {reviews['kept']:,} kept, {reviews['empty']:,} empty, "
        f"{reviews['duplicates']:,} duplicates, {reviews['bad']:,} bad"
        + (printable(f" (see {storage.name(out / 'bad_lines.jsonl')})") if reviews["bad"] else "")
    )
    print(f"{manifest['bytes']:,} bytes in {shards_} shards, validation and test, in {seconds:.1f} seconds")
    program.note(f"Next: {program.command('train', config='amazon', data=out)}")


def run(args: list[str]) -> None:
    """`mlstm corpus` with these arguments."""
    tyro.cli(main, prog="mlstm corpus", args=args)


def _spread(
    workers: int | None, runner: str | None, runner_options: tuple[str, ...], out: Path
) -> AbstractContextManager[prepare.Spread]:
    if not runner:
        return prepare.processes((os.cpu_count() or 1) if workers is None else workers)
    try:
        from mlstm_jax.corpus import beam
    except ImportError:
        raise UserError("--runner takes apache-beam; pip install 'mlstm-jax[beam]'") from None
    return nullcontext(beam.runner(runner, runner_options, out))
