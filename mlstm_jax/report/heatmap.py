"""A text byte by byte, coloured by one unit's value, as in figure 5 of Radford et al. 2017."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError
from mlstm_jax.report import html_page, plots
from mlstm_jax.text import frame, printable, to_bytes, to_text
from mlstm_jax.unit_record import UnitRecord, verdict

# Okabe and Ito's blue and orange, which colour-blind readers can tell apart, and what lies between them on paper.
BLUE, ORANGE, PAPER = (tuple(bytes.fromhex(c[1:])) for c in (plots.BLUE, plots.ORANGE, "#FAFAFA"))
OPACITY = 0.6  # of the full colour: both black and white text can be read on it
DEVIATIONS = 2  # from the middle to the full colour, where no values of bytes were measured
ROWS = 500  # in one PNG


class Span(NamedTuple):
    """A character as it shows, its bytes, the number of its last byte, from 0, and the unit's value after that byte.

    The number counts the framed text, as the rows of `LanguageModel.trace` do.
    """

    character: str
    data: bytes
    byte: int
    value: float


class Scale(NamedTuple):
    """The values that have full orange, no colour and full blue; low is above high where the unit is negative."""

    low: float
    mid: float
    high: float
    names: tuple[str, str, str] = ("negative", "neutral", "positive")


class HeatMap(NamedTuple):
    """The spans of each text, their scale, and what they are in words. A notebook shows it in colour."""

    texts: list[list[Span]]
    scale: Scale
    about: str

    def _repr_html_(self) -> str:
        return html(*self)

    def __repr__(self) -> str:
        return plain(*self)


def draw(
    texts: Sequence[str], values: Sequence[Float[np.ndarray, "_"]], unit: int, record: UnitRecord | None
) -> HeatMap:
    """The heat map of texts with the unit's values after every byte of each framed text.

    The scale is the record's. Without one the values are those of the cell state, on a scale of their own.
    """
    values = [of_text.astype(np.float64) for of_text in values]
    # The two bytes before a text are its frame's; the one after it is where a text is judged.
    shown = [spans(frame(text), of_text)[2:] for text, of_text in zip(texts, values, strict=True)]
    feature = record.feature if record else "cell"
    name = f"Unit {unit}, {feature.replace('_', ' of the ')} state"
    if record:
        scale = of_record(record)
        full = "the most extreme hundredth of bytes" if record.scale else f"{DEVIATIONS} deviations from there"
        middle = f"no colour: the midpoint of the class means of {record.task}; full colour: {full}"
    else:
        every = np.concatenate(values)
        mid, reach = float(every.mean()), DEVIATIONS * float(every.std())
        scale = Scale(mid - reach, mid, mid + reach, ("low", "mean", "high"))
        middle = (
            f"full colour {DEVIATIONS} deviations from the mean of these bytes; which sign is positive is not known"
        )
    judged = f"; {verdict(record)}" if record else ""
    return HeatMap(shown, scale, f"{name}: {middle}{judged}")


def of_record(record: UnitRecord) -> Scale:
    """The scale of a unit's colours: from the midpoint of the class means to what few bytes of a text go beyond.

    At least a deviation to each side. An older record, which has no such values, has `DEVIATIONS` of them.
    """
    mid = (record.mean_negative + record.mean_positive) / 2
    if record.scale:
        low, high = min(mid - record.deviation, record.scale[0]), max(mid + record.deviation, record.scale[1])
    else:
        low, high = mid - DEVIATIONS * record.deviation, mid + DEVIATIONS * record.deviation
    return Scale(low, mid, high) if record.sign > 0 else Scale(high, mid, low)


def spans(data: bytes, values: Float[np.ndarray, "n"]) -> list[Span]:
    """UTF-8 characters with the value after the last byte of each; a byte that is not UTF-8 is a character of its own.

    Such bytes show as U+FFFD; so does what is not `printable`. Raises UserError unless there is a value for every byte.
    """
    if len(data) != len(values):
        raise UserError(f"{len(data)} bytes have {len(values)} values")
    found, end = [], 0
    for character in to_text(data):
        start, end = end, end + len(to_bytes(character))
        found.append(Span(printable(character), data[start:end], end - 1, float(values[end - 1])))
    return found


def strength(value: float, scale: Scale) -> float:
    """How positive a value is, from -1 (full orange) over 0 (no colour) to 1 (full blue)."""
    side = (value > scale.mid) == (scale.high > scale.low)  # where it is positive
    reach = (scale.high if side else scale.low) - scale.mid
    if not reach or np.isnan(value):
        return 0.0
    return min(1.0, (value - scale.mid) / reach) * (1 if side else -1)


def colour(value: float, scale: Scale) -> tuple[int, int, int]:
    """The colour of a value on paper, as red, green and blue, 0 to 255. Black text can be read on it."""
    s = strength(value, scale)
    mix = lambda end, paper: round(paper + OPACITY * abs(s) * (end - paper))
    return tuple(map(mix, BLUE if s > 0 else ORANGE, PAPER))


def rows(spans: Sequence[Span], columns: int = 80) -> list[list[Span]]:
    """Spans in lines of at most `columns` (2 or more), broken after spaces where there are any, and at newlines."""
    done, row, wide = [], [], 0
    for span in spans:
        if span.character == "\n":
            done.append(row)
            row, wide = [], 0
            continue
        row.append(span)
        wide += width(span.character)
        if wide > columns:
            cut = max((i for i, s in enumerate(row[:-1], 1) if s.character == " "), default=len(row) - 1)
            done.append(row[:cut])
            row = row[cut:]
            wide = sum(width(s.character) for s in row)
    return done + [row]


def width(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def html(texts: Sequence[Sequence[Span]], scale: Scale, about: str, beside: Sequence[str] = ()) -> str:
    """A figure in HTML that needs no style sheet, for `report.page`. Pointing at a character shows bytes and value.

    The colours are see-through, so that they do on light and on dark paper. `beside` is a word or two for each text.
    """
    tint = lambda s: f"rgba{(*(BLUE if s > 0 else ORANGE), round(OPACITY * abs(s), 2))}".replace(" ", "")
    hover = lambda span: f"{span.character} = {span.data.hex(' ')}: {span.value:.3g} after byte {span.byte}"
    shown = lambda span: (
        f'<span style="background:{tint(strength(span.value, scale))}" title="{html_page.escape(hover(span))}">'
        f"{html_page.escape(span.character)}</span>"
    )
    # Two letters drawn as one would have one colour; on a narrow screen a text stands below what is beside it.
    style = "flex:1 1 20em;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;font-variant-ligatures:none"
    row = lambda text, words: (
        '<div style="display:flex;flex-wrap:wrap;gap:0 1em;align-items:baseline">'
        + f'<div style="flex:0 0 7em;font-size:.85em">{html_page.escape(words)}</div>' * bool(words)
        + f'<p dir="auto" style="{style}">{"".join(map(shown, text))}</p></div>'
    )
    body = "\n".join(map(row, texts, beside or [""] * len(texts)))
    bar = f"color:CanvasText;background:linear-gradient(to right,{tint(-1)},transparent,{tint(1)})"
    ends = "".join(
        f'<span style="text-align:{side}">{words}</span>'
        for side, (words, _) in zip(("left", "center", "right"), _key(scale), strict=True)
    )
    key = f'<div style="display:grid;grid-template-columns:repeat(3,1fr);padding:0 .5em;{bar}">{ends}</div>'
    caption = f"<figcaption>{html_page.escape(about)}{key}</figcaption>"
    return f'<figure style="print-color-adjust:exact">\n{caption}\n{body}\n</figure>'  # paper shows the colours, too


def terminal(texts: Sequence[Sequence[Span]], scale: Scale, about: str, columns: int = 80) -> str:
    """The texts in 24-bit colour, black on the unit's colours, so that any terminal's own colours do; a legend last."""
    lines = [*_lines(texts, columns), _legend(scale)]
    return "\n".join(_line(row, scale) for row in lines) + f"\n{printable(about)}"


def _line(row: Sequence[Span], scale: Scale) -> str:
    """A row of the terminal; an escape sequence for every change of colour, and the terminal's own at the end."""
    pieces = ((c, "".join(s.character for s in part)) for c, part in groupby(row, lambda s: colour(s.value, scale)))
    line = "".join(f"\x1b[38;2;0;0;0;48;2;{r};{g};{b}m{piece.expandtabs(1)}" for (r, g, b), piece in pieces)
    return line + "\x1b[0m" * bool(row)


