"""Figures of lines: accuracy against density, information against pruned weights, and any other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from nopr.lab.plots import canvas, series
from nopr.lab.plots.canvas import Curves, Rows
from nopr.lab.plots.series import Series

_LEAST_ERROR = 0.05  # in %: the error axis is logarithmic, and 100% has no place on it
# In %, by preference: later ones are left out where ticks are crowded.
_ACCURACY_TICKS = (90, 99, 95, 98, 80, 60, 0, 97, 40, 20, 99.5, 99.8, 96, 93, 70, 85, 10)


def accuracy_against_density(
    rows: Rows,
    *,
    title: str = "Accuracy kept as weights are removed",
    reference: str = "dense",
    order: Sequence[str] = (),
) -> Figure:
    """Test accuracy of every method against the share of weights that it keeps.

    Args:
      rows: One mapping per point: `method`, `density` in (0, 1], `mean` (accuracy in %),
        `half_width` (of the 95% interval, in %; None for a single seed) and `n` (seeds).
      title: Message of the figure.
      reference: Method drawn as a level line with its interval, if present.
      order: Names in the order that gives each its color; others follow as they appear.

    Returns:
      The figure; sparser networks are further right. The accuracy axis is spaced by the logarithm
      of the error, so that 98% and 99% are as far apart as 80% and 90%. The numbers that it shows
      are the rows.

    Raises:
      ValueError: If no row is a pruned network, a number is not finite or out of range, or the
        accuracies are fractions.
    """
    _check_accuracies(rows)
    points = [row for row in rows if row["method"] != reference]
    lines = series.from_curves(_by_method(points), order)
    levels = [_level(row) for row in rows if row["method"] == reference]
    subtitle = _statistic([*lines, *levels], (row["n"] for row in rows), "seeds")
    with mpl.rc_context(canvas.STYLE):
        figure, axes = series.panel(title, subtitle)
        _set_density_axis(axes, [row["density"] for row in points])
        _set_accuracy_axis(axes, [*lines, *levels])
        for level in levels:
            _draw_level(axes, level, reference)
        series.draw(axes, lines, interval="bar")
        series.label_ends(axes, lines, interval="bar", levels=levels)
    return figure


def bits_against_pruned(
    curves: Curves,
    ceiling_bits: float,
    published: Curves | None = None,
    *,
    weights: int = 21,
    n: int | None = None,
    title: str = "What the mask knows of the data it was chosen on",
    order: Sequence[str] = (),
) -> Figure:
    """Mutual information of mask and data against the number of pruned weights.

    Both ceilings are drawn, H(D) and log2 of the number of masks with so many weights pruned, and
    the region above either is shaded. The label of a curve that is 0 throughout states it.

    Args:
      curves: Columns by method: `pruned` (weights), `mean` (bits), and `low` and `high` (the 95%
        interval over initializations, in bits; both or neither).
      ceiling_bits: H(D), in bits.
      published: Columns `pruned` and `mean` by method, drawn as hollow markers in its color.
      weights: Number of prunable weights.
      n: Number of initializations behind each mean.
      title: Message of the figure.
      order: Names in the order that gives each its color; others follow as they appear.

    Returns:
      The figure; `curve_rows` gives the numbers that it shows.

    Raises:
      ValueError: If there are no curves, a number is not finite or the ceiling is not positive.
    """
    canvas.check_finite("`ceiling_bits`", ceiling_bits)
    if ceiling_bits <= 0:
        raise ValueError(f"`ceiling_bits` must be above 0, got {ceiling_bits}.")
    order = tuple(dict.fromkeys((*order, *curves)))
    lines = series.from_curves(_over_pruned(curves), order)
    labels = [s if s.mean.any() else s._replace(name=f"{s.name}: 0") for s in lines]
    hollow = series.from_curves(_over_pruned(published), order) if published else []
    subtitle = _statistic(lines, [n] if n else [], "initializations")
    subtitle += "; hollow markers: published" if hollow else ""
    with mpl.rc_context(canvas.STYLE):
        figure, axes = series.panel(title, subtitle)
        axes.set_xlabel(f"weights pruned (of {weights})")
        axes.set_ylabel("mask information I(m; D), bits")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 3, 5, 10], nbins=8))
        _draw_ceilings(axes, float(ceiling_bits), weights)
        series.draw(axes, lines, interval="band")
        for s in hollow:
            _draw_hollow(axes, s)
        series.label_ends(axes, labels, interval="band")
    return figure


def lines_with_intervals(
    curves: Curves,
    *,
    title: str,
    x_label: str,
    y_label: str,
    subtitle: str = "",
    x_scale: str = "linear",
    y_scale: str = "linear",
    interval: Literal["band", "bar"] = "band",
    order: Sequence[str] = (),
) -> Figure:
    """Lines with their intervals, each labeled at its end.

    Args:
      curves: Columns by name: `x`, `mean`, and `low` and `high` (both or neither).
      title: Message of the figure.
      x_label: Label of the horizontal axis, with its unit.
      y_label: Label of the vertical axis, with its unit.
      subtitle: Meaning of the intervals, and the number of runs behind them.
      x_scale: Matplotlib scale, such as `"log"`.
      y_scale: Matplotlib scale of the vertical axis.
      interval: Style of the intervals.
      order: Names in the order that gives each its color; others follow as they appear.

    Returns:
      The figure; `curve_rows` gives the numbers that it shows.

    Raises:
      ValueError: If there are no curves or a number is not finite.
    """
    lines = series.from_curves(curves, order)
    with mpl.rc_context(canvas.STYLE):
        figure, axes = series.panel(title, subtitle)
        axes.set(xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
        series.draw(axes, lines, interval=interval)
        axes.autoscale_view()
        series.label_ends(axes, lines, interval=interval)
    return figure


def _statistic(lines: Sequence[Series], counts: Iterable[int], unit: str) -> str:
    """The statistic that is drawn, and its n."""
    intervals = any(np.isfinite(s.low).any() for s in lines)
    known = list(counts)
    text = "mean and 95% interval" if intervals else "mean"
    return f"{text}, {canvas.count_text(known, unit)}" if known else text


def _check_accuracies(rows: Rows) -> None:
    if not rows:
        raise ValueError("`rows` must hold at least one point, got none.")
    for row in rows:
        name = f"the series {row['method']!r}"
        for key in ("density", "mean", "half_width"):
            if row[key] is not None or key != "half_width":
                canvas.check_finite(f"`{key}` of {name}", row[key])
        if not 0 < row["density"] <= 1:
            raise ValueError(f"`density` of {name} must be in (0, 1], got {row['density']}.")
    if max(row["mean"] for row in rows) <= 1:
        raise ValueError("`mean` must be in %, got fractions of at most 1. Multiply by 100.")


def _by_method(rows: Rows) -> dict[str, dict[str, list[Any]]]:
    curves: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        curve = curves.setdefault(row["method"], {"x": [], "mean": [], "low": [], "high": []})
        half = row["half_width"]
        curve["x"].append(row["density"])
        curve["mean"].append(row["mean"])
        # An interval may exceed what an accuracy can be; the table and the CSV have all of it.
        curve["low"].append(None if half is None else max(0, row["mean"] - half))
        curve["high"].append(None if half is None else min(100, row["mean"] + half))
    return curves


def _over_pruned(curves: Curves) -> dict[str, dict[str, Any]]:
    return {name: {**curve, "x": curve["pruned"]} for name, curve in curves.items()}


def _level(row: Any) -> Series:
    """A reference as a series of one point; its label states its mean."""
    half = math.nan if row["half_width"] is None else row["half_width"]
    columns = (row["density"], row["mean"], row["mean"] - half, row["mean"] + half)
    name = f"{row['method']} ({row['mean']:.1f}%)"
    return Series(name, *(np.array([float(c)]) for c in columns), color=canvas.INK, marker="_")


def _draw_level(axes: Axes, level: Series, name: str) -> None:
    if np.isfinite(level.low[0]):
        look = {"alpha": 0.1, "linewidth": 0, "label": f"_{name}"}
        axes.axhspan(level.low[0], level.high[0], color=level.color, **look)
    look = {"linewidth": 1.1, "linestyle": (0, (5, 2)), "label": name}
    axes.axhline(level.mean[0], color=level.color, **look)


def _draw_hollow(axes: Axes, s: Series) -> None:
    look = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.2, "zorder": 4}
    axes.plot(s.x, s.mean, s.marker, color=s.color, label=f"_published {s.name}", **look)


def _draw_ceilings(axes: Axes, ceiling_bits: float, weights: int) -> None:
    """H(D) and log2 C(weights, k), and shading of the region above either."""
    top = 1.16 * ceiling_bits
    axes.set(xlim=(-0.4, weights + 0.4), ylim=(-0.04 * ceiling_bits, top))
    k = np.arange(weights + 1)
    masks = np.array([math.log2(math.comb(weights, int(count))) for count in k])
    fine = np.linspace(0, weights, 20 * weights + 1)
    reachable = np.minimum(np.interp(fine, k, masks), ceiling_bits)
    shade = {"color": canvas.FAINT, "alpha": 0.5, "linewidth": 0, "label": "_above"}
    axes.fill_between(fine, reachable, top, **shade)
    look = {"color": canvas.SOFT, "linewidth": 1.1}
    axes.plot(k, masks, linestyle=(0, (4, 3)), label="_log2 masks", **look)
    axes.axhline(ceiling_bits, label="_H(D)", **look)
    text = f"H(D) = {ceiling_bits:.2f} bits (line); log$_2$ C({weights}, k) (dashed)"
    back = {"facecolor": "#ededed", "edgecolor": "none", "pad": 2}  # FAINT, half transparent
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5, "bbox": back}
    axes.text(weights / 2, (top + ceiling_bits) / 2, text, **look)


def _set_density_axis(axes: Axes, densities: Sequence[float]) -> None:
    """A reversed logarithmic axis with a tick at each density, or at the most common ones."""
    axes.set_xlabel("weights kept, % (log scale; fewer to the right)")
    low, high = math.log10(min(densities)), math.log10(max(densities))
    margin = 0.1 * (high - low) or 0.3
    axes.set(xscale="log", xlim=(10 ** (high + margin), 10 ** (low - margin)))
    common = [density for density, _ in Counter(densities).most_common()]
    ticks = _thinned(common, np.log10(common), 0.6 * margin)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))


def _set_accuracy_axis(axes: Axes, lines: Sequence[Series]) -> None:
    ends = np.concatenate([np.concatenate((s.mean, s.low, s.high)) for s in lines])
    bottom, top = _from_accuracy(np.array([np.nanmin(ends), np.nanmax(ends)]))
    margin = 0.06 * (top - bottom) or 0.1
    axes.set_yscale("function", functions=(_from_accuracy, _to_accuracy))
    axes.set_ylim(*_to_accuracy(np.array([bottom - margin, top + margin])))
    axes.set_ylabel("test accuracy, % (spaced by log error)")
    inside = [t for t in _ACCURACY_TICKS if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    ticks = _thinned(inside, _from_accuracy(np.array(inside)), 0.045 * (top - bottom))
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thinned(ticks: Sequence[float], places: np.ndarray, least: float) -> list[float]:
    """The ticks that are more than `least` from all earlier ones."""
    kept: list[int] = []
    for number, place in enumerate(places):
        if all(abs(place - places[other]) > least for other in kept):
            kept.append(number)
    return [ticks[number] for number in kept]


def _from_accuracy(percent: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(percent), _LEAST_ERROR))


def _to_accuracy(position: np.ndarray) -> np.ndarray:
    return 100 - 10 ** (-np.asarray(position, float))
