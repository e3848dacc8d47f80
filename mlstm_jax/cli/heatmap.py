"""Show texts byte by byte, coloured by a unit.

mlstm heatmap runs/quickstart "I loved it." "I hated it."     # after mlstm eval has found the unit
mlstm heatmap runs/quickstart - --out review.html < review.txt
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import tyro

from mlstm_jax import storage
from mlstm_jax.cli.program import log
from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError
from mlstm_jax.report import html_page
from mlstm_jax.report.heatmap import html, plain, png, terminal
from mlstm_jax.text import to_text


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
        task: The task whose unit it is; needed where units of several tasks were found.
        out: A new file, .html or .png, instead of the terminal.
    """
    if not texts or texts.count("-") >= 2:
        raise UserError("name texts, or once - for a text on stdin")
    if out is not None and out.suffix not in (".html", ".png"):
        raise UserError(f"--out takes a file .html or .png, not {out}")
    out = out and storage.new(out)
    if out is not None and out.exists():
        raise UserError(f"{out} is there already; name another file with --out")
    texts = tuple(to_text(sys.stdin.buffer.read()) if text == "-" else text for text in texts)
    from mlstm_jax.inference import language_model  # late, because it imports jax: --help stays quick

    shown, scale, about = language_model.load(run).heatmap(texts, unit, task)
    if out is None:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        draw = terminal if coloured else plain
        print(draw(shown, scale, about, min(100, shutil.get_terminal_size().columns)))
        return
    with storage.sent(out, is_new=True):
        if out.suffix == ".png":
            png(shown, scale, about, out)
        else:
            with atomic(out) as file:
                file.write(html_page.page("Byte by byte", [html(shown, scale, about)]).encode())
    log(f"wrote {out}")


def run(args: list[str]) -> None:
    """`mlstm heatmap` with these arguments."""
    tyro.cli(main, prog="mlstm heatmap", args=args)
