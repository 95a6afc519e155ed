"""Figures on disk: a PNG, a PDF, and beside them the CSV of the numbers that they show."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nopr.lab import records
from nopr.lab.plots.canvas import HEAD, STYLE, Curves, Rows, check_finite

_DPI = 150


class Saved(NamedTuple):
    """Where a figure and its numbers were written."""

    png: Path
    pdf: Path
    csv: Path


def save(
    figure: Figure,
    rows: Rows,
    directory: str | os.PathLike[str],
    name: str,
    *,
    titled: bool = True,
) -> Saved:
    """Writes `NAME.png`, `NAME.pdf` and `NAME.csv`: the figure, and the numbers that it shows.

    Each file appears whole or not at all, and the same figure gives the same bytes.

    Args:
      figure: Figure.
      rows: Numbers shown, one mapping per row; a missing value or None is an empty cell.
      directory: Folder to write to; created if missing.
      name: File name without its ending.
      titled: Whether title and subtitle are drawn; False for a paper.

    Returns:
      The paths of the files.

    Raises:
      ValueError: If there are no rows or a number is not finite; nothing is written then.
      RunError: If a file cannot be written; what was there is unchanged.
    """
    contents = {"csv": _csv(rows)}
    for text in figure.findobj(lambda artist: artist.get_gid() == HEAD):
        text.set_visible(titled)
    with mpl.rc_context(STYLE):
        for kind, undated in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, dpi=_DPI, metadata=undated)
            contents[kind] = picture.getvalue()
    saved = Saved(*(Path(directory, f"{name}.{kind}") for kind in Saved._fields))
    for kind, content in contents.items():
        records.write_bytes(getattr(saved, kind), content)
    return saved


def curve_rows(curves: Curves, published: Curves | None = None) -> list[dict[str, Any]]:
    """The numbers of curves as rows for `save`, one mapping per point.

    Args:
      curves: Columns of one length, such as `pruned`, `mean`, `low` and `high`, by name.
      published: Columns of published points, by name.

    Returns:
      Mappings with `method`, `source` (`"computed"` or `"published"`) and each column.
    """
    return [
        {"method": name, "source": source, **dict(zip(columns, values, strict=True))}
        for source, group in (("computed", curves), ("published", published or {}))
        for name, columns in group.items()
        for values in zip(*(np.asarray(v).tolist() for v in columns.values()), strict=True)
    ]


def _csv(rows: Rows) -> bytes:
    if not rows:
        raise ValueError("`rows` must hold the numbers that the figure shows, got none.")
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(rows):
        for key, value in row.items():
            if isinstance(value, float | np.floating):
                check_finite(f"column {key!r} of row {number}", value)
        writer.writerow({k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()})
    return text.getvalue().encode()
