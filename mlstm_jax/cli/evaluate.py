"""Find the sentiment unit of a trained model: features, L1 probe, the unit; a table, pictures and the unit record.

python eval_sst.py                                   # the run with the newest checkpoint
python eval_sst.py runs/quickstart --task imdb
python eval_sst.py runs/quickstart --report out      # everything, as one HTML page
"""

import contextlib
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mlstm_jax import storage, tasks, unit_record
from mlstm_jax.cli import program
from mlstm_jax.cli.program import log, note
from mlstm_jax.errors import UserError
from mlstm_jax.sentiment import probe
from mlstm_jax.unit_record import UnitRecord

if TYPE_CHECKING:
    from mlstm_jax.inference.language_model import LanguageModel

ENOUGH_UNITS = 256  # the smallest model in which we saw one unit carry sentiment (docs/emergence.md)


def main(
    run: Path | None = None,
    also: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN ...]")] = (),
    /,
    *,
    task: str = "sst",
    data: Path | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    positive: Annotated[str | None, tyro.conf.arg(metavar="LABEL[,LABEL...]")] = None,
    negative: Annotated[str | None, tyro.conf.arg(metavar="LABEL[,LABEL...]")] = None,
    encoding: str | None = None,
    threshold: Annotated[str, tyro.conf.arg(metavar="accuracy|f1|precision=P")] = "accuracy",
    feature: Literal["cell", "tanh_cell", "hidden"] = "cell",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    controls: bool = False,
    label_efficiency: bool = False,
    over_training: bool = False,
    clamp_effect: bool = False,
    samples: int = 64,
    sample_length: int = 200,
    report: Path | None = None,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Find the unit that carries sentiment, by an L1 logistic regression on a model's features of labelled texts.

    Args:
        run: A run folder, or another program's weights; by default the run with the newest checkpoint, or
            where there is none the model that comes with the package.
        also: Further runs, to compare with --over-training: nothing else is evaluated then.
        task: The labelled texts: sst (fetched once), imdb and rotten_tomatoes (they come with the installed packages),
            mr, cr, subj and mpqa (files in --data), tfds:NAME, or a file of your own (.csv .tsv .jsonl .parquet .xlsx).
        data: Folder of the task's files: SST's three CSV files, instead of fetching them, or the pair of mr, cr ...
        text_key: Column or JSON key of the text in a file of your own; found by its usual names.
        label_key: Column or JSON key of the label there; two classes or more.
        positive: The labels there that are the positive class, where it is not plain (the higher number, usual words).
        negative: Those of the negative class. Texts of labels named in neither are left out.
        encoding: Encoding of a file of your own, as windows-1252; UTF-8, UTF-16 and UTF-32 are recognised.
        threshold: What the threshold by which `mlstm score` judges is to be best by, on the training texts: accuracy,
            F1 of the positive class, or its recall at a precision, as precision=0.9.
        feature: What is read of the state after a text's last byte. Only a unit of the cell can be held in sampling.
        precision: Matrix products; auto is bfloat16 on GPU and TPU, float32 on CPU.
        controls: Test the unit: random units, probes without it, texts that end otherwise, other features.
        label_efficiency: Accuracy against the number of labelled texts.
        over_training: The best unit at a dozen checkpoints of the run.
        clamp_effect: Write with the unit held at -3 ... +3 deviations, and have others judge the samples.
        samples: Samples at each of these values.
        sample_length: Bytes of each sample.
        report: Folder for all of this as one HTML page, index.html, with its pictures.
        json: Print one JSON object on stdout, and all else on stderr.
        out: Folder of the pictures; by default RUN/eval/TASK.
    """
    if samples < 1 or sample_length < 1:
        raise UserError("--samples and --sample-length must be at least 1")
    data, out, report = (
        data and storage.local(data),
        out and storage.local(out, "write"),
        report and storage.new(report),
    )
    if data:
        storage.fetch(data)
    page = report and report / "index.html"
    if page is not None and page.exists():
        raise UserError(f"{page} is there already; name another folder with --report")
    others = controls or label_efficiency or clamp_effect or report or threshold != "accuracy"
    if also and (others or not over_training):
        raise UserError("several runs are compared with --over-training, and nothing else")
    probe.least_precision(threshold)  # what is wrong with it is said now
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout), contextlib.ExitStack() as sending:
        from mlstm_jax.inference import language_model
        from mlstm_jax.sentiment import evaluation, sections  # late, as they import jax: --help stays quick

        model = language_model.load(run, precision=precision)
        model.require_bytes()
        texts = labelled(task, data, text_key, label_key, positive, negative, encoding)
        folder = out or model.kept.pictures(texts.name)
        sending.enter_context(storage.sent(folder))
        sending.enter_context(storage.sent(report, is_new=True))
        if isinstance(texts, tasks.Folds) or len(texts.classes) > 2:
            if others or over_training:
                raise UserError(
                    f"{texts.name} has ten folds or many classes: it is evaluated without further tests and thresholds"
                )
            if isinstance(texts, tasks.Folds):
                part, numbers = sections.in_folds(model, texts, feature)
            else:
                part, numbers = sections.of_classes(model, texts, feature)
            sections.show(part)
        elif also:
            part = sections.over_training([model.path, *map(storage.local, also)], texts, model, feature, folder)
            sections.show(part)
            numbers = {"tables": {part.title: [part.header or (), *part.rows]}}
            numbers |= {f"{picture.path.stem}_png": storage.name(picture.path) for picture in part.pictures}
        else:
            found = evaluation.find(model, texts, feature, threshold)
            record = found.record
            with storage.sent(model.record_dir):  # at once: what follows may take long
                saved = unit_record.save(record, model.record_dir)
            folder = report or folder
            parts = []

            def add(*new: sections.Section) -> None:
                for part in new:
                    sections.show(part)
                parts.extend(new)

            add(sections.the_unit(model, found, folder), sections.rankings(found))
            program.announce(record)
            log(f"wrote {saved}")
            if controls or report:
                add(*sections.doubts(model, texts, found, folder))
            if label_efficiency or report:
                add(sections.label_efficiency(found, folder))
            if over_training or report and model.is_run:
                add(sections.over_training([model.path], texts, model, feature, folder))
            if clamp_effect or report and record.feature == "cell":
                add(sections.effect(model, record, folder, samples, sample_length))
            if page:
                parts += [
                    sections.read(model, texts, found),
                    sections.reproduce(model, program.command("eval", *sys.argv[1:])),
                ]
                log(f"wrote {sections.write(parts, f'Unit {record.unit} of {model.name}', record, page)}")
            advise(model, record)
            numbers = unit_record.summary(record) | {"interval_all": probe.interval(found.right_all)}
            pictures = [picture.path for part in parts for picture in part.pictures]
            numbers |= {f"{path.stem}_png": storage.name(path) for path in pictures}
            numbers |= {"record": storage.name(saved), "report": page and storage.name(page)}
            numbers["tables"] = {part.title: [part.header or (), *part.rows] for part in parts[1:] if part.rows}
    if json:
        about = {"weights": model.name, "hidden": model.hidden, "digest": model.digest, "update": model.update}
        print(dumps(about | {"validation_bits_per_byte": model.validation_bits_per_byte} | numbers))


def run(args: list[str]) -> None:
    """`mlstm eval` with these arguments."""
    tyro.cli(main, prog="mlstm eval", args=args)


def labelled(
    task: str,
    data: Path | None,
    text_key: str | None,
    label_key: str | None,
    positive: str | None,
    negative: str | None,
    encoding: str | None = None,
) -> tasks.Task | tasks.Folds:
    """The labelled texts of a name or a file."""
    if task in tasks.NAMES:
        options = {"text-key": text_key, "label-key": label_key, "positive": positive, "negative": negative}
        options["encoding"] = encoding
        named = [f"--{name}" for name, value in options.items() if value is not None]
        if named:
            raise UserError(f"{' and '.join(named)}: these go with a file of your own, not with {task}")
        return tasks.load(task, data)
    if data is not None:
        raise UserError("--data goes with sst, mr, cr, subj and mpqa; a file is named by --task alone")
    sides = [[name.strip() for name in side.split(",")] if side is not None else () for side in (positive, negative)]
    return tasks.from_file(task, text_key, label_key, *sides, encoding=encoding)


def advise(model: "LanguageModel", record: UnitRecord) -> None:
    """Say what to make of it, and the command to try next."""
    if unit_record.is_weak(record) and model.hidden < ENOUGH_UNITS:
        note(f"A model of {model.hidden} units is small: we saw a sentiment unit in none below {ENOUGH_UNITS}.")
    if record.feature == "cell":
        try:
            is_default = model.unit == record
        except UserError:  # there are several by now
            is_default = False
        named = {} if is_default else {"task": record.task}
        note(f"Next: {program.command('sample', model.name, **named, sentiment='+2')}")
    else:
        again = program.command("eval", model.name, task=record.task, feature="cell")
        note(f"Next: {again} (only a cell state can be held)")
