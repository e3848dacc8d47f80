"""A corpus prepared by many machines: the tasks of `prepare` on a runner of Apache Beam.

All machines must see the inputs and the corpus folder under the same names (a network file system, a mounted bucket),
and have this package installed. The same functions read, frame and write as on one machine: the bytes are the same.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam  # pyright: ignore[reportMissingImports] (an extra)
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports] (an extra)

from mlstm_jax.corpus.prepare import Spread
from mlstm_jax.disk import parse_json
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_bytes, to_text


def runner(name: str, runner_options: tuple[str, ...], out: Path) -> Spread:
    """A Beam runner for `prepare` of `out`; each of its calls is a pipeline, whose results come when it ends.

    `runner_options` are Beam's or the runner's, as "parallelism=64". Raises UserError for those that are unknown.
    """
    parsed = PipelineOptions([f"--runner={name}", *(f"--{option}" for option in runner_options)])
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            known = parsed.get_all_options()
    except SystemExit:  # Beam prints the usage of all its options, and what is wrong behind it
        raise UserError(f"`runner_options`: {printed.getvalue().strip().rpartition('error: ')[2]}") from None
    for key in (option.partition("=")[0] for option in runner_options):
        if key not in known:
            raise UserError(f"`runner_options`: Beam knows no option {key!r}")
    return partial(_spread, options=parsed, work=out / ".work")


def _spread(
    expand: Callable[[Any], Iterable[Any]],
    do: Callable[[Any], Any],
    items: Iterable[Any],
    options: PipelineOptions,
    work: Path,
) -> Iterator[Any]:
    results, failed = work / "results", work / "failed"
    shutil.rmtree(results, ignore_errors=True)
    failed.unlink(missing_ok=True)
    results.mkdir()
    try:
        pipeline = apache_beam.Pipeline(options=options)
        _ = (
            pipeline
            | apache_beam.Create(list(items))
            | "spread items" >> apache_beam.Reshuffle()
            | "to tasks" >> apache_beam.FlatMap(partial(_expand, expand=expand, failed=failed))
            | "spread tasks" >> apache_beam.Reshuffle()
            | "do" >> apache_beam.Map(partial(_do, do=do, failed=failed))
            | "to JSON" >> apache_beam.Map(lambda result: json.dumps({"result": result}))
            | "keep results" >> apache_beam.io.WriteToText(str(results / "part"))
        )
        pipeline.run().wait_until_finish()
    except Exception as error:  # of whatever kind the runner's own are
        line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"the Beam pipeline failed: {line}") from error
    if failed.exists():
        raise UserError(to_text(failed.read_bytes()))
    for path in sorted(results.glob("part*")):
        for line in path.read_bytes().splitlines():
            yield parse_json(line, str(path), {"result": object})["result"]


# A runner would print an error's whole stack, try the task again and hide the message. So a user's error is left in a
# file, and what is still to do is passed over.


def _expand(item: Any, expand: Callable[[Any], Iterable[Any]], failed: Path) -> Iterator[Any]:
    try:
        for task in expand(item):
            if failed.exists():
                return
            yield task
    except UserError as error:
        failed.write_bytes(to_bytes(str(error)))


def _do(task: Any, do: Callable[[Any], Any], failed: Path) -> Any:
    if failed.exists():
        return None
    try:
        return do(task)
    except UserError as error:
        failed.write_bytes(to_bytes(str(error)))
        return None
