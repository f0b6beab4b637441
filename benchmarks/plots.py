"""Draw the figures of the README from ``results.tsv``, in which the numbers of the lab book stand.

    pip install 'mmsearch[dev]' && python benchmarks/plots.py

A line of the table is one measured number: the figure, the series in it, where it stands (a program, or a number of
items), the value and its unit. ``docs/<figure>.png`` is drawn for each figure that has lines:

    cold        seconds and megabytes of a question from the shell, by program       cold.py
    indexing    pictures a second, by program; a series for each kind of pictures    indexing.py
    growth      seconds of a question and rate of indexing, by number of items       growth.py
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
OURS = "mmsearch"
OWN, OTHER, INK = "#1f5fa8", "#b8bec6", "#333333"
LINES = (OWN, "#c9622b", "#4b8b4b", "#7a7a7a", "#8d5fa8")
STYLE = {
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}

Panels = dict[str, dict[str, dict[str, float]]]
"""Values by unit, series and place, each in the order of the table."""


def read(path: Path) -> dict[str, Panels]:
    """The panels of each figure.

    Raises:
        ValueError: a line is incomplete, or its value is no number.
    """
    figures: dict[str, Panels] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 2):
            try:
                figures[row["figure"]][row["unit"]][row["series"]][row["x"]] = float(row["value"])
            except (KeyError, TypeError, ValueError) as exc:
                raise ValueError(f"{path}, line {number}: {exc}") from exc
    return figures


def bars(axes: Any, unit: str, values: dict[str, float]) -> None:
    """One bar for each program, ours in colour, each with its value."""
    names = list(values)
    colours = [OWN if name.startswith(OURS) else OTHER for name in names]
    axes.barh(names, list(values.values()), color=colours, height=0.62)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    for place, value in enumerate(values.values()):
        axes.annotate(f"{value:,.4g}", (value, place), (3, 0), textcoords="offset points", va="center")
    axes.set_title(unit)


def lines(axes: Any, unit: str, series: dict[str, dict[str, float]]) -> None:
    """One line for each series over a number of items, named at its end."""
    for (name, points), colour in zip(series.items(), LINES, strict=False):
        xs, ys = [float(x) for x in points], list(points.values())
        axes.plot(xs, ys, "o-", color=colour, markersize=3.5, linewidth=1.4)
        axes.annotate(name, (xs[-1], ys[-1]), (6, 0), textcoords="offset points", va="center", color=colour)
    axes.set_xscale("log")
    ticks = sorted({float(x) for points in series.values() for x in points})
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.minorticks_off()
    if unit == "milliseconds":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    elif unit == "recall@10":
        axes.set_ylim(min(0.9, 0.99 * min(y for points in series.values() for y in points.values())), 1.005)
    else:
        axes.set_ylim(0, 1.1 * max(y for points in series.values() for y in points.values()))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(unit)


def _short(count: float) -> str:
    """``10 k``, ``1 M``."""
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k"


def draw(panels: Panels, path: Path) -> None:
    """The panels of one figure, side by side: bars where places are names, lines where they are numbers."""
    parts: list[tuple[str, Any]] = []
    for unit, series in panels.items():
        if all(x.isdecimal() for points in series.values() for x in points):
            parts.append((unit, series))
        else:
            parts += [(f"{name}, {unit}" if len(series) > 1 else unit, values) for name, values in series.items()]
    with plt.rc_context(STYLE):
        most = max(len(values) for _, values in parts)
        size = (4.4 * len(parts), 2.6 if any(_is_lines(v) for _, v in parts) else 0.5 + 0.32 * most)
        figure, axes = plt.subplots(1, len(parts), figsize=size, squeeze=False, layout="constrained")
        for one, (unit, values) in zip(axes[0], parts, strict=True):
            (lines if _is_lines(values) else bars)(one, unit, values)
        figure.savefig(path)
        plt.close(figure)


def _is_lines(values: dict[str, Any]) -> bool:
    return isinstance(next(iter(values.values())), dict)


def main() -> None:
    """Draw every figure of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.tsv")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs", help="folder of the PNGs")
    options = parser.parse_args()
    for name, panels in read(options.results).items():
        draw(panels, options.out / f"{name}.png")
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
