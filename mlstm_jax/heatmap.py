"""A text byte by byte, coloured by one unit's value, as in figure 5 of Radford et al. 2017.

python -m mlstm_jax.heatmap runs/quickstart "I loved it." "I hated it."     # after eval_sst.py has found the unit
python -m mlstm_jax.heatmap runs/quickstart - --out review.html < review.txt
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from mlstm_jax import report
from mlstm_jax.config import UserError, require, script
from mlstm_jax.disk import atomic
from mlstm_jax.text import decode, encode, frame, printable

# Okabe and Ito's blue and orange, which colour-blind readers can tell apart, and what lies between them on paper.
BLUE, ORANGE, PAPER = (0, 114, 178), (213, 94, 0), (250, 250, 250)
OPACITY = 0.6  # of the full colour: both black and white text can be read on it
DEVIATIONS = 2  # from the middle to the full colour
ROWS = 500  # in one PNG


class Span(NamedTuple):
    """A character, the number of its last byte, from 0, and the unit's value after that byte."""

    character: str
    byte: int
    value: float


class Scale(NamedTuple):
    """Values that show in full orange (negative), without colour, in full blue (positive).

    `low` lies above `high` where the unit points down.
    """

    low: float
    mid: float
    high: float


def main(
    run: Path,
    texts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")],
    /,
    *,
    unit: int | None = None,
    task: str | None = None,
    out: Path | None = None,
) -> None:
    """Show texts byte by byte, blue where a unit is positive and orange where it is negative.

    Args:
        run: A run folder, or another program's weights.
        texts: One or more texts; - is a text on stdin.
        unit: The unit shown; by default the one that eval_sst.py found.
        task: The task whose unit it is; by default the one evaluated last.
        out: A new file, .html or .png, instead of the terminal.
    """
    require(texts, "name a text, or - for a text on stdin")
    require(out is None or out.suffix in (".html", ".png"), f"--out takes a file .html or .png, not {out}")
    require(out is None or not out.exists(), f"{out} is there already; name another file with --out")
    texts = [decode(sys.stdin.buffer.read()) if text == "-" else text for text in texts]
    from mlstm_jax import lm  # late, because it imports jax: --help stays quick

    shown, scale, about = read(lm.load(run), texts, unit, task)
    if out is None:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        draw = terminal if coloured else plain
        print(draw(shown, scale, about, min(100, shutil.get_terminal_size().columns)))
        return
    if out.suffix == ".png":
        png(shown, scale, about, out)
    else:
        with atomic(out) as file:
            file.write(report.page("Byte by byte", [html(shown, scale, about)]).encode())
    print(f"wrote {out}")


def read(
    model: Any, texts: Sequence[str], unit: int | None = None, task: str | None = None
) -> tuple[list[list[Span]], Scale, str]:
    """The spans of each text under a LanguageModel, their scale, and what they are in words.

    The unit, its feature and its scale are those of the unit record. Of another unit the cell state is shown, on the
    scale of these very texts. Raises UserError where there is neither a record nor a unit.
    """
    from mlstm_jax import units

    try:
        record = units.load(model.record_dirs, model.digest, task)
    except UserError:
        if unit is None:
            raise
        record = None
    known = record is not None and unit in (None, record.unit)
    unit, feature = (record.unit, record.feature) if known else (unit, "cell")
    require(0 <= unit < model.hidden, f"unit {unit} does not exist; this model has units 0 to {model.hidden - 1}")
    values = [np.asarray(model.trace(text, feature)[:, unit], np.float64) for text in texts]
    # The two bytes before a text are its frame's; the one after it is where a text is judged.
    shown = [spans(frame(text), of_text)[2:] for text, of_text in zip(texts, values, strict=True)]
    name = f"Unit {unit}, {feature.replace('_', ' of the ')} state"
    if known:
        mid = (record.mean_negative + record.mean_positive) / 2
        reach = DEVIATIONS * record.sign * record.deviation
        about = f"{name}: full colour {DEVIATIONS} deviations from the midpoint of the class means of {record.task}"
    else:
        every = np.concatenate(values)
        mid, reach = float(every.mean()), DEVIATIONS * float(every.std())
        about = (
            f"{name}: full colour {DEVIATIONS} deviations from the mean of these bytes; the unit's sign is not known"
        )
    return shown, Scale(mid - reach, mid, mid + reach), about


def spans(data: bytes, values: Float[np.ndarray, "n"]) -> list[Span]:
    """UTF-8 characters with the value after the last byte of each; a byte that is not UTF-8 is a U+FFFD of its own.

    Control characters other than newline and tab show as U+FFFD, too.
    """
    require(len(data) == len(values), f"{len(data)} bytes have {len(values)} values")
    found, end = [], 0
    for character in decode(data):
        end += len(encode(character))
        seen = "\ufffd" if "\ud800" <= character <= "\udfff" else printable(character)
        found.append(Span(seen, end - 1, float(values[end - 1])))
    return found


def strength(value: float, scale: Scale) -> float:
    """How positive a value is, from -1 (full orange) over 0 (no colour) to 1 (full blue)."""
    towards = scale.high if (value - scale.mid) * (scale.high - scale.mid) > 0 else scale.low
    reach = abs(towards - scale.mid)
    if not reach or np.isnan(value):
        return 0.0
    return float(np.clip((value - scale.mid) / reach, -1, 1)) * (1 if scale.high > scale.mid else -1)


def colour(value: float, scale: Scale) -> tuple[int, int, int]:
    """The colour of a value on paper, as red, green and blue, 0 to 255. Black text can be read on it."""
    s = strength(value, scale)
    mix = lambda end, paper: round(paper + OPACITY * abs(s) * (end - paper))
    return tuple(map(mix, BLUE if s > 0 else ORANGE, PAPER))


