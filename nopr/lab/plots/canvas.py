"""What all figures share: one style, one palette, a titled sheet of paper, and checked numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Curves: TypeAlias = Mapping[str, Mapping[str, Any]]

INK, SOFT, FAINT = "#222222", "#5c5c5c", "#dcdcdc"
COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#332288", "#56b4e9", "#882255", "#999933"),
)
MARKERS = "osD^vPX*h"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same bytes everywhere
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "auto",
    "savefig.bbox": None,
}
_TITLE_POINTS, _SUBTITLE_POINTS, _MARGIN = 13, 10, 0.2


def sheet(width: float, height: float, title: str, subtitle: str) -> tuple[Figure, float]:
    """A figure of `width` inches whose title and subtitle stand above `height` inches of plot.

    Returns:
      The figure, and its whole height in inches.
    """
    bold = _wrapped(title, width, _TITLE_POINTS, "bold")
    plain = _wrapped(subtitle, width, _SUBTITLE_POINTS, "normal")
    title_inches, subtitle_inches = 0.235 * len(bold), 0.185 * len(plain)
    total = height + title_inches + subtitle_inches + 0.36
    figure = Figure(figsize=(width, total))
    left, top = _MARGIN / width, 1 - 0.16 / total
    look = {"ha": "left", "va": "top", "linespacing": 1.25}
    figure.text(left, top, "\n".join(bold), fontsize=_TITLE_POINTS, fontweight="bold", **look)
    below = top - (title_inches + 0.04) / total
    figure.text(left, below, "\n".join(plain), fontsize=_SUBTITLE_POINTS, color=SOFT, **look)
    return figure, total


@functools.cache
def inches_wide(text: str, points: float = STYLE["font.size"], weight: str = "normal") -> float:
    """The width of a line of text, in inches."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=STYLE["font.family"], weight=weight)
    return float(TextPath((0, 0), text, size=points, prop=font).get_extents().width) / 72


def count_text(counts: Iterable[Any], unit: str) -> str:
    """How many, such as `"n = 5 seeds"`, or `"n = 3 to 5 seeds"` where they differ."""
    known = sorted({int(count) for count in counts})
    span = f"{known[0]:,}" + (f" to {known[-1]:,}" if len(known) > 1 else "")
    return f"n = {span} {unit.removesuffix('s') if span == '1' else unit}"


def check_finite(name: str, values: Any) -> None:
    """Checks that numbers to be shown are numbers.

    Raises:
      ValueError: Naming what holds a value that is missing, NaN or infinite.
    """
    for value in np.asarray(values, object).ravel():
        if value is None or not math.isfinite(value):
            raise ValueError(f"The {name} must be finite to be plotted, got {value}.")


def _wrapped(text: str, width: float, points: float, weight: str) -> list[str]:
    """Lines of `text` that fit on a sheet of `width` inches."""
    room = 0.97 * (width - 2 * _MARGIN)  # pixels round the width of a letter
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and inches_wide(longer, points, weight) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