def plain(texts: Sequence[Sequence[Span]], scale: Scale, about: str, columns: int = 80) -> str:
    """The texts without colour, and under each character N n . p or P: from negative to positive; a legend last."""
    mark = lambda span: "Nn.pP"[round(2 * strength(span.value, scale)) + 2] * width(span.character)
    lines = []
    for row in _lines(texts, columns):
        lines += ["".join(s.character for s in row).expandtabs(1), "".join(map(mark, row))] if row else [""]
    key = ", ".join(f"{letter} {name}" for letter, (name, _) in zip("N.P", _key(scale), strict=True))
    return "\n".join([*lines, f"{key}; n and p lie between", printable(about)])


def _lines(texts: Sequence[Sequence[Span]], columns: int) -> list[list[Span]]:
    """All texts in lines, an empty one after each."""
    return [row for text in texts for row in [*rows(text, columns), []]]


def _key(scale: Scale) -> list[tuple[str, float]]:
    """The legend's three words, and the values whose colours they have."""
    return [(f"{name} {value:.3g}", value) for name, value in zip(scale.names, scale[:3], strict=True)]


def _legend(scale: Scale) -> list[Span]:
    """The same as a line of spans."""
    return [Span(c, b"", 0, value) for words, value in _key(scale) for c in f" {words} "]


