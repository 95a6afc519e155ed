"""Tables, figure, page and summary of mask information, beside the published curves."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.mask_information import cube, published
from experiments.mask_information.config import Settings
from experiments.mask_information.run import BASE, slug
from nopr.lab import methods, page, plots, records, report, settings, tables

Bits = Mapping[str, Mapping[str, np.ndarray]]


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the tables and writes the figure and the page; returns the summary."""
    asked, bits, task = settings.read(Settings, config), results["bits"], results["task"]
    lead = (
        "Exact mutual information of mask and data on the cube task of No Free Prune, appendix "
        "C.2, beside the published curves."
    )
    every = (
        f"Every dataset of the law {asked.task.law!r} was pruned on: {len(task.data.weights):,} of "
        f"them, H(D) = {task.data.entropy_bits:.2f} bits. The law of the mask given the "
        "initialization is then known, and I(m; D | init) = H(m | init) is computed, not estimated."
    )
    main = [every, _table(asked, bits[BASE], task), _figure(asked, bits[BASE], task, run)]
    sections = [report.Section("Bits against pruned weights", main)]
    if len(bits) > 1:
        table = sensitivity(asked, bits)
        sections.append(report.Section("What the paper leaves open", [table]))
    page.write(
        run,
        asked,
        title="What does a pruning mask know about its data?",
        lead=lead,
        sections=sections,
    )
    return _summary(asked, bits, task)


def _table(asked: Settings, bits: Mapping[str, np.ndarray], task: cube.Task) -> report.Table:
    shown = [k for k in published.PRUNED if k <= asked.pruning.most]
    columns = [tables.Column("method", "method"), tables.Column("source", "")]
    columns += [tables.Column(str(k), f"{k}\npruned", 2) for k in shown]
    rows: list[dict[str, Any]] = []
    for name in _in_order(bits):
        means = {str(k): page.over_seeds(bits[name][:, k - 1]) for k in shown}
        rows.append({"group": name, "method": methods.TITLES[name], "source": "ours", **means})
        if name in published.BITS:
            theirs = dict(zip(map(str, published.PRUNED), published.BITS[name], strict=True))
            rows.append({"group": name, "method": "", "source": "published", **theirs})
    n = asked.initializations
    caption = (
        f"Exact mask information, bits ({_over(n)}); "
        f"H(D) = {task.data.entropy_bits:.2f} bits; computed on {asked.task.batching}; "
        f"{methods.checked_text(asked.checked, n)}"
    )
    return report.Table(rows, columns, caption, "group")


def sensitivity(asked: Settings, bits: Bits) -> report.Table:
    """The effect of what the paper leaves open."""
    shown = [k for k in (9, 18) if k <= asked.pruning.most]
    columns = [tables.Column("setting", "setting"), tables.Column("method", "method")]
    columns += [tables.Column(str(k), f"{k} pruned", 2) for k in shown]
    columns += [tables.Column("peak", "highest mean", 2), tables.Column("at", "at pruned", 0)]
    rows = []
    # All on the same initializations, so that differences come from the setting alone.
    n = min(len(values) for by_method in bits.values() for values in by_method.values())
    for setting, by_method in bits.items():
        for name in _in_order(by_method):
            if name not in ("synflow", "random"):
                values = by_method[name][:n]
                peak = int(values.mean(axis=0).argmax())
                row = {str(k): page.over_seeds(values[:, k - 1]) for k in shown}
                row |= {"setting": setting, "method": methods.TITLES[name], "at": peak + 1}
                rows.append({**row, "peak": page.over_seeds(values[:, peak])})
    caption = (
        "What the paper leaves open, one at a time; bits "
        f"({_over(n, f'the same n = {n} initializations')})"
    )
    return report.Table(rows, columns, caption, "setting")


def _over(n: int, which: str = "") -> str:
    many = f"mean and 95% interval over {which or f'{n} initializations'}"
    return page.statistic(n, many, unit="initialization")


def _in_order(names: Container[str]) -> list[str]:
    return [name for name in methods.TITLES if name in names]


def _figure(
    asked: Settings, bits: Mapping[str, Any], task: cube.Task, run: records.Run
) -> report.Figure:
    pruned = range(1, asked.pruning.most + 1)
    curves = {methods.TITLES[k]: page.curve(pruned, bits[k], key="pruned") for k in _in_order(bits)}
    theirs = {
        methods.TITLES[name]: {"pruned": published.PRUNED, "mean": published.BITS[name]}
        for name in bits
        if name in published.BITS
    }
    drawn = plots.bits_against_pruned(
        curves,
        task.data.entropy_bits,
        theirs,
        weights=task.size,
        n=asked.initializations,
        title="What the mask knows of its data: exact (lines) and published (hollow)",
        order=tuple(methods.TITLES.values()),
    )
    lines = "exact, with the 95% interval over initializations"
    lines = page.statistic(asked.initializations, lines, unit="initialization")
    return page.figure(
        run,
        "bits_against_pruned",
        drawn,
        plots.curve_rows(curves, theirs),
        caption=f"Lines: {lines}. Hollow markers: the published plug-in estimates from 32,000 "
        "samples.",
        alt="Mask information in bits against the number of pruned weights, by method.",
    )


def _summary(asked: Settings, bits: Bits, task: cube.Task) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "datasets": len(task.data.weights),
        "dataset_entropy_bits": task.data.entropy_bits,
        "initializations": asked.initializations,
    }
    for setting, by_method in bits.items():
        for name, values in by_method.items():
            for k in range(1, asked.pruning.most + 1):
                mean, half, _ = tables.mean_interval(values[:, k - 1])
                prefix = slug(f"{setting}/{name}/pruned_{k}")
                summary[f"{prefix}/bits"] = mean
                if half is not None:
                    summary[f"{prefix}/half_width_bits"] = half
    return summary
