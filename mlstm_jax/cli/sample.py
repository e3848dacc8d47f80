"""Sample text from a trained model, with units held at values if asked.

python sample.py                                     # the run with the newest checkpoint
python sample.py runs/quickstart --prime "This movie " --clamp 12=1.0
python sample.py runs/quickstart --sentiment +2      # after eval_sst.py has found the unit
"""

import codecs
import contextlib
import logging
import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from mlstm_jax.cli.program import announce
from mlstm_jax.errors import UserError
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.text import printable, show, to_bytes

logger = logging.getLogger(__name__)


def main(
    run: Path | None = None,
    /,
    *,
    prime: str = "",
    num: int | None = None,
    length: int = 300,
    clamp: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="UNIT=VALUE[@BYTE][,VALUE@BYTE...]"), tyro.conf.UseAppendAction
    ] = (),
    sentiment: float | None = None,
    task: str | None = None,
    options: Annotated[SamplingOptions, tyro.conf.arg(name="")] = SamplingOptions(),
    stream: bool = False,
    json: bool = False,
) -> None:
    """Write reviews, a blank line between them.

    Args:
        run: A run folder, or another program's weights; by default the run with the newest checkpoint, or
            where there is none the model that comes with the package.
        prime: What every sample begins with.
        num: Samples, all in one batch; by default 4, and 1 with --stream.
        length: Bytes of every sample after the prime.
        clamp: Hold a unit at a value while writing, as in 2388=1.0; repeat it for several units. 2388=1.0@0,-1.0@200
            changes the value at byte 200 after the prime, and 2388=1.0,free@200 lets the unit go there.
        sentiment: Hold the unit that eval_sst.py found, this many deviations from neutral; above 0 is positive.
        task: The task whose unit --sentiment holds; needed where units of several tasks were found.
        options: How the bytes are drawn.
        stream: Print the one sample while it is written.
        json: Print one JSON object a line for each sample on stdout, and all else on stderr.
    """
    held = {}
    for pair in clamp:
        unit, values = parse_clamp(pair)
        if unit in held:
            raise UserError(f"unit {unit} is held twice; name all its values in one --clamp")
        held[unit] = values
    if stream and json:
        raise UserError("--stream prints text and --json prints objects; leave one out")
    if stream and num not in (None, 1):
        raise UserError("--stream prints one sample; leave --num out")
    if sentiment is not None and options.clamp_feature != "cell":
        raise UserError("--sentiment holds a cell state; leave --clamp-feature out")
    if task is not None and sentiment is None:
        raise UserError("--task says whose unit --sentiment holds; add --sentiment, as in +2")
    num = num if num is not None else 1 if stream else 4

    with contextlib.redirect_stdout(sys.stderr):
        from mlstm_jax.inference import language_model  # late, because they import jax: --help stays quick

        model = language_model.load(run)
        if sentiment is not None:
            announce(model.unit_of(task))
            for unit, value in model.sentiment_clamp(sentiment, task, held, options).items():
                logger.info(f"holding unit {unit} at {value:.4g}")
                held[unit] = [(0, value)]
    shown = printable if sys.stdout.isatty() else lambda text: text
    drawn = asdict(options)
    if stream:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # no character is cut between two pieces
        write = lambda data, final=False: print(shown(decoder.decode(data, final)), end="\n" * final, flush=True)
        first = [to_bytes(prime)]  # printed with what follows, so that a refused option prints nothing
        on_bytes = lambda _, piece: write((first.pop() if first else b"") + piece)
        model.generate(prime, 1, length, held, on_bytes=on_bytes, **drawn)
        write(b"".join(first), final=True)
        return
    texts = model.generate(prime, num, length, held, show_progress=True, **drawn)
    if json:
        about = {"prime": show(to_bytes(prime)), "length": length, "clamp": held} | drawn
        about |= {"sentiment": sentiment, "weights": model.name, "update": model.update}
        texts = [dumps({"text": text, "index": index} | about) for index, text in enumerate(texts)]
    print(("\n" if json else "\n\n").join(map(shown, texts)), flush=True)


def run(args: list[str]) -> None:
    """`mlstm sample` with these arguments."""
    tyro.cli(main, prog="mlstm sample", args=args)


def parse_clamp(pair: str) -> tuple[int, list[tuple[int, float | None]]]:
    """UNIT=VALUE[@BYTE][,VALUE@BYTE...] as the unit and its values, each from a byte on; "free" is the value None.

    Raises UserError for anything else.
    """
    unit, _, values = pair.partition("=")
    try:
        parts = [part.partition("@") for part in values.split(",")]
        number = lambda value: None if value == "free" else float(value)
        return int(unit), [(int(byte) if at else 0, number(value)) for value, at, byte in parts]
    except ValueError:
        forms = "UNIT=VALUE, as in 2388=1.0, or UNIT=VALUE@BYTE,VALUE@BYTE, as in 2388=1.0@0,-1.0@200,free@300"
        raise UserError(f"--clamp takes {forms}; not {pair!r}") from None
