"""Tables of results: means with their intervals, aligned as text; reports show the same tables.

A cell is a string, a number, an `Interval`, or `Missing` with a reason, which becomes a footnote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from nopr import trees

MISSING = "n/a"


class Interval(NamedTuple):
    """A mean over `n` seeds and the half width of its 95% interval.

    `half_width` is None for a single seed, which has no interval; it is never NaN.
    """

    mean: Any
    half_width: Any
    n: int


class Missing(NamedTuple):
    """A cell without a number, and the reason."""

    why: str


class Column(NamedTuple):
    """One column of a table.

    Attributes:
      key: Key of the entry that it shows.
      title: Heading with the unit; a line break starts a second line.
      digits: Number of decimals.
    """

    key: str
    title: str
    digits: int = 1


class Cells(NamedTuple):
    """A table as text, cell by cell, before it is drawn in plain text or in HTML."""

    titles: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    groups: tuple[int, ...]
    footnotes: tuple[str, ...]


def mean_interval(values: Any, axis: int = 0) -> Interval:
    r"""The mean over seeds, and the half width of its 95% interval.

    The half width is :math:`t_{n-1} s / \sqrt n`, with :math:`t_{n-1}` the 97.5% point of
    Student's distribution and :math:`s` the standard deviation with divisor n - 1.

    Args:
      values: Numbers, with the seeds along `axis`.
      axis: Axis of the seeds.

    Returns:
      Floats if `values` is a vector, else arrays without `axis`; no half width if n is 1.

    Raises:
      ValueError: If there is no value, or one is NaN or infinite.
    """
    found = trees.numbers(values, "values")
    if np.iscomplexobj(found):
        raise ValueError(f"`values` must be real numbers, got {found.dtype}.")
    array = np.asarray(found, np.float64)
    if not -array.ndim <= axis < array.ndim or array.shape[axis] == 0:
        raise ValueError(f"`values` must have a seed along axis {axis}, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"`values` must be finite, got {array[~np.isfinite(array)][0]}.")
    n = array.shape[axis]
    mean = array.mean(axis)
    half_width = None
    if n > 1:
        quantile = stdtrit(n - 1, 0.975)
        half_width = _plain(quantile * array.std(axis, ddof=1) / math.sqrt(n))
    return Interval(_plain(mean), half_width, n)


def number_text(value: Any, digits: int = 1) -> str:
    """A number with `digits` decimals and separated thousands; in powers of 10 if too small.

    Raises:
      ValueError: If `value` is NaN or infinite.
    """
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if not math.isfinite(value):
        raise ValueError(f"A table must hold finite numbers, got {value}.")
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)


def interval_text(interval: Interval, digits: int = 1) -> str:
    """A mean with its interval, such as `"97.3 ± 0.4"`; `"97.3 (n=1)"` for a single seed."""
    mean = number_text(float(interval.mean), digits)
    if interval.half_width is None:
        return f"{mean} (n={interval.n})"
    half = number_text(float(interval.half_width), digits)
    if "e" in half and "e" not in mean:
        half = number_text(0.0, digits)
    return f"{mean} ± {half}"


def lay_out(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, group_by: str | None = None
) -> Cells:
    """Turns rows into cells of text.

    Args:
      rows: Cells by column key: text, a number, an `Interval` or `Missing(why)`; None or no cell
        at all reads `n/a`, without a reason.
      columns: Columns from left to right.
      group_by: Key; consecutive rows with the same entry form a group. If every row would be a
        group of its own, there is one group.

    Returns:
      The table. Equal reasons share a footnote; a column is numeric if any cell is a number.

    Raises:
      ValueError: If there are no rows or columns, or a number is not finite.
    """
    if not rows or not columns:
        raise ValueError(
            f"A table must have rows and columns, got {len(rows)} and {len(columns)} of them."
        )
    reasons = [row.get(c.key) for row in rows for c in columns]
    footnotes = tuple(dict.fromkeys(cell.why for cell in reasons if isinstance(cell, Missing)))
    lines = tuple(
        tuple(_cell_text(row.get(c.key), c.digits, footnotes) for c in columns) for row in rows
    )
    numeric = tuple(any(_is_number(row.get(c.key)) for row in rows) for c in columns)
    lines = tuple(zip(*map(_same_width_intervals, zip(*lines, strict=True)), strict=True))
    groups = _group_numbers([row.get(group_by) if group_by else None for row in rows])
    if len(set(groups)) == len(rows):  # nothing to keep together
        groups = (0,) * len(rows)
    return Cells(tuple(c.title for c in columns), lines, numeric, groups, footnotes)


def aligned(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    title: str = "",
    group_by: str | None = None,
) -> str:
    """A table as plain text: numbers right-aligned, a rule between groups, reasons below.

    Args:
      rows: As in `lay_out`.
      columns: Columns from left to right.
      title: Line above the table.
      group_by: Key; a rule is drawn where its entry changes.

    Returns:
      The table, without trailing spaces or a final line break.

    Raises:
      ValueError: If there are no rows or columns, or a number is not finite.
    """
    table = lay_out(rows, columns, group_by=group_by)
    head = _stacked(table.titles)
    widths = [max(map(len, column)) for column in zip(*head, *table.lines, strict=True)]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    text = [title] if title else []
    text += [_line(line, widths, table.numeric) for line in head] + [rule]
    for place, line in enumerate(table.lines):
        if place and table.groups[place] != table.groups[place - 1]:
            text.append(rule)
        text.append(_line(line, widths, table.numeric))
    text.append(rule)
    text += [f"[{number}] {why}" for number, why in enumerate(table.footnotes, 1)]
    return "\n".join(line.rstrip() for line in text)


def _cell_text(cell: Any, digits: int, footnotes: Sequence[str]) -> str:
    if cell is None:
        return MISSING
    if isinstance(cell, Missing):
        return f"{MISSING} [{footnotes.index(cell.why) + 1}]"
    if isinstance(cell, Interval):
        return interval_text(cell, digits)
    return number_text(cell, digits) if _is_number(cell) else str(cell)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, Interval | int | float | np.number) and not isinstance(cell, bool)


def _same_width_intervals(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Pads the half widths so that the ± signs of a right-aligned column line up."""
    halves = [cell.partition(" ± ") for cell in cells]
    width = max(len(half) for _, _, half in halves)
    return tuple(f"{mean}{sign}{half:>{width}}" if sign else mean for mean, sign, half in halves)


def _group_numbers(entries: Sequence[Any]) -> tuple[int, ...]:
    starts = [place > 0 and entry != entries[place - 1] for place, entry in enumerate(entries)]
    return tuple(int(number) for number in np.cumsum(starts))


def _stacked(titles: Sequence[str]) -> list[tuple[str, ...]]:
    """Titles of several lines as rows, aligned at their last lines."""
    split = [title.split("\n") for title in titles]
    height = max(map(len, split))
    padded = [[""] * (height - len(lines)) + lines for lines in split]
    return list(zip(*padded, strict=True))


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    return "  ".join(
        f"{cell:>{width}}" if right else f"{cell:<{width}}"
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