def png(texts: Sequence[Sequence[Span]], scale: Scale, about: str, path: Path, columns: int = 80) -> Path:
    """Draw the texts, a legend below them. What the font has no glyph for is a box. PNG.

    Raises UserError for texts too long for one picture, and where matplotlib cannot draw them.
    """
    lines = _lines(texts, columns)
    if len(lines) > ROWS:
        raise UserError(f"{len(lines):,} lines are too many for one picture: at most {ROWS}; name a file .html")
    try:
        return _draw(lines, scale, about, path, columns)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be drawn: {plots.reason(error)}; name a file .html") from None


def _draw(lines: list[list[Span]], scale: Scale, about: str, path: Path, columns: int) -> Path:
    plots.import_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, get_font

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"  # it comes with matplotlib
    font, glyphs = FontProperties(fname=file, size=10), get_font(file).get_charmap()
    lines += [_legend(scale), [], *rows([Span(c, b"", 0, scale.mid) for c in about], columns)]
    inches, high = 0.0869, 0.22  # of a column and of a row: the font's advance is 0.602 of its size
    figure = Figure(figsize=((columns + 4) * inches, (len(lines) + 2) * high), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2, columns + 2), ylim=(len(lines) + 1, -1))
    axes.set_axis_off()
    for y, row in enumerate(lines):
        x = 0
        for character, wide, value in _cells(row):
            if value != scale.mid:
                axes.bar(x, 1, wide, y, align="edge", color=np.array(colour(value, scale)) / 255, linewidth=0)
            if not character.isspace():
                seen = character if ord(character) in glyphs else "\u25a1"
                axes.text(x + wide / 2, y + 0.72, seen, ha="center", va="baseline", parse_math=False, font=font)
            x += wide
    with atomic(path) as written:
        figure.savefig(written, format="png", facecolor="white")
    return path


def _cells(row: Sequence[Span]) -> list[tuple[str, int, float]]:
    """The characters of a row that take room, composed with the marks that follow them, their widths and values."""
    cells = []
    for span in row:
        wide = width(span.character)
        if wide or not cells:
            cells.append((span.character, wide, span.value))
        else:  # e and an acute accent are an é, whose value is the accent's; a mark that does not compose is left out
            composed = unicodedata.normalize("NFC", cells[-1][0] + span.character)[0]
            cells[-1] = (composed, cells[-1][1], span.value)
    return cells
