"""Figures of results, drawn from plain numbers and saved beside them.

A plot function draws on its own `matplotlib.figure.Figure` and never touches pyplot, so it is safe
in any thread, notebook or headless job. Every series has a color from a color-blind-safe palette, a
marker, and a label at its end. What cannot be drawn honestly (nothing, NaN, infinities) raises an
error that names the series.

    >>> from nopr.lab import plots
    >>> rows = [{"method": "snip", "density": 0.05, "mean": 95.2, "half_width": 0.4, "n": 5}]
    >>> figure = plots.accuracy_against_density(rows)
    >>> figure.axes[0].get_xlabel()
    'weights kept, % (log scale; fewer to the right)'
"""

from nopr.lab.plots.distributions import singular_value_rows, singular_values
from nopr.lab.plots.files import Saved, curve_rows, save
from nopr.lab.plots.lines import accuracy_against_density, bits_against_pruned, lines_with_intervals
from nopr.lab.plots.panels import differences, panels
from nopr.lab.plots.points import numbered_points

__all__ = [
    "Saved",
    "accuracy_against_density",
    "bits_against_pruned",
    "curve_rows",
    "differences",
    "lines_with_intervals",
    "numbered_points",
    "panels",
    "save",
    "singular_value_rows",
    "singular_values",
]