def rows(spans: Sequence[Span], columns: int = 80) -> list[list[Span]]:
    """Spans in lines of at most `columns` (2 or more), broken after spaces where there are any, and at newlines."""
    done, row = [], []
    for span in spans:
        if span.character == "\n":
            done.append(row)
            row = []
            continue
        row.append(span)
        if sum(width(s.character) for s in row) > columns:
            cut = max((i for i, s in enumerate(row[:-1], 1) if s.character == " "), default=len(row) - 1)
            done.append(row[:cut])
            row = row[cut:]
    return done + [row]


def width(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def html(texts: Sequence[Sequence[Span]], scale: Scale, about: str) -> str:
    """A figure in HTML that needs no style sheet, for `report.page`. Pointing at a character shows byte and value.

    The colours are see-through, so that they do on light and on dark paper.
    """
    tint = lambda s: f"rgba{(*(BLUE if s > 0 else ORANGE), round(OPACITY * abs(s), 2))}".replace(" ", "")
    wrap = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7"
    paragraphs = (
        "".join(
            f'<span style="background:{tint(strength(span.value, scale))}" '
            f'title="byte {span.byte}: {span.value:.3g}">{report.escape(span.character)}</span>'
            for span in text
        )
        for text in texts
    )
    body = "\n".join(f'<p dir="auto" style="{wrap}">{paragraph}</p>' for paragraph in paragraphs)
    bar = f"color:CanvasText;background:linear-gradient(to right,{tint(-1)},transparent,{tint(1)})"
    names = ("negative", scale.low), ("", scale.mid), ("positive", scale.high)
    ends = "".join(f"<span>{f'{name} {value:.3g}'.strip()}</span>" for name, value in names)
    key = f'<div style="display:flex;justify-content:space-between;padding:0 .5em;{bar}">{ends}</div>'
    return f"<figure>\n{body}\n<figcaption>{key}{report.escape(about)}</figcaption>\n</figure>"


def terminal(texts: Sequence[Sequence[Span]], scale: Scale, about: str, columns: int = 80) -> str:
    """The texts in 24-bit colour, black on the unit's colours, so that any terminal's own colours do; a legend last."""
    key = [Span(c, 0, value) for name, value in _key(scale) for c in f" {name} "]
    lines = [row for text in texts for row in [*rows(text, columns), []]] + [key]
    return "\n".join(_line(row, scale) for row in lines) + f"\n{printable(about)}"


def _line(row, scale):
    """A row of the terminal; an escape sequence for every change of colour, and the terminal's own at the end."""
    pieces = ((c, "".join(s.character for s in part)) for c, part in groupby(row, lambda s: colour(s.value, scale)))
    line = "".join(f"\x1b[38;2;0;0;0;48;2;{r};{g};{b}m{piece.expandtabs(1)}" for (r, g, b), piece in pieces)
    return line + "\x1b[0m" * bool(row)


def plain(texts: Sequence[Sequence[Span]], scale: Scale, about: str, columns: int = 80) -> str:
    """The texts without colour, and under each character N n . p or P: from negative to positive; a legend last."""
    mark = lambda span: "Nn.pP"[round(2 * strength(span.value, scale)) + 2] * width(span.character)
    lines = []
    for row in (row for text in texts for row in [*rows(text, columns), []]):
        lines += ["".join(s.character for s in row).expandtabs(1), "".join(map(mark, row))] if row else [""]
    key = ", ".join(f"{letter} {name}" for letter, (name, _) in zip("N.P", _key(scale), strict=True))
    return "\n".join([*lines, f"{key}; n and p lie between", printable(about)])


def _key(scale):
    """The legend's three words, and the values whose colours they have."""
    return [(f"{name} {x:.3g}", x) for name, x in zip(("negative", "neutral", "positive"), scale, strict=True)]


def png(texts: Sequence[Sequence[Span]], scale: Scale, about: str, path: Path, columns: int = 80) -> Path:
    """Draw the texts, a legend below them. What the font has no glyph for is a box. PNG.

    Raises UserError for texts too long for one picture, and where matplotlib is missing.
    """
    lines = [row for text in texts for row in [*rows(text, columns), []]]
    require(len(lines) <= ROWS, f"{len(lines):,} lines are too many for one picture: at most {ROWS}; name a file .html")
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties, get_font
    except ImportError:
        raise UserError("matplotlib is not installed; name a file .html") from None
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"  # it comes with matplotlib
    font, glyphs = FontProperties(fname=file, size=10), get_font(file).get_charmap()
    drawn = lambda character: character if ord(character) in glyphs else "\u25a1"
    key = [Span(c, 0, value) for name, value in _key(scale) for c in f" {name} "]
    lines += [key, [], *rows([Span(c, 0, scale.mid) for c in about], columns)]
    inches, high = 0.0869, 0.22  # of a column and of a row: the font's advance is 0.602 of its size
    figure = Figure(figsize=((columns + 4) * inches, (len(lines) + 2) * high), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2, columns + 2), ylim=(len(lines) + 1, -1))
    axes.set_axis_off()
    for y, row in enumerate(lines):
        x = 0
        for span in row:
            columns_wide = width(span.character)
            if span.value != scale.mid:
                paint = np.array(colour(span.value, scale)) / 255
                axes.bar(x, 1, columns_wide, y, align="edge", color=paint, linewidth=0)
            if not span.character.isspace():
                at = dict(ha="center", va="baseline", parse_math=False, font=font)
                axes.text(x + columns_wide / 2, y + 0.72, drawn(span.character), **at)
            x += columns_wide
    with atomic(path) as written:
        figure.savefig(written, format="png", facecolor="white")
    return path


if __name__ == "__main__":
    script(lambda: tyro.cli(main))
