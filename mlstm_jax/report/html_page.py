"""One HTML page that holds all it shows: no script, no network. Its blocks are made by functions that escape text."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlstm_jax.text import printable, show, to_bytes

# Nothing is loaded: pictures lie in the page, and a script that slipped in would not run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --paper: #fdfdfc; --soft: #606060; --line: #d8d8d4; --inset: #f2f2ee;
  --link: #00588a; --good: #0072B2; --warning: #D55E00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #161618; --soft: #a3a3a0; --line: #3a3a3d; --inset: #222225;
    --link: #7cc0ee; }
}
* { box-sizing: border-box; }
body { max-width: 70ch; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.8rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
a { color: var(--link); }
.verdict { padding: .8rem 1rem; border-left: 4px solid var(--good); background: var(--inset); font-weight: 500; }
.warning { border-color: var(--warning); }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 0 1.25rem; }
@media (max-width: 36rem) { .columns { grid-auto-flow: row; } }
.columns p { white-space: pre-wrap; font-size: .95rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1rem 0 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); white-space: nowrap; }
tbody th { font-weight: 500; color: var(--soft); }
.number { text-align: right; white-space: nowrap; }
pre { white-space: pre-wrap; padding: .8rem 1rem; background: var(--inset); border-radius: 6px; font-size: .9rem; }
figure { margin: 1.5rem 0; }
figcaption { margin-top: .4rem; color: var(--soft); font-size: .9rem; }
figure > svg { display: block; width: 100%; height: auto; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, blocks: Iterable[str]) -> str:
    """A whole HTML page: the title, and the blocks below it."""
    body = "\n".join(blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def escape(text: str) -> str:
    """Text as HTML that shows as that text; what no page can show (control characters, no UTF-8) shows as U+FFFD."""
    return html.escape(printable(show(to_bytes(text))))


def heading(text: str, anchor: str = "") -> str:
    """The heading of a section; `contents` leads to its anchor."""
    named = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h2{named}>{escape(text)}</h2>"


def contents(sections: Iterable[tuple[str, str]]) -> str:
    """Links to headings, of their texts and anchors."""
    links = "".join(f'<li><a href="#{escape(anchor)}">{escape(text)}</a></li>' for text, anchor in sections)
    return f'<nav aria-label="contents"><ul>{links}</ul></nav>'


def verdict(text: str, warning: bool) -> str:
    """What comes out of it all, in one line; a warning has another colour."""
    return f'<p class="verdict{" warning" * warning}">{escape(text)}</p>'


def columns(texts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Columns of texts under their titles, side by side; one below the other where the screen is too narrow."""
    shown = lambda text: f'<p dir="auto">{escape(text)}</p>'
    each = (f"<div><h3>{escape(title)}</h3>{''.join(map(shown, column))}</div>" for title, column in texts)
    return f'<div class="columns">{"".join(each)}</div>'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[object]], header: Sequence[object] = ()) -> str:
    """A table; columns of numbers stand on the right. Without a header, each row is headed by its first cell.

    It scrolls where the screen is too narrow.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    columns = max(map(len, rows), default=0)
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    aligned = lambda i: ' class="number"' if i < columns and numeric[i] else ""
    head = "".join(f'<th scope="col"{aligned(i)}>{escape(str(cell))}</th>' for i, cell in enumerate(header))
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if i == 0 and not header else f"<td{aligned(i)}>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>\n" if header else ""
    # A keyboard scrolls what can have the focus.
    region = '<div class="scroll" role="region" aria-label="table" tabindex="0">'
    return f"{region}<table>\n{head}<tbody>\n{body}\n</tbody>\n</table></div>"


_NUMBER = re.compile(r"[-+−±]?\d[\d,.]*([eE][-+]?\d+)?( ?%)?( ± \d[\d,.]*( ?%)?)?( \[.*\])?|[-–—]?")


def picture(path: Path, caption: str) -> str:
    """A PNG or SVG file of ours, in the page itself, with what it shows below it and for those who do not see it.

    A PNG has white paper; an SVG takes the page's ink.
    """
    if path.suffix == ".svg":
        drawn = re.sub("<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        image = drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    else:
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
