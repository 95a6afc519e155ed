"""Figures of many small panels: lines in each, or differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nopr.lab.plots import canvas, series

_COLUMNS = 4
_WIDTH, _HEIGHT, _ROW = 2.1, 1.75, 0.27  # inches


def panels(
    curves: Mapping[str, canvas.Curves],
    *,
    title: str,
    x_label: str,
    y_label: str,
    subtitle: str = "",
    level: float | None = None,
    level_name: str = "",
    y_range: tuple[float, float] | None = None,
) -> Figure:
    """Lines with intervals, in a panel each, on common axes; x is logarithmic and falls.

    Args:
      curves: By the heading of a panel, columns by name: `x`, `mean`, and `low` and `high` where
        known. Lines of one name look the same in all panels.
      title: Message of the figure.
      x_label: Label of the horizontal axes, with its unit.
      y_label: Label of the vertical axes, with its unit.
      subtitle: Meaning of the intervals, and the number of runs behind them.
      level: Height of a dashed line in all panels.
      level_name: Its name.
      y_range: The ends of the vertical axes, by default those of the numbers.

    Returns:
      The figure.

    Raises:
      ValueError: If there are no panels or a number is not finite.
    """
    if not curves:
        raise ValueError("There must be at least one panel to plot, got none.")
    order = tuple(dict.fromkeys(name for each in curves.values() for name in each))
    lines = {head: series.from_curves(each, order) for head, each in curves.items()}
    columns = min(_COLUMNS, len(lines))
    rows = math.ceil(len(lines) / columns)
    with mpl.rc_context(canvas.STYLE):
        figure = Figure(figsize=(columns * _WIDTH, rows * _HEIGHT))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(0, 0, 1, 1, wspace=0.1, hspace=0.28)
        canvas.write_head(_above(figure), title, subtitle)
        spare = list(grid.flat[len(lines) :])
        for axes, (head, each) in zip(grid.flat, lines.items(), strict=False):
            axes.set_title(head, fontsize=10, loc="left", pad=4)
            axes.grid(visible=True, axis="y")
            if level is not None:
                axes.axhline(level, color=canvas.SOFT, linestyle=(0, (4, 3)), linewidth=1)
            series.draw(axes, each, interval="band")
        first = grid[0, 0]
        first.set_xscale("log")
        first.invert_xaxis()
        first.set_ylim(y_range)
        ticks = sorted({float(x) for each in lines.values() for s in each for x in s.x})
        first.xaxis.set_major_locator(FixedLocator(ticks))
        first.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
        first.xaxis.set_minor_locator(NullLocator())
        for axes in spare:
            axes.set_visible(False)
        for column in range(columns):
            last = grid[rows - 1 - (grid[rows - 1, column] in spare), column]
            last.set_xlabel(x_label)
            last.tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        handles, names = first.get_legend_handles_labels()
        if level is not None:
            handles.append(next(line for line in first.lines if line.get_linestyle() == "--"))
            names.append(level_name)
        figure.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def differences(
    columns: Mapping[str, Mapping[str, Any]], *, title: str, x_label: str, subtitle: str = ""
) -> Figure:
    """Differences with their intervals: one panel per column, one row per name, a line at 0.

    Args:
      columns: By the heading of a panel, `tables.Interval`s by row, top row first; all panels have
        the same rows, and a scale of their own.
      title: Message of the figure.
      x_label: Label of the horizontal axes, with its unit.
      subtitle: Meaning of the intervals, and the number of runs behind them.

    Returns:
      The figure.

    Raises:
      ValueError: If there are no panels, their rows differ, or a number is not finite.
    """
    if not columns:
        raise ValueError("There must be at least one panel to plot, got none.")
    names = list(next(iter(columns.values())))
    for head, column in columns.items():
        if list(column) != names:
            raise ValueError(f"All panels must have the rows {names}, got {list(column)}: {head}.")
        for name, interval in column.items():
            canvas.check_finite(f"difference of {name!r}", [interval.mean])
    with mpl.rc_context(canvas.STYLE):
        figure = Figure(figsize=(len(columns) * _WIDTH, len(names) * _ROW))
        grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(0, 0, 1, 1, wspace=0.12)
        canvas.write_head(_above(figure), title, subtitle)
        places = np.arange(len(names))[::-1]
        for axes, (head, column) in zip(grid, columns.items(), strict=True):
            axes.set_title(head, fontsize=10, loc="left", pad=4)
            axes.axvline(0, color=canvas.SOFT, linewidth=1)
            axes.grid(visible=True, axis="x")
            means = [interval.mean for interval in column.values()]
            halves = [interval.half_width or 0.0 for interval in column.values()]
            look: dict[str, Any] = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.5}
            axes.errorbar(means, places, xerr=halves, color=canvas.COLORS[0], **look)
            axes.set_xlabel(x_label)
        grid[0].set_yticks(places, names)
        grid[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _above(figure: Figure) -> Axes:
    """Invisible axes over the whole figure, whose head is above the headings of the panels."""
    axes = figure.add_axes((0, 0, 1, 1.0 + 0.2 / figure.get_size_inches()[1]))
    axes.set_axis_off()
    return axes
