"""Lines on one panel: checked columns, intervals, and a name at each end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, Transform

from nopr.lab.plots import canvas

_SIZE = (5.4, 3.7)  # inches
_LABEL_HEIGHT = 0.064  # of the axes
_SIZES = {"*": 9.0, "P": 7.0, "X": 6.5, "D": 5.2, "h": 6.5}


class Series(NamedTuple):
    """One line; unknown bounds of its interval are NaN."""

    name: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    color: str
    marker: str


def from_curves(curves: canvas.Curves, order: Sequence[str] = ()) -> list[Series]:
    """Series from columns `x`, `mean`, and `low` and `high` where known.

    Args:
      curves: Columns by name.
      order: Names in the order that determines each look; others follow as they appear.

    Returns:
      The series, in the order of `curves`.

    Raises:
      ValueError: If there are no series, or one has no points, columns of different lengths or a
        number that is not finite.
    """
    if not curves:
        raise ValueError("There must be at least one series to plot, got none.")
    names = tuple(dict.fromkeys((*order, *curves)))
    return [_checked(name, curve, names.index(name)) for name, curve in curves.items()]


def panel(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A titled figure filled by one axes, with all text outside."""
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.grid(visible=True, axis="y")
    canvas.write_head(axes, title, subtitle)
    return figure, axes


def draw(axes: Axes, series: Sequence[Series], *, interval: str) -> None:
    """Draws every line with its interval, as a `"band"` or as a `"bar"` at each point.

    The label of an interval is that of its line after an underscore, which legends leave out.
    """
    dashes = _dashes(series)
    for place, s in enumerate(series):
        shift = _shift(axes, place, len(series), interval)
        order = np.argsort(s.x, kind="stable")
        look: dict[str, Any] = {"color": s.color, "linestyle": dashes[place][0], "linewidth": 1.6}
        look |= {"marker": s.marker, "markersize": _SIZES.get(s.marker, 5.5), "zorder": 3}
        look |= {"markeredgecolor": "white", "markeredgewidth": 0.5, "markevery": dashes[place][1]}
        axes.plot(s.x[order], s.mean[order], label=s.name, transform=shift, **look)
        known = order[np.isfinite(s.low[order]) & np.isfinite(s.high[order])]
        if known.size:
            bounds = s.x[known], s.low[known], s.high[known]
            _draw_interval(axes, s, bounds, shift, interval)


def label_ends(
    axes: Axes, series: Sequence[Series], *, interval: str, levels: Sequence[Series] = ()
) -> None:
    """Names each series to the right of the axes, as near its last point as the others allow.

    Call it last: it reads the limits and scales of the axes.

    Args:
      axes: Axes on which the series were drawn.
      series: Series as given to `draw`, in the same order.
      interval: Style as given to `draw`.
      levels: Level lines, which end at the right edge of the axes.
    """
    edge = np.array([axes.get_xlim()[1]])
    named = [*series, *(level._replace(x=edge) for level in levels)]
    shifts = [_shift(axes, place, len(series), interval) for place in range(len(series))]
    shifts += [axes.transData for _ in levels]
    ends = [_end(axes, s) for s in named]
    heights = apart(np.array([_on_paper(axes, end)[1] for end in ends]), least=_LABEL_HEIGHT)
    for s, end, shift, height in zip(named, ends, shifts, heights, strict=True):
        leader = {"arrowstyle": "-", "color": s.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        where = {"xy": end, "xycoords": shift, "textcoords": axes.transAxes}
        axes.annotate("", **where, xytext=(1.035, height), arrowprops=leader, annotation_clip=False)
        look = {"transform": axes.transAxes, "clip_on": False}
        size = 1.15 * _SIZES.get(s.marker, 5.5)
        axes.plot([1.035], [height], s.marker, color=s.color, markersize=size, label="_key", **look)
        axes.text(1.06, height, s.name, va="center_baseline", **look)


def apart(heights: np.ndarray, *, least: float) -> np.ndarray:
    """The heights nearest in least squares that are `least` apart, in [0, 1] if they fit."""
    from scipy.optimize import isotonic_regression  # half a second, at every launch

    order = np.argsort(heights, kind="stable")
    steps = np.arange(len(heights)) * least
    fitted = isotonic_regression(heights[order] - steps).x
    result = np.empty_like(fitted)
    result[order] = np.clip(fitted, min(0.0, 1 - steps[-1]), max(0.0, 1 - steps[-1])) + steps
    return result


def _checked(name: str, curve: Mapping[str, Any], place: int) -> Series:
    size = np.size(curve["x"])
    columns = {key: curve.get(key, [None] * size) for key in ("x", "mean", "low", "high")}
    for key, values in columns.items():
        if np.shape(values) != (size,) or not size:
            raise ValueError(
                f"The series {name!r} must have columns of one length, at least 1, got {size} of "
                f"`x` and {np.size(values)} of `{key}`."
            )
        known = [v for v in values if v is not None or key in ("x", "mean")]
        canvas.check_finite(f"`{key}` of the series {name!r}", known)
    x, mean, low, high = (np.asarray(v, object).astype(float) for v in columns.values())
    color = canvas.COLORS[place % len(canvas.COLORS)]
    return Series(name, x, mean, low, high, color, canvas.MARKERS[place % len(canvas.MARKERS)])


def _draw_interval(
    axes: Axes, s: Series, bounds: tuple[np.ndarray, ...], shift: Transform, interval: str
) -> None:
    x, low, high = bounds
    look = {"color": s.color, "label": f"_{s.name}"}
    if interval == "band":
        axes.fill_between(x, low, high, alpha=0.18, linewidth=0, **look)
    else:
        axes.vlines(x, low, high, linewidth=1.3, transform=shift, **look)


def _shift(axes: Axes, place: int, count: int, interval: str) -> Transform:
    """Draws bars at the same x side by side; their numbers do not change."""
    inches = (place - (count - 1) / 2) * 0.045 if interval == "bar" else 0.0
    sheet = axes.get_figure(root=True)
    if sheet is None:
        raise ValueError("The axes must belong to a figure.")
    return axes.transData + ScaledTranslation(inches, 0, sheet.dpi_scale_trans)


def _dashes(series: Sequence[Series]) -> list[tuple[Any, Any]]:
    """Line style and marker spacing: coinciding series alternate, so that all are visible."""
    styles = []
    for place, s in enumerate(series):
        same = [i for i, t in enumerate(series) if _coincide(s, t)]
        turn, count = same.index(place), len(same)
        alone = ("-", None)
        styles.append(alone if count == 1 else ((6 * turn, (6, 6 * (count - 1))), (turn, count)))
    return styles


def _coincide(s: Series, t: Series) -> bool:
    return np.array_equal(s.x, t.x) and np.array_equal(s.mean, t.mean)


def _end(axes: Axes, s: Series) -> tuple[float, float]:
    across = [_on_paper(axes, point)[0] for point in zip(s.x, s.mean, strict=True)]
    place = int(np.argmax(across))
    return float(s.x[place]), float(s.mean[place])


def _on_paper(axes: Axes, point: tuple[float, float]) -> np.ndarray:
    """A point of the data in fractions of the axes."""
    return axes.transAxes.inverted().transform(axes.transData.transform(point))
