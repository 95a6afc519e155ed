"""Numbered points with intervals, named in a list beside the axes."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nopr.lab.plots import canvas

_SIZE = (6.2, 4.6)  # inches
_MARKERS = "osD^v"
_STRIP = 0.2  # of the axis beyond 0: the room for points of exactly 0


def numbered_points(
    rows: canvas.Rows,
    *,
    title: str,
    x_label: str,
    y_label: str,
    color_label: str,
    subtitle: str = "",
) -> Figure:
    """Points in a plane with intervals both ways, colored by a third quantity.

    Points are numbered by falling x, and named in a list beside the axes. Those with an x of
    exactly 0 are side by side in a strip left of the axis, by falling y. The vertical axis is
    logarithmic where all heights are positive.

    Args:
      rows: One mapping per point: `name`, `group` (its marker), `x` (at least 0), `y`, `color`,
        and `x_half_width` and `y_half_width`, None where unknown.
      title: Message of the figure.
      x_label: Label of the horizontal axis, with its unit.
      y_label: Label of the vertical axis, with its unit.
      color_label: Label of the colors, with their unit.
      subtitle: Meaning of the intervals, and the number of runs behind them.

    Returns:
      The figure.

    Raises:
      ValueError: If there are no rows, a number is not finite or an `x` is negative.
    """
    if not rows:
        raise ValueError("There must be at least one point to plot, got none.")
    for row in rows:
        for key in ("x", "y", "color"):
            canvas.check_finite(f"`{key}` of {row['name']!r}", row[key])
        if row["x"] < 0:
            raise ValueError(f"`x` of {row['name']!r} must be at least 0, got {row['x']}.")
    points = sorted(rows, key=lambda row: (-row["x"], -row["y"]))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    places = _places(points)
    with mpl.rc_context(canvas.STYLE):
        figure = Figure(figsize=_SIZE)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.grid(visible=True)
        canvas.write_head(axes, title, subtitle)
        colors = np.array([row["color"] for row in points], float)
        norm = mpl.colors.Normalize(colors.min(), colors.max())
        shades = mpl.colormaps["viridis"]
        if min(row["y"] for row in points) > 0:
            axes.set_yscale("log")
            for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatted(FuncFormatter(_plain))
        for number, (row, x) in enumerate(zip(points, places, strict=True), start=1):
            shade = shades(norm(row["color"]))
            halves = [row["x_half_width"] or 0.0, row["y_half_width"] or 0.0]
            look: dict[str, Any] = {"fmt": "none", "ecolor": "#b0b0b0", "elinewidth": 1}
            low = max(0.0, min(halves[1], row["y"] * 0.999))
            axes.errorbar(x, row["y"], xerr=halves[0], yerr=[[low], [halves[1]]], **look)
            marker = _MARKERS[groups.index(row["group"]) % len(_MARKERS)]
            axes.plot([x], [row["y"]], marker, color=shade, markersize=13, markeredgecolor="white")
            ink = "black" if norm(row["color"]) > 0.55 else "white"
            text = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 5}
            axes.text(x, row["y"], str(number), color=ink, **text)
            _name(figure, number, len(points), row["name"])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if any(row["x"] == 0 for row in points):
            axes.axvline(0, color=canvas.SOFT, linewidth=1)
            axes.text(0, 1.01, "0 bits ", ha="right", transform=axes.get_xaxis_transform())
        most = axes.get_xlim()[1]
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= most])
        _legends(figure, groups, norm, shades, color_label)
    return figure


def _plain(value: float, _: Any) -> str:
    """A tick's number, where its first digit is 1, 2 or 5."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _places(points: canvas.Rows) -> list[float]:
    """Where each point is drawn; those at 0 share a strip of negative places."""
    most = max(row["x"] for row in points) or 1.0
    zeros = sum(row["x"] == 0 for row in points)
    width = most * _STRIP * max(1.0, zeros / 4)
    strip = iter(-width * (1 - (k + 0.5) / zeros) for k in range(zeros))
    return [float(row["x"]) if row["x"] else next(strip) for row in points]


def _name(figure: Figure, number: int, count: int, name: str) -> None:
    height = 1 - (number - 0.5) / max(count, 18)
    figure.text(1.04, height, f"{number}", ha="right", va="center", fontsize=9, color=canvas.SOFT)
    figure.text(1.05, height, name, va="center", fontsize=9)


def _legends(figure: Figure, groups: list[str], norm: Any, shades: Any, color_label: str) -> None:
    look: dict[str, Any] = {"linestyle": "none", "color": canvas.SOFT, "markersize": 9}
    handles = [
        mpl.lines.Line2D([], [], marker=_MARKERS[place % len(_MARKERS)], label=group, **look)
        for place, group in enumerate(groups)
    ]
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.03, -0.12)}
    figure.legend(handles=handles, ncols=len(groups), frameon=False, **where)
    bar = figure.add_axes((1.05, -0.15, 0.33, 0.025))
    figure.colorbar(
        mpl.cm.ScalarMappable(norm, shades), cax=bar, orientation="horizontal", label=color_label
    )
