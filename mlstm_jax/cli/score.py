"""Score any number of reviews: the value of the sentiment unit after each text, and the sentiment that it predicts.

mlstm score runs/quickstart reviews.csv --out scored.csv      # after eval_sst.py has found the unit
"""

import contextlib
import csv
import glob
import hashlib
import io
import logging
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from json import dumps
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from mlstm_jax import disk, unit_record
from mlstm_jax.cli.program import announce, flags
from mlstm_jax.corpus.columns import Keys
from mlstm_jax.corpus.readers import (
    COMPRESSIONS,
    KINDS,
    Chunk,
    Source,
    chunks,
    labels_within,
    parse,
    sources,
    unchanged,
)
from mlstm_jax.disk import atomic, is_sealed, read_json, seal, sync_folder
from mlstm_jax.errors import Damaged, UserError
from mlstm_jax.progress import progress
from mlstm_jax.sentiment.scores import Review, groups, read
from mlstm_jax.signals import mute
from mlstm_jax.text import EMPTY, frame, printable, to_bytes, to_text
from mlstm_jax.unit_record import UnitRecord, describe_classes, positive, probability

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes that are read at a time
ROWS = 4096  # of a group, at most; fewer in a large model
NUMBERS = 1 << 20  # features of a group, at most: 4 MB
BYTES = 4 << 20  # of a group's texts, at least one text
SHOWN = 5  # rows without a value whose numbers are named
GO_ON = "the same command with --resume goes on"


