"""Score any number of reviews: the value of the sentiment unit after each text, and the sentiment that it predicts.

mlstm score runs/quickstart reviews.csv --out scored.csv      # after mlstm eval has found the unit
mlstm score runs/quickstart reviews.csv --out scored.csv --report scored.html --by date
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from mlstm_jax import storage
from mlstm_jax.cli import program, resumable
from mlstm_jax.corpus.columns import Keys, find_name
from mlstm_jax.corpus.readers import COMPRESSIONS, KINDS, Source, sources, unchanged
from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError
from mlstm_jax.progress import progress
from mlstm_jax.sentiment import score_input, score_rows
from mlstm_jax.sentiment.score_input import Input
from mlstm_jax.sentiment.score_rows import Layout
from mlstm_jax.sentiment.scores import Review, groups, read
from mlstm_jax.sentiment.tally import Tally
from mlstm_jax.unit_record import UnitRecord, describe_classes

if TYPE_CHECKING:
    from mlstm_jax.inference.language_model import LanguageModel

logger = logging.getLogger(__name__)

ROWS = 4096  # of a group, at most; fewer in a large model
NUMBERS = 1 << 20  # features of a group, at most: 4 MB
BYTES = 4 << 20  # of a group's texts, at least one text


class Job(NamedTuple):
    """What is scored by which unit, and how it is written."""

    found: list[Source]
    reading: Input
    model: "LanguageModel"
    record: UnitRecord
    layout: Layout
    rows: int
    """Of a group, at most."""
    out: Path | None


def main(
    run: Path,
    inputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT")],
    /,
    *,
    out: Path = Path("-"),
    task: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    encoding: str | None = None,
    columns: Literal["all", "text"] = "all",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    json: bool = False,
    safe_cells: bool = False,
    report: Path | None = None,
    by: str | None = None,
    resume: bool = False,
) -> None:
    """Score reviews of any number by the unit that carries sentiment: a row out for every row in, in order.

    A row has all columns of the input, then the unit's value, the probability that the text is positive, the sentiment
    (positive or negative; which labels of the task these are is printed first), and a note where nothing could be read.
    Where that is so of all rows, the exit status is 2. Memory does not grow with the input. A model of 4096 units reads
    some 600 bytes a second on a CPU: take a GPU or a smaller model for large files.

    Args:
        run: A run folder, or another program's weights, whose unit eval_sst.py has found.
        inputs: Files (.csv .tsv .json .jsonl .parquet .xlsx .txt, also .gz .bz2 .zst), folders, globs, tfds:NAME, or -.
        out: A new file: JSON lines where it is named .jsonl or .json, else CSV. By default standard output.
        task: The task whose unit it is; needed where units of several tasks were found.
        text_key: JSON key or column of the text; found by its usual names where it is not given.
        label_key: JSON key or column of the label; found likewise.
        encoding: Encoding of files of text, as windows-1252; by default UTF-8, and UTF-16 and UTF-32 are recognised.
        columns: all keeps all columns of the input; text keeps line, text and label.
        precision: Matrix products; auto is bfloat16 on GPU and TPU, float32 on CPU.
        json: Write JSON lines, one object a line, whatever the file's name.
        safe_cells: In CSV, put a single quote before texts that a spreadsheet would compute: = + - @ and the like.
        report: A new HTML page: share positive, histogram, the most positive and negative reviews, what was not read.
        by: A column of the input; the page has the mean value for each of its values. Dates are taken by month.
        resume: Go on where a run was killed; the result is the same to the byte. What is finished stays as it is.
    """
    if not inputs:
        raise UserError(f"nothing to read; name files after RUN, as in: {program.command('score', 'pretrained', run)}")
    found, keys = sources(list(inputs), encoding), Keys(text_key, label_key)
    file = None if str(out) == "-" else storage.local(out, "write")
    report = report and storage.new(report)
    if file and storage.is_remote(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    as_json = json or KINDS.get(out.suffix.lower()) == "json"
    _check_options(report, by, columns == "text", as_json and safe_cells)
    _check_output(file, found, resume, report)
    reading = score_input.begin(found, keys, whole=columns == "all", phrase=program.flags)
    by = find_name(by, reading.names, found[0].name) if by is not None else None
    if columns == "text":
        layout = score_rows.narrow(reading.labelled, len(found) > 1, as_json, safe_cells)
    else:
        layout = score_rows.wide(reading.names, len(found) > 1, as_json, safe_cells)
    with contextlib.redirect_stdout(sys.stderr):
        from mlstm_jax.inference import language_model  # late, because it imports jax: --help stays quick

        model = language_model.load(run, precision=precision)
        model.require_bytes()
        record = model.unit_of(task)
    job = Job(found, reading, model, record, layout, min(ROWS, max(64, NUMBERS // model.hidden)), file)
    by_what = "" if record.threshold_by == "accuracy" else f"; threshold by {record.threshold_by}"
    logger.info(f"{model.name}: {describe_classes(record.negative, record.positive)}{by_what}")
    program.announce(record)
    for words in score_rows.renamed(layout):
        logger.warning(words)
    tally, about = Tally(record, len(found) > 1, by), _about(job, keys, encoding)
    place = f" in {file}" if file else ""
    with storage.sent(file, is_new=True):
        if file and os.path.lexists(file):  # with --resume alone
            resumable.require_finished(file, about)
            _recount(job, file, tally)
            place += ", which is finished"
        else:
            _write(job, about, resume, tally)
    _summarise(tally, place)
    if report is not None:
        _write_page(job, tally, report)
    if not tally.scored:
        raise UserError(f"no row could be scored; the notes in {file or 'the rows'} say why")


def run(args: list[str]) -> None:
    """`mlstm score` with these arguments."""
    tyro.cli(main, prog="mlstm score", args=args)


def _check_options(report: Path | None, by: str | None, narrow: bool, safe_json: bool) -> None:
    """Raise UserError for options that contradict each other, and for a page that cannot be."""
    if safe_json:
        raise UserError("--safe-cells goes with CSV; JSON lines are not computed by a spreadsheet")
    if by is not None and report is None:
        raise UserError("--by goes with --report, whose page has the means")
    if by is not None and narrow:
        raise UserError("--by names a column of the input; leave --columns text out")
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--report takes a file .html, not {report}")
    if report is not None and os.path.lexists(report):
        raise UserError(f"{report} is there already; name another file with --report")
    if report is not None and not report.parent.is_dir():
        raise UserError(f"no folder {report.parent}; make it first, or name another file with --report")


def _check_output(out: Path | None, found: list[Source], resume: bool, report: Path | None) -> None:
    """Raise UserError for an output that cannot be."""
    if out is None:
        if resume:
            raise UserError("--resume goes on with a file: name it with --out")
        return
    piped = any(source.name == "-" for source in found)
    if resume and piped:
        raise UserError("standard input cannot be read again: --resume takes files")
    for source in found:
        same = source.time is not None and out.exists() and os.path.samefile(source.name, out)
        if same:
            raise UserError(f"{out} is an input, too; name another file with --out")
    if report is not None and report.absolute() == out.absolute():
        raise UserError(f"{out} is the page, too; name another file with --out")
    suffix = out.suffix.lower()
    fits = KINDS.get(suffix, "csv") in ("csv", "json") and suffix not in COMPRESSIONS
    if not fits:
        raise UserError(f"{out}: CSV or JSON lines are written; name it .csv or .jsonl")
    resumable.require_free(out, resume)


def _about(job: Job, keys: Keys, encoding: str | None) -> dict[str, Any]:
    """What decides which bytes are written; what is half made goes on with the same alone."""
    record, layout = job.record, job.layout
    about = {
        "weights": job.model.digest,
        "precision": job.model.precision,
        "unit record": {name: getattr(record, name) for name in ("unit", "feature", "sign", "threshold", "a", "b")},
        "input": [source.name for source in job.found],
        "keys": list(keys),
        "format": "JSON lines" if layout.as_json else "CSV with safe cells" if layout.safe_cells else "CSV",
        "size of groups": [job.rows, BYTES],
    } | {f"{source.name} (kind, bytes, time)": [source.kind, source.size, source.time] for source in job.found}
    about |= {} if layout.narrow else {"columns": "all"}
    return about | ({} if encoding is None else {"encoding": encoding})


# Scoring


def _write(job: Job, about: dict[str, Any], resume: bool, tally: Tally) -> None:
    """Score all rows and write them; those that a killed run has written are counted as they stand there."""
    size = sum(source.size or 0 for source in job.found)
    show = job.out is not None or not sys.stdout.isatty()  # a bar amid the rows would spoil them
    with progress("scoring", size, show) as done, resumable.writing(job.out, about, resume) as sink:
        written = score_rows.values_of(Path(sink.name), job.layout)
        for number, group in enumerate(groups(job.reading.reviews, job.rows, BYTES)):
            if number < sink.groups:
                values = _next(written, group)
                done(sum(review.share for review in group))
            else:
                values = read(job.model, group, job.record, done)
                header = score_rows.header(job.layout) if number == 0 else b""
                sink.write(header + score_rows.as_rows(group, values, job.record, job.layout))
            tally.add(group, values)
        for source in job.found:
            if not unchanged(source):
                raise UserError(f"{source.name} has changed while it was read; remove {sink.name} and start again")
        if not tally.rows:
            raise UserError(f"{', '.join(source.name for source in job.found[:3])}: there is no review in it")
        sink.finish()


def _recount(job: Job, out: Path, tally: Tally) -> None:
    """Count the rows of a finished file."""
    written = score_rows.values_of(out, job.layout)
    for group in groups(job.reading.reviews, job.rows, BYTES):
        tally.add(group, _next(written, group))


def _next(values: Iterator[float], group: list[Review]) -> Float[np.ndarray, "n"]:
    """The next values, one for every review."""
    return np.fromiter(islice(values, len(group)), np.float64, len(group))


# What is said


def _summarise(tally: Tally, place: str) -> None:
    """Lines on stderr: rows without a value by number; how many rows there are, and how many are positive."""
    for reason, (count, first, why) in tally.without.items():
        places = ", ".join(first) + " ..." * (count > len(first))
        first = f" (the first: {why})" if why else ""
        logger.warning(f"{count:,} without a value, {reason}{first}: line{'s' * (count > 1)} {places}")
    above, scored = tally.positive, tally.scored
    share = f", {above:,} ({above / scored:.1%}) positive, {scored - above:,} negative" if scored else ""
    logger.info(f"{tally.rows:,} rows, {scored:,} scored{share}{place}")


def _write_page(job: Job, tally: Tally, report: Path) -> None:
    """Write the report."""
    from mlstm_jax.sentiment import score_page  # late, as it imports jax

    sources = [storage.name(source.name) for source in job.found]
    with contextlib.redirect_stdout(sys.stderr):
        page = score_page.html(job.model, tally, sources, program.command("score", *sys.argv[1:]))
        if os.path.lexists(report):
            raise UserError(
                f"{report} has appeared meanwhile; with --resume and another --report nothing is scored again"
            )
        with storage.sent(report, is_new=True), atomic(report) as file:
            file.write(page.encode())
    logger.info(f"wrote {report}")
