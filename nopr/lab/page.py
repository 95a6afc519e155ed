"""The output of an experiment: printed tables, page, metrics and summary.

The sections state once what is shown; the printed tables, `table.txt` and `report.html` follow:

    def show(results, config, run):
        asked = settings.read(Settings, config)
        table = report.Table(rows, columns, "Digits, n = 3 seeds: mean and 95% interval")
        figure = page.figure(run, "accuracy", drawn, rows, caption="...", alt="...")
        sections = [report.Section("Results", [table, figure])]
        page.write(run, asked, title="Do masks train?", lead="...", sections=sections)
        return page.summarize({"snip/test_accuracy_percent": values_by_seed})
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nopr.lab import plots, records, report, settings, tables

WIDTH = 100
"""Width of printed text, in characters."""


def write(
    run: records.Run,
    asked: Any,
    *,
    title: str,
    lead: str,
    sections: Sequence[report.Section],
) -> None:
    """Prints the tables of the sections and writes the page.

    The page ends with the command that runs it again, the settings and the environment.

    Args:
      run: Run to write to.
      asked: Settings, as `settings.read` returns them.
      title: Heading of the page, preferably a question.
      lead: One or two sentences on what was done.
      sections: Content of the page.
    """
    shown = [block for section in sections for block in section.blocks]
    run.show_table("\n\n".join(_text(b) for b in shown if isinstance(b, report.Table)))
    again: list[report.Block] = [
        report.Command(command(asked, run.directory)),
        report.Details("Settings", str(settings.config(asked)).strip()),
        report.Details("Environment", (run.directory / "environment.json").read_text().strip()),
    ]
    sections = [*sections, report.Section("Again", again)]
    report.build(run.report, title=title, lead=lead, sections=sections)


def _text(table: report.Table) -> str:
    caption = textwrap.fill(table.caption, WIDTH)
    text = tables.aligned(table.rows, table.columns, title=caption, group_by=table.group_by)
    return "\n".join([text, *textwrap.wrap(table.note, WIDTH)])


def figure(
    run: records.Run,
    name: str,
    drawn: Figure,
    rows: Sequence[Mapping[str, Any]],
    *,
    caption: str,
    alt: str,
) -> report.Figure:
    """Saves a figure with the numbers that it shows, for a section.

    Args:
      run: Run to save in.
      name: File name without its ending.
      drawn: Figure.
      rows: Numbers that it shows, one mapping per row.
      caption: How to read it.
      alt: What it shows, for readers who cannot see it.
    """
    return report.Figure(plots.save(drawn, rows, run.figures, name).png, caption, alt)


def command(asked: Any, directory: Path | None = None) -> str:
    """The command line for these settings: the file of their dataclass, and what differs.

    Args:
      asked: The settings.
      directory: Directory of the run, named if the launcher would not choose it by default.
    """
    path = Path(inspect.getfile(type(asked)))
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    flags = [f"--config.{name}={value}" for name, value in _changes(asked, type(asked)())]
    if directory is not None and not _is_usual(directory):
        flags.append(f"--workdir={directory}")
    return shlex.join(["python", "-m", "nopr.lab.launch", f"--config={path}", *flags])


def _is_usual(directory: Path) -> bool:
    """Whether a run without a variant is there by default."""
    there = records.read_json(directory / "config.json") or {}
    name = records.run_name(there["experiment"], "", there["config"])
    return directory.absolute() == Path("runs", name).absolute()


def _changes(asked: Any, usual: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(asked):
        value, other = getattr(asked, field.name), getattr(usual, field.name)
        if dataclasses.is_dataclass(value):
            yield from _changes(value, other, f"{prefix}{field.name}.")
        elif value != other:
            yield f"{prefix}{field.name}", value


def compare(
    run: records.Run,
    asked: Any,
    results: Mapping[tuple[str, float], Mapping[str, Any]],
    *,
    title: str,
    lead: str,
    about: str,
    published: Mapping[tuple[str, float], float] | None = None,
) -> dict[str, Any]:
    """Shows networks trained under masks: table, figure, metrics, page and summary.

    Args:
      run: Run to write to.
      asked: Settings, as `settings.read` returns them.
      results: Results of `training.sweep`, by (method, density).
      title: Heading of the page, preferably a question.
      lead: One or two sentences on what was done.
      about: Data and network for captions, such as `"digits, 64-300-100-10 ReLU net"`.
      published: Published test accuracies in %, by (method, density).

    Returns:
      The summary.

    Raises:
      ValueError: If `published` has a method that `results` lacks. Densities may be missing, as
        when a flag asks for others.
    """
    _check_published(run, results, published or {})
    columns = [
        tables.Column("method", "method"),
        tables.Column("density", "density", 3),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("last", "test acc, %\nlast epoch"),
        tables.Column("selected", "test acc, %\nselected"),
    ]
    if published:
        columns.append(tables.Column("published", "published"))
    rows, points, values = [], [], {}
    for (method, density), found in results.items():
        name = f"{method}/density_{density:g}"
        last = over_seeds(found["test_accuracy"], scale=100)
        selected = over_seeds(found["selected_test_accuracy"], scale=100)
        row = {"method": method, "density": density, "kept": over_seeds(found["kept"]).mean}
        theirs = (published or {}).get((method, density))
        rows.append({**row, "last": last, "selected": selected, "published": theirs})
        points.append({**row, "mean": last.mean, "half_width": last.half_width, "n": last.n})
        values[f"{name}/test_accuracy_percent"] = last
        values[f"{name}/selected_test_accuracy_percent"] = selected
        record(run, "train", f"{name}/loss", found["loss"])
        record(run, "validation", f"{name}/accuracy", found["validation_accuracy"])
    n = rows[0]["last"].n
    caption = (
        f"{about}, {statistic(n, f'n = {n} seeds: mean and 95% interval')}; selected: the epoch of "
        "the best validation accuracy"
    )
    drawn = figure(
        run,
        "accuracy_against_density",
        plots.accuracy_against_density(points, title=title),
        points,
        caption="Test accuracy of the last epoch. Higher is better, further right is sparser.",
        alt="Test accuracy against the share of weights kept, one line per method.",
    )
    blocks = [report.Table(rows, columns, caption, "method"), drawn]
    write(run, asked, title=title, lead=lead, sections=[report.Section("Results", blocks)])
    return summarize(values)


def _check_published(
    run: records.Run, results: Mapping[Any, Any], published: Mapping[Any, Any]
) -> None:
    """Refuses numbers of unknown methods; reports those of other densities."""
    methods = list(dict.fromkeys(method for method, _ in results))
    for key in published:
        if key in results:
            continue
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] in methods):
            names = ", ".join(map(repr, methods))
            raise ValueError(
                f"`published` must have keys (method, density) with a method of {names}, "
                f"got {key!r}."
            )
        run.say(f"published: no case has the key {key!r}; its number is not shown.")


def statistic(n: int, many: str, *, unit: str = "seed") -> str:
    """The caption of numbers over `n` seeds: `many`, or that a single seed has no interval."""
    return many if n > 1 else f"n = 1 {unit}, no interval"


def record(run: records.Run, split: str, name: str, values: Any, *, first: int = 0) -> None:
    """Records the mean over seeds of `values` [seeds, epochs], epoch by epoch from `first`."""
    for epoch, value in enumerate(np.asarray(values).mean(axis=0), first):
        run.metric(epoch, split, name, value)


def over_seeds(values: Any, *, scale: float = 1.0) -> tables.Interval:
    """The mean and its 95% interval over seeds; arrays are first averaged within a seed."""
    array = np.asarray(values, np.float64)
    return tables.mean_interval(scale * array.reshape(len(array), -1).mean(axis=1))


def summarize(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat summary: the mean over seeds, and the half width of its interval if there is one.

    Args:
      values: Numbers, strings, `Interval`s, or arrays whose first axis is the seeds, by name with
        its unit.
    """
    summary: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str | int | float):
            summary[name] = value
            continue
        found = value if isinstance(value, tables.Interval) else over_seeds(value)
        summary[name] = found.mean
        if found.half_width is not None:
            summary[f"{name}_half_width"] = found.half_width
    return summary


def curve(x: Sequence[Any], values: Any, *, key: str = "x") -> dict[str, Any]:
    """Columns for `plots`: the mean of `values` [seeds, points] and its interval."""
    mean, half, _ = tables.mean_interval(values)
    columns = {key: x, "mean": mean}
    return columns if half is None else {**columns, "low": mean - half, "high": mean + half}
