"""Draw what benchmarks.train_step has measured: `python -m benchmarks.plot FIGURES.jsonl docs/benchmarks.png`."""

from json import loads
from pathlib import Path
from statistics import median

import tyro
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "ours": "#0072B2",
    "plain JAX": "#D55E00",
    "plain JAX, rows first": "#E69F00",
    "PyTorch": "#009E73",
    "PyTorch, compiled": "#CC79A7",
}


def main(figures: Path, picture: Path, /) -> None:
    """Draw the fraction of the matmul rate, and bytes a second, by width, of every program that trains.

    Args:
        figures: What --json FILE has collected; of equal programs and widths the last counts.
        picture: A PNG file.
    """
    rows = [loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    rows = {(row["program"], row["hidden"]): row for row in rows if row["benchmark"] == "train_step"}
    widths = sorted({hidden for _, hidden in rows})
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for program, colour in COLOURS.items():
        found = [rows[program, width] for width in widths if (program, width) in rows]
        if not found:
            continue
        style = {"color": colour, "markersize": 4, "label": program}
        at, rounds = [row["hidden"] for row in found], [row["of matmul"] for row in found]
        left.plot(at, list(map(median, rounds)), "o-", **style)
        left.vlines(at, list(map(min, rounds)), list(map(max, rounds)), color=colour, alpha=0.35)
        right.plot(at, [row["bytes/s"] for row in found], "o-", **style)
    for axes, name in ((left, "fraction of the matmul rate"), (right, "bytes trained on a second")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, list(map(str, widths)))
        axes.set(xlabel="units", title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    left.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    right.legend(frameon=False)
    figure.savefig(picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    tyro.cli(main)
