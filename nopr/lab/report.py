"""One self-contained HTML page of a run: figures included, no network, light and dark.

A page is a title, a lead and sections; a section is a heading and blocks:

    build(
        run.directory / "report.html",
        title="Pruning digits",
        lead="Eight ways to choose a mask, at three densities.",
        sections=[
            Section("Result", ["Means over 5 seeds.", Table(rows, columns, "Accuracy")]),
            Section("Again", [Command("make demo"), Details("Configuration", json_text)]),
        ],
    )

All text is escaped, and the same arguments give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import html
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nopr.lab import records, tables

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Table(NamedTuple):
    """A table with its caption and a note below it; rows and columns as in `tables.lay_out`."""

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[tables.Column]
    caption: str
    group_by: str | None = None
    note: str = ""


class Figure(NamedTuple):
    """A PNG, a caption, and a description for readers who cannot see it."""

    png: str | Path
    caption: str
    alt: str


class Terms(NamedTuple):
    """A vocabulary: terms and their meanings."""

    meanings: Mapping[str, str]


class Details(NamedTuple):
    """A collapsed part: a one-line summary and preformatted text, such as JSON."""

    summary: str
    text: str


class Command(NamedTuple):
    """A command line to copy."""

    line: str


Block: TypeAlias = str | Table | Figure | Terms | Details | Command
"""The content of a section; a plain string is a paragraph."""


class Section(NamedTuple):
    """A heading and the blocks below it."""

    heading: str
    blocks: Sequence[Block]


def build(path: str | Path, *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes one self-contained HTML page.

    Args:
      path: Path of the page, which appears whole or not at all.
      title: Heading of the page.
      lead: A few plain sentences on what was done and found.
      sections: Content of the page below the lead.

    Returns:
      The path.

    Raises:
      ValueError: If a section is empty or holds an unknown block, a figure is missing, is not a PNG
        or has no `alt`, or a number in a table is not finite.
      records.RunError: If the page cannot be written.
    """
    return records.write_text(path, page(title=title, lead=lead, sections=sections))


def page(*, title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page of `build` as text."""
    parts = [_section_html(section) for section in sections]
    return _PAGE.format(title=_text(title), style=_STYLE, lead=_text(lead), body="\n".join(parts))


def _section_html(section: Section) -> str:
    if not section.blocks:
        raise ValueError(f"The section {section.heading!r} must have a block, got none.")
    name = re.sub(r"[^a-z0-9]+", "-", section.heading.lower()).strip("-")
    blocks = "\n".join(_block_html(block) for block in section.blocks)
    return f'<section id="{name}">\n<h2>{_text(section.heading)}</h2>\n{blocks}\n</section>'


@functools.singledispatch
def _block_html(block: Any) -> str:
    raise ValueError(
        "A block must be a str, Command, Details, Figure, Table or Terms, "
        f"got {type(block).__name__}."
    )


@_block_html.register
def _paragraph_html(block: str) -> str:
    return f"<p>{_text(block)}</p>"


@_block_html.register
def _command_html(block: Command) -> str:
    return f"<pre><code>{_text(block.line)}</code></pre>"


@_block_html.register
def _details_html(block: Details) -> str:
    inside = f"<pre>{_text(block.text)}</pre>"
    return f"<details><summary>{_text(block.summary)}</summary>{inside}</details>"


@_block_html.register
def _terms_html(block: Terms) -> str:
    terms = (
        f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>"
        for term, meaning in block.meanings.items()
    )
    return "<dl>\n" + "\n".join(terms) + "\n</dl>"


@_block_html.register
def _figure_html(block: Figure) -> str:
    if not block.alt.strip():
        raise ValueError(f"The figure {str(block.png)!r} must have an `alt` text, got none.")
    data = _png(Path(block.png))
    width, height = struct.unpack(">II", data[16:24])
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{_text(block.alt)}" width="{width}" height="{height}">'
    return f"<figure>\n{image}\n<figcaption>{_text(block.caption)}</figcaption>\n</figure>"


@_block_html.register
def _table_html(block: Table) -> str:
    table = tables.lay_out(block.rows, block.columns, group_by=block.group_by)
    heads = "".join(
        f'<th scope="col"{_side(right)}>{_text(title)}</th>'
        for title, right in zip(table.titles, table.numeric, strict=True)
    )
    bodies = [
        "\n".join(
            _row_html(line, table.numeric)
            for line, of in zip(table.lines, table.groups, strict=True)
            if of == group
        )
        for group in sorted(set(table.groups))
    ]
    notes = "".join(f"<li>{_text(why)}</li>" for why in table.footnotes)
    # The caption is outside the scrolling box of a wide table, so that it wraps.
    return (
        f'<p class="caption">{_text(block.caption)}</p>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(block.caption)}">\n'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n"
        + "\n".join(f"<tbody>\n{body}\n</tbody>" for body in bodies)
        + "\n</table>\n</div>"
        + (f'\n<ol class="notes">{notes}</ol>' if notes else "")
        + (f"\n<p>{_text(block.note)}</p>" if block.note else "")
    )


def _row_html(line: Sequence[str], numeric: Sequence[bool]) -> str:
    first, *rest = (_text(cell) for cell in line)
    cells = (
        f"<td{_side(right)}>{cell}</td>" for cell, right in zip(rest, numeric[1:], strict=True)
    )
    return f'<tr><th scope="row"{_side(numeric[0])}>{first}</th>{"".join(cells)}</tr>'


def _side(right: bool) -> str:
    return ' class="number"' if right else ""


def _png(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The figure {str(path)!r} cannot be read: {error.strerror}.") from error
    if len(data) < 24 or not data.startswith(_PNG_SIGNATURE):
        raise ValueError(f"The figure {str(path)!r} must be a PNG. Draw it again.")
    return data


def _text(text: str) -> str:
    """Escapes for HTML, between tags and within attributes."""
    return html.escape(text, quote=True)


_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #5c5c5c; --line: #d4d4d4; --paper: #fff;
  --shade: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --soft: #a8a8a3; --line: #44444a; --paper: #18181b; --shade: #232327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 2.5rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; }
p, dl, figcaption, .notes { max-width: 46rem; }
.lead { font-size: 1.12rem; }
.wide { overflow-x: auto; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); margin: 1.4rem 0 -.5rem; }
th, td { padding: .22rem .42rem; text-align: left; vertical-align: bottom; white-space: pre; }
th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); }
.number { text-align: right; }
thead th { border-bottom: 2px solid var(--ink); }
tbody th { font-weight: normal; }
tbody { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: var(--shade); }
.notes { color: var(--soft); font-size: .88rem; margin: .2rem 0 1rem; padding: 0;
  list-style: none; counter-reset: note; }
.notes li { counter-increment: note; }
.notes li::before { content: "[" counter(note) "] "; }
figure { margin: 1.2rem 0 2rem; }
img { max-width: min(100%, 54rem); height: auto; border-radius: 6px; background: #fff; }
figcaption { color: var(--soft); margin-top: .4rem; }
dt { font-weight: 600; margin-top: .7rem; }
dd { margin: 0; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: .8rem;
  overflow-x: auto; font: .86rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; padding: .3rem 0; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --shade: #fff; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h1 { font-size: 16pt; }
  h2 { font-size: 12pt; margin-top: 1.2rem; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .35rem; }
  th:first-child { position: static; }
  thead { display: table-header-group; }
  tr, figure, pre, dt { break-inside: avoid; }
  h2, .caption, dt { break-after: avoid; }
  img { max-height: 110mm; width: auto; }
  pre { white-space: pre-wrap; }
}
""".strip()

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""
