"""Distributions of singular values: one row per condition, on one logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nopr.lab.plots import canvas

_BINS_PER_DECADE = 12
_ROW, _GAP, _ZEROS, _VALUES = 0.5, 0.12, 0.75, 5.0  # inches


def singular_values(
    groups: Mapping[str, Any],
    *,
    title: str = "How far from isometry? Singular values of the input-output Jacobian",
    note: str = "",
    highlight: Collection[str] = (),
    floor: float = 1e-6,
) -> Figure:
    """The distribution of the singular values in each condition, one row per condition.

    All rows share a logarithmic axis, on which 1 is isometry. Values of at most `floor` have no
    place there; a separate column gives their share. A diamond and a number give the mean over
    all values, zeros included.

    Args:
      groups: Singular values of any shape, by condition, top row first.
      title: Message of the figure.
      note: Origin of the values, such as the number of inputs and seeds.
      highlight: Conditions drawn in a second color.
      floor: Largest value that counts as zero.

    Returns:
      The figure; `singular_value_rows` gives the numbers that it shows.

    Raises:
      ValueError: If there are no groups or values, or one is negative or not finite.
    """
    rows = singular_value_rows(groups, floor=floor)
    size = canvas.count_text((np.size(values) for values in groups.values()), "values per row")
    subtitle = "; ".join(filter(None, (size, note, "each row scaled to its own peak")))
    with mpl.rc_context(canvas.STYLE):
        figure, pairs = _rows_of_axes(list(groups))
        canvas.write_head(pairs[0][0], title, subtitle)
        for name, (zeros, ridge) in zip(groups, pairs, strict=True):
            at_zero, *above = [row for row in rows if row["condition"] == name]
            color = canvas.COLORS[1 if name in highlight else 0]
            _draw_zeros(zeros, float(at_zero["share"]), color)
            _draw_ridge(ridge, above, color)
        zeros, ridge = pairs[-1]
        ridge.set_xlabel("singular value (log scale; dashed line at 1: isometry)")
        ridge.spines["bottom"].set_color(canvas.SOFT)
        ridge.tick_params(bottom=True, labelbottom=True)
        zeros.set_xlabel("share at 0" if floor == 0 else f"share ≤ {_power(floor)}", labelpad=5)
    return figure


def singular_value_rows(
    groups: Mapping[str, Any], *, floor: float = 1e-6
) -> list[dict[str, str | int | float]]:
    """The numbers that `singular_values` shows, one mapping per condition and bin.

    Args:
      groups: Singular values of any shape, by condition.
      floor: Largest value that counts as zero.

    Returns:
      Mappings with `condition`, `low` and `high` (edges of the bin; each condition's first, from 0
      to `floor`, counts its zeros), `count`, `share` of the condition's values, and the `mean` of
      them all.

    Raises:
      ValueError: If there are no groups or values, or one is negative or not finite.
    """
    if not groups:
        raise ValueError("`groups` must hold at least one condition, got none.")
    flat = {name: _checked(name, values) for name, values in groups.items()}
    edges = _log_edges(np.concatenate(list(flat.values())), floor)
    return [
        {"condition": name, "low": low, "high": high, "count": count}
        | {"share": count / values.size, "mean": float(values.mean())}
        for name, values in flat.items()
        for low, high, count in _bins(values, edges, floor)
    ]


def _checked(name: str, values: Any) -> np.ndarray:
    flat = np.asarray(values, np.float64).ravel()
    if not flat.size:
        raise ValueError(f"The condition {name!r} has no singular values.")
    canvas.check_finite(f"singular values of {name!r}", flat[~np.isfinite(flat)])
    if flat.min() < 0:
        raise ValueError(f"The singular values of {name!r} must be at least 0, got {flat.min()}.")
    return flat


def _log_edges(values: np.ndarray, floor: float) -> np.ndarray:
    """Bin edges over all values above `floor`; 1 is always the middle of a bin."""
    shown = np.append(values[values > floor], 1.0)
    steps = np.round(np.log10([shown.min(), shown.max()]) * _BINS_PER_DECADE)
    return 10 ** ((np.arange(steps[0] - 1, steps[1] + 2) + 0.5) / _BINS_PER_DECADE)


def _bins(values: np.ndarray, edges: np.ndarray, floor: float) -> list[tuple[float, float, int]]:
    shown = values[values > floor]
    counts = np.histogram(shown, edges)[0].tolist()
    zeros = (0.0, float(floor), values.size - shown.size)
    return [zeros, *zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)]


def _rows_of_axes(names: Sequence[str]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """For each condition, named axes for the share at zero and for the rest."""
    figure = Figure(figsize=(_ZEROS + _VALUES, len(names) * (_ROW + _GAP)))
    look = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.09, "hspace": _GAP / _ROW}
    shares = (_ZEROS, _VALUES)
    grid = figure.subplots(len(names), 2, squeeze=False, width_ratios=shares, gridspec_kw=look)
    for name, (zeros, _) in zip(names, grid, strict=True):
        zeros.text(-0.2, 0.4, name, ha="right", va="center", transform=zeros.transAxes)
    return figure, [tuple(row) for row in grid]


def _draw_zeros(zeros: Axes, share: float, color: str) -> None:
    zeros.barh([0], [share], height=0.45, color=color, label="_zeros")
    zeros.text(0, 0.98, f"{share:.1%}" if share else "0%", va="top", fontsize=9)
    zeros.set(xlim=(0, 1), ylim=(-0.3, 1.2), yticks=[], xticks=[])
    zeros.spines["left"].set_visible(False)
    zeros.spines["bottom"].set_color(canvas.FAINT)


def _draw_ridge(ridge: Axes, rows: Sequence[Mapping[str, Any]], color: str) -> None:
    """The histogram of the values above zero, and the mean of all."""
    edges = [row["low"] for row in rows] + [rows[-1]["high"]]
    shares = [row["share"] for row in rows]
    _set_ridge_axes(ridge, edges, 1.12 * (max(shares) or 1))
    ridge.axvline(1, color=canvas.SOFT, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ridge.stairs(shares, edges, fill=True, color=color, alpha=0.35, zorder=2)
    ridge.stairs(shares, edges, color=color, linewidth=1.3, zorder=3, label="_shares")
    mean = rows[0]["mean"]
    if edges[0] <= mean <= edges[-1]:
        look = {"color": canvas.INK, "markeredgecolor": "white", "markersize": 6, "clip_on": False}
        ridge.plot([mean], [0], marker="D", zorder=5, label="_mean", **look)
    ridge.text(1.02, 0.4, f"mean {mean:.3g}", transform=ridge.transAxes, va="center")


def _set_ridge_axes(ridge: Axes, edges: Sequence[float], top: float) -> None:
    ridge.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0, top), yticks=[])
    ridge.spines["left"].set_visible(False)
    ridge.spines["bottom"].set_color(canvas.FAINT)
    ridge.tick_params(bottom=False, labelbottom=False)
    ridge.xaxis.set_major_locator(LogLocator(numticks=12))
    ridge.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    ridge.xaxis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"{value:g}" if abs(exponent) <= 2 else rf"$10^{{{exponent}}}$"
