"""Table, page and summary of pruning at initialization on CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.synaptic_flow import published
from experiments.synaptic_flow.config import Settings
from nopr.lab import methods, page, records, report, settings, tables

TITLES = {"vgg16": "VGG-16", "resnet20": "ResNet-20"}


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the table and writes the page; returns the summary."""
    asked = settings.read(Settings, config)
    rows = _rows(results)
    for name, found in rows.items():
        page.record(run, "validation", f"{name}/accuracy", found["validation_accuracy"])
    page.write(
        run,
        asked,
        title=f"Pruning at initialization: {TITLES[asked.network.name]} on {asked.data.name}",
        lead="Masks chosen before training, and the accuracy to which they train.",
        sections=[report.Section("Accuracy", [_table(asked, results, rows)])],
    )
    return page.summarize(
        {
            f"{name}/{kind}_test_accuracy_percent": values
            for name, found in rows.items()
            for kind, values in accuracies(found).items()
        }
    )


def accuracies(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Test accuracy in %, [seeds]: last epoch, epoch selected on validation, best test epoch."""
    test = 100 * np.asarray(found["test_accuracy"])
    selected = np.asarray(found["validation_accuracy"]).argmax(axis=1)
    return {
        "last": test[:, -1],
        "selected": test[np.arange(len(test)), selected],
        "best": test.max(axis=1),
    }


def _rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results by name, such as `snip/density_0.1`."""
    found = {"dense": results["found"]["dense"]}
    for name in methods.TITLES:
        for density, one in results["found"].get(name, {}).items():
            found[f"{name}/density_{density:g}"] = one
    return found


def _published(asked: Settings, name: str) -> Any:
    """The published accuracy of a row."""
    if (asked.network.name, asked.data.name, asked.network.width) != ("vgg16", "cifar10", 1.0):
        return tables.Missing("The published table is of VGG-16 on CIFAR-10.")
    method, _, density = name.partition("/density_")
    if method == "dense":
        return published.DENSE
    known = dict(zip(published.DENSITIES, published.ACCURACY.get(method, ()), strict=False))
    return known.get(float(density), tables.Missing("Not in the published table."))


def _table(asked: Settings, results: Mapping[str, Any], rows: Mapping[str, Any]) -> report.Table:
    columns = [
        tables.Column("method", "method"),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("last", "test acc, %\nlast epoch"),
        tables.Column("selected", "test acc, %\nselected"),
        tables.Column("best", "test acc, %\nbest test epoch"),
        tables.Column("published", "published, %\nbest test epoch"),
    ]
    cells = []
    for name, found in rows.items():
        method = name.partition("/")[0]
        each = {kind: page.over_seeds(values) for kind, values in accuracies(found).items()}
        kept = int(np.asarray(found["kept"])[0])
        shown = {"method": methods.TITLES.get(method, method), "kept": kept}
        cells.append({**shown, **each, "published": _published(asked, name)})
    statistic = page.statistic(asked.seeds, f"mean and 95% interval over n = {asked.seeds} seeds")
    caption = (
        f"{TITLES[asked.network.name]} on {asked.data.name}, {results['weights']:,} prunable "
        f"weights, {results['epochs']} epochs; {statistic}; {results['images']}. The best test "
        "epoch is what the tables report; it is chosen on the test set and shown for comparison."
    )
    return report.Table(cells, columns, caption, "method")
