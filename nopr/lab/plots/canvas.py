"""What all figures share: one style, one palette, a title, and checked numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes

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
    "savefig.bbox": "tight",  # names, labels and titles are outside the axes
    "savefig.pad_inches": 0.2,
}
HEAD = "head"
"""The `gid` of titles and subtitles, by which they can be left out."""


def write_head(axes: Axes, title: str, subtitle: str) -> None:
    """Writes title and subtitle above the axes, from their left edge."""
    look: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "gid": HEAD}
    look |= {"va": "bottom", "annotation_clip": False, "linespacing": 1.25}
    plain, bold = textwrap.wrap(subtitle, 96), textwrap.wrap(title, 64)
    axes.annotate("\n".join(plain), (0, 1), (0, 10), color=SOFT, fontsize=10, **look)
    above = 14 + 13 * len(plain)
    axes.annotate("\n".join(bold), (0, 1), (0, above), fontsize=13, fontweight="bold", **look)


def count_text(counts: Iterable[Any], unit: str) -> str:
    """A count, such as `"n = 5 seeds"`, or `"n = 3 to 5 seeds"` where counts differ."""
    known = sorted({int(count) for count in counts})
    span = f"{known[0]:,}" + (f" to {known[-1]:,}" if len(known) > 1 else "")
    return f"n = {span} {unit.removesuffix('s') if span == '1' else unit}"


def check_finite(name: str, values: Any) -> None:
    """Checks that the numbers to plot are finite.

    Raises:
      ValueError: If a value is missing, NaN or infinite; names what holds it.
    """
    for value in np.asarray(values, object).ravel():
        if value is None or not math.isfinite(value):
            raise ValueError(f"The {name} must be finite to be plotted, got {value}.")