def main(
    run: Path,
    inputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT")],
    /,
    *,
    out: Path = Path("-"),
    task: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    json: bool = False,
    safe_cells: bool = False,
    resume: bool = False,
) -> None:
    """Score reviews of any number by the unit that carries sentiment: a row out for every row in, in order.

    A row has its line, text, label if there are any, the unit's value, the probability that the text is positive, the
    sentiment (positive or negative; which labels of the task these are is printed at the end), and a note where nothing
    could be read. Where that is so of all rows, the exit status is 2. Memory does not grow with the input. A
    model of 4096 units reads some 600 bytes a second on a CPU: take a GPU or a smaller model for large files.

    Args:
        run: A run folder, or another program's weights, whose unit eval_sst.py has found.
        inputs: Files (.csv .tsv .json .jsonl .parquet .txt, also .gz .bz2 .zst), folders, globs, tfds:NAME, or -.
        out: A new file: JSON lines where it is named .jsonl or .json, else CSV. By default standard output.
        task: The task whose unit it is; needed where units of several tasks were found.
        text_key: JSON key or column of the text; found by its usual names where it is not given.
        label_key: JSON key or column of the label, which is passed through.
        precision: Matrix products; auto is bfloat16 on GPU and TPU, float32 on CPU.
        json: Write JSON lines, one object a line, whatever the file's name.
        safe_cells: In CSV, put a single quote before texts that a spreadsheet would compute: = + - @ and the like.
        resume: Go on where a run was killed; the result is the same to the byte. What is finished stays as it is.
    """
    found, keys = sources(list(inputs)), Keys(text_key, label_key)
    file = None if str(out) == "-" else out
    _check_output(file, found, resume)
    as_json = json or KINDS.get(out.suffix.lower()) == "json"
    if as_json and safe_cells:
        raise UserError("--safe-cells goes with CSV; JSON lines are not computed by a spreadsheet")
    reading, labelled = _begin(found, keys)

    with contextlib.redirect_stdout(sys.stderr):
        from mlstm_jax.inference import language_model  # late, because it imports jax: --help stays quick

        model = language_model.load(run, precision=precision)
        model.require_bytes()
        record = unit_record.load(model.record_dirs, model.digest, task)
        if record.unit >= model.hidden:
            raise UserError(f"the unit record names unit {record.unit} of {model.hidden}")
    columns = ["source"] * (len(found) > 1) + ["line", "text"] + ["label"] * labelled
    columns += ["value", "probability", "sentiment", "note"]
    rows = min(ROWS, max(64, NUMBERS // model.hidden))
    about = {
        "weights": model.digest,
        "precision": model.precision,
        "unit record": {name: getattr(record, name) for name in ("unit", "feature", "sign", "threshold", "a", "b")},
        "input": [source.name for source in found],
        "keys": list(keys),
        "format": "JSON lines" if as_json else "CSV with safe cells" if safe_cells else "CSV",
        "size of groups": [rows, BYTES],
    } | {f"{source.name} (kind, bytes, time)": list(source[1:]) for source in found}
    classes = describe_classes(record.negative, record.positive)
    logger.info(f"{run}: {classes}")
    announce(record)
    if file and os.path.lexists(file):  # with --resume alone
        total, scored, above = _counts_of_finished(file, about)
        logger.info(f"{_counts(total, scored, above)} in {file}, which is finished")
        _require_scored(scored, file)
        return
    total, without, size = 0, {}, sum(source.size or 0 for source in found)
    show = file is not None or not sys.stdout.isatty()  # a bar amid the rows would spoil them
    with progress("scoring", size, show) as done, writing(file, about, resume) as sink:
        above = sink.positive
        for number, group in enumerate(groups(reading, rows, BYTES)):
            total += len(group)
            _note(group, without, len(found) > 1)
            if number < sink.groups:  # written before the program was killed
                done(sum(review.share for review in group))
                continue
            values = read(model, group, record, done)
            above = None if above is None else above + int(positive(values, record).sum())
            header = as_csv([columns]) if number == 0 and not as_json else b""
            sink.write(header + as_rows(group, values, record, columns, as_json, safe_cells))
            sink.finish_group(above)
        for source in found:
            if not unchanged(source):
                raise UserError(f"{source.name} has changed while it was read; remove {sink.name} and start again")
        if not total:
            raise UserError(f"{', '.join(source.name for source in found[:3])}: there is no review in it")
        scored = total - sum(reason.rows for reason in without.values())
        sink.finish({"rows": total, "scored": scored} | _known(above))
    _report(without)
    logger.info(_counts(total, scored, above) + (f" in {file}" if file else ""))
    _require_scored(scored, file)


def run(args: list[str]) -> None:
    """`mlstm score` with these arguments."""
    tyro.cli(main, prog="mlstm score", args=args)


# Reading


def _begin(found: list[Source], keys: Keys) -> tuple[Iterator[Review], bool]:
    """The reviews of all sources, and whether any has labels. A source that cannot be begun is an error now."""
    parts, labelled = [], False
    for index, source in enumerate(found):
        if source.size == 0:
            raise UserError(f"{source.name} is empty")
        cut = chunks(source, index, keys, CHUNK if source.name == "-" else 1)
        first = next(cut, None)
        labelled |= first is not None and first.keys.label is not None
        if words := first and labels_within(source, first):
            logger.warning(words)
        if source.name == "-":  # it cannot be read twice
            parts.append(chain([first] if first else [], cut))
        else:
            cut.close()  # there may be more files than can be open
            parts.append(chunks(source, index, keys, CHUNK))
    return (review for part in parts for chunk in part for review in _reviews(chunk, found)), labelled


def _reviews(chunk: Chunk, found: list[Source]) -> Iterator[Review]:
    rows = list(parse(chunk))
    for line, text, label, wrong in rows:
        framed = EMPTY if wrong else frame(text)
        note = f"not readable: {flags(wrong)}" if wrong else "empty" if framed == EMPTY else None
        yield Review(found[chunk.source].name, line, text, label, note, framed, chunk.read / len(rows))


def as_rows(
    group: list[Review],
    values: Float[np.ndarray, "n"],
    record: UnitRecord,
    columns: list[str],
    as_json: bool,
    safe_cells: bool = False,
) -> bytes:
    """The rows of a group as CSV or as JSON lines; numbers are written so that they read back as they were."""
    rows = []
    judged = zip(values.tolist(), probability(values, record).tolist(), positive(values, record).tolist(), strict=True)
    for review, (value, chance, is_positive) in zip(group, judged, strict=True):
        row = {"source": review.source, "line": review.line, "text": review.text, "label": review.label}
        known = (value, chance, "positive" if is_positive else "negative") if review.note is None else (None,) * 3
        row |= dict(zip(("value", "probability", "sentiment"), known, strict=True)) | {"note": review.note}
        rows.append([row[name] for name in columns])
    if not as_json:
        return as_csv([[safe_cell(cell) for cell in row] for row in rows] if safe_cells else rows)
    lines = (dumps(dict(zip(columns, row, strict=True)), allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def as_csv(rows: list[list[Any]]) -> bytes:
    """Rows of CSV, UTF-8; bytes that were none come out as they went in (`text.to_bytes`)."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)  # with its own line ends \r\n, so that a text that holds one of them is quoted
    return to_bytes(file.getvalue())


_COMPUTED = re.compile("'*[=+@\\-\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are = + - @ of full width


def safe_cell(cell: Any) -> Any:
    """A text that a spreadsheet shows as it is: a single quote before what it would compute. Numbers stay.

    Quotes that stand there already get one more, so that taking one away gives the text back.
    """
    return f"'{cell}" if isinstance(cell, str) and _COMPUTED.match(cell) else cell


# Writing


class Sink(NamedTuple):
    """Where rows go: its name, what is there already, how to write, what to do behind a group and last."""

    name: str
    groups: int
    positive: int | None
    """Rows so far whose sentiment is positive; None where a file of version 0.1 goes on, which did not count them."""
    write: Callable[[bytes], Any]
    finish_group: Callable[[int | None], None]
    finish: Callable[[dict[str, int]], None]


def _check_output(out: Path | None, found: list[Source], resume: bool) -> None:
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
    suffix = out.suffix.lower()
    fits = KINDS.get(suffix, "csv") in ("csv", "json") and suffix not in COMPRESSIONS
    if not fits:
        raise UserError(f"{out}: CSV or JSON lines are written; name it .csv or .jsonl")
    if not out.parent.is_dir():
        raise UserError(f"no folder {out.parent}; make it first, or name another file with --out")
    part, _, done = _parts(out)
    exists = os.path.lexists(out) and not (resume and done.exists())
    if exists:
        raise UserError(f"{out} exists; name another file with --out, or move it away")
    begun = f"{part} is there, of a run that was stopped; go on with --resume, or remove it"
    if not resume and os.path.lexists(part):
        raise UserError(begun)


def _parts(out: Path) -> tuple[Path, Path, Path]:
    """What is written, what is known of it meanwhile, and when it is done; `sources` finds none of them in a folder."""
    part = out.with_name(f"{out.name}.part")
    return part, part.with_name(f"{part.name}.state"), out.with_name(f".{out.name}.done")


@contextlib.contextmanager
def writing(out: Path | None, about: dict[str, Any], resume: bool) -> Iterator[Sink]:
    """Standard output for None, else OUT.part, which becomes OUT when all is done; beside it, how much is whole.

    Raises UserError where that cannot be, and for an OUT.part that was begun with something else than `about`.
    """
    if out is None:
        yield from _standard_output()
        return
    part, state, done = _parts(out)
    with _reported(part, state), open(part, "r+b" if resume and part.exists() else "x+b") as file:
        disk.lock(file, f"{part} is being written")
        for name in (state.name, done.name):
            for left in out.parent.glob(f".{glob.escape(name)}.*"):  # by one that was killed
                left.unlink()
        count, size, digest, above = _finished(file, part, state, about)
        try:
            file.truncate(size)
            file.seek(size)

            def write(data: bytes) -> None:
                file.write(data)
                digest.update(data)

            def known(**more: int) -> dict[str, Any]:
                return seal(about | {"bytes": file.tell(), "sha256": digest.hexdigest()} | more)

            def store(above: int | None) -> None:
                file.flush()
                os.fsync(file.fileno())  # before the state that refers to it
                with atomic(state) as stored:
                    stored.write(dumps(known(groups=count, **_known(above))).encode())

            def finish_group(above: int | None) -> None:
                nonlocal count
                count += 1
                store(above)

            def finish(counts: dict[str, int]) -> None:
                file.flush()
                os.fsync(file.fileno())
                if os.path.lexists(out):
                    raise UserError(f"{out} has appeared meanwhile; all that was written is in {part}")
                with atomic(done) as stored:
                    stored.write(dumps(known(**counts)).encode())
                os.replace(part, out)
                sync_folder(out.parent)
                state.unlink(missing_ok=True)

            store(above)
            yield Sink(str(part), count, above, write, finish_group, finish)
        except BaseException as error:
            if not count:  # there is nothing to keep
                part.unlink()
                state.unlink(missing_ok=True)
            elif isinstance(error, KeyboardInterrupt):
                logger.warning(f"what is done is kept in {part}: {GO_ON}")
            raise


def _standard_output() -> Iterator[Sink]:
    stream = sys.stdout.buffer
    safe = lambda data: to_bytes(printable(to_text(data).replace("\r\n", "\n")))
    show = (lambda data: stream.write(safe(data))) if sys.stdout.isatty() else stream.write
    try:
        flush = lambda counts: stream.flush()
        yield Sink("what was written", 0, 0, show, flush, flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute()
        raise UserError(f"cannot write to standard output: {error.strerror or error}") from None


@contextlib.contextmanager
def _reported(part: Path, state: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise UserError(f"{part} is being written by another process") from None
    except OSError as error:
        kept = f"; what is done is kept: {GO_ON}" if state.exists() else ""
        raise UserError(f"cannot write {part}: {error.strerror or error}{kept}") from None


def _finished(file: IO[bytes], part: Path, state: Path, about: dict[str, Any]) -> tuple[int, int, Any, int | None]:
    """Groups that are whole, their bytes, SHA-256 and positive rows so far.

    Raises UserError unless they are of a run like this.
    """
    size, digest = part.stat().st_size, hashlib.sha256()
    if size == 0:
        return 0, 0, digest, 0
    start_again = f"remove {part} and start again"
    try:
        stored = read_json(state, {"groups": int, "bytes": int})
    except (Damaged, FileNotFoundError):
        stored = {"groups": -1, "bytes": 0}
    count, finished = stored["groups"], stored["bytes"]
    whole = is_sealed(stored) and count >= 0 and 0 <= finished <= size
    if not whole:
        raise UserError(f"{state} is missing or damaged; {start_again}")
    if differs := _difference(stored, about):
        raise UserError(f"{part} was begun {differs}; give the same again, or {start_again}")
    for start in range(0, finished, CHUNK):
        digest.update(file.read(min(CHUNK, finished - start)))
    same = stored.get("sha256", digest.hexdigest()) == digest.hexdigest()  # version 0.1 kept none
    if not same:
        raise UserError(f"{part} is not as it was written; {start_again}")
    return count, finished, digest, _positive_of(stored)


def _positive_of(stored: dict[str, Any]) -> int | None:
    """The positive rows that a file's state knows of; version 0.1 kept none."""
    return stored["positive"] if type(stored.get("positive")) is int else None


def _known(above: int | None) -> dict[str, int]:
    return {} if above is None else {"positive": above}


def _counts_of_finished(out: Path, about: dict[str, Any]) -> tuple[int, int, int | None]:
    """Rows of a finished file, those with a value, those positive; raises UserError unless it is of a run like this."""
    done, known = _parts(out)[2], {"rows": int, "scored": int, "bytes": int, "sha256": str, "checksum": str}
    otherwise = "name another file with --out, or move it away"
    try:
        stored = read_json(done, known)
    except (Damaged, FileNotFoundError):
        stored = None
    if stored is None or not is_sealed(stored):
        raise UserError(f"{out} exists; {otherwise}")
    if differs := _difference(stored, about):
        raise UserError(f"{out} exists, and was made {differs}; {otherwise}")
    with open(out, "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == stored["sha256"]
    if not same:
        raise UserError(f"{out} exists, and is not as it was written; {otherwise}")
    return stored["rows"], stored["scored"], _positive_of(stored)


def _difference(stored: dict[str, Any], about: dict[str, Any]) -> str | None:
    """The first thing in which another run differs from this one, with both values."""
    for name, now in about.items():
        if (then := stored.get(name)) != now:
            return f"with another {name}: {reprlib.repr(then)}, now {reprlib.repr(now)}"
    return None


# The summary at the end


class Without(NamedTuple):
    """Rows without a value for one reason: how many, where the first are, and what is wrong with the first."""

    rows: int
    first: list[str]
    why: str


def _note(group: list[Review], without: dict[str, Without], several: bool) -> None:
    """Count a group's rows without a value, by reason."""
    for review in group:
        if review.note:
            reason, _, why = review.note.partition(": ")
            place = f"{review.source}:{review.line}" if several else str(review.line)
            count, first, why = without.get(reason, Without(0, [], why))
            without[reason] = Without(count + 1, first + [place] * (count < SHOWN), why)


def _require_scored(scored: int, out: Path | None) -> None:
    if not scored:
        raise UserError(f"no row could be scored; the notes in {out or 'the rows'} say why")


def _report(without: dict[str, Without]) -> None:
    """Lines on stderr: the rows without a value by number."""
    for reason, (count, first, why) in without.items():
        places = ", ".join(first) + " ..." * (count > len(first))
        first = f" (the first: {why})" if why else ""
        logger.warning(f"{count:,} without a value, {reason}{first}: line{'s' * (count > 1)} {places}")


def _counts(total: int, scored: int, above: int | None) -> str:
    """How many rows there are, and how many of those with a value are positive."""
    share = (
        f", {above:,} ({above / scored:.1%}) positive, {scored - above:,} negative"
        if scored and above is not None
        else ""
    )
    return f"{total:,} rows, {scored:,} scored{share}"
