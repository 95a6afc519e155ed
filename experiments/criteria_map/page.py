"""The table, the figure, page, CSV and summary of the map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.criteria_map.config import Settings
from nopr.lab import methods, page, plots, records, report, settings, tables

TITLE = "Which methods know the data, and which merely keep signals alive?"
LEAD = (
    "Every way to choose a mask, once: the exact bits that its mask knows of the data, on a task "
    "whose datasets can all be tried; and on images, what the mask leaves of the network, whether "
    "it passes signals, and how well it trains."
)
GROUPS = {"init": "before training", "trained": "after training", "imp": "IMP"}
VOCABULARY = {
    "bits": "I(m; D | init), the mutual information of mask and data given the initialization, in "
    "the cube task: six labeled corners of the cube, a 3-4-1 ReLU net whose 16 kernel weights are "
    "prunable; every method prunes all 1,792 datasets.",
    "effective": "Kept weights on a path from an input to an output, over kept weights.",
    "mean and spread of singular values": "Mean and standard deviation of the singular values of "
    "the Jacobian of the logits with respect to the input, right after pruning, over inputs and "
    "classes. For methods after training, the weights are trained.",
    "after training": "Scored on the trained network, whose weights go on; the others start from "
    "the initial weights.",
    "interval": "Mean ± half width of the 95% interval, Student's t over seeds or initializations.",
}


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the table and writes the figure, the CSV and the page; returns the summary."""
    asked = settings.read(Settings, config)
    measured = {name: _measured(results, name) for name in _in_order(results)}
    blocks = [_table(asked, results, measured), _figure(asked, results, measured, run)]
    page.write(
        run,
        asked,
        title=TITLE,
        lead=LEAD,
        sections=[
            report.Section("The map", blocks),
            report.Section("Vocabulary", [report.Terms(VOCABULARY)]),
        ],
    )
    return page.summarize(
        {
            "dense/test_accuracy_percent": 100 * np.asarray(results["dense"]["test_accuracy"]),
            "dataset_entropy_bits": float(results["entropy_bits"]),
            **{
                f"{name}/{quantity}": value
                for name, found in measured.items()
                for quantity, value in found.items()
            },
        }
    )


def _in_order(results: Mapping[str, Any]) -> list[str]:
    return [name for name in methods.TITLES if name in results["trained"]]


def _measured(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All quantities of a method, with their intervals."""
    trained, bits = results["trained"][name], results["bits"][name]
    kept = np.asarray(trained["kept"], float)
    return {
        "information_bits": page.over_seeds(bits["bits"]),
        "cube_kept_weights": int(np.max(bits["kept"])),
        "kept_weights": page.over_seeds(kept),
        "effective_percent": page.over_seeds(trained["effective"] / kept, scale=100),
        "mean_singular_value": page.over_seeds(trained["mean_singular_value"]),
        "spread_of_singular_values": page.over_seeds(trained["spread_of_singular_values"]),
        "test_accuracy_percent": page.over_seeds(trained["test_accuracy"], scale=100),
    }


def _table(
    asked: Settings, results: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]
) -> report.Table:
    columns = [
        tables.Column("method", "method"),
        tables.Column("information_bits", "mask information,\nbits (cube)", 2),
        tables.Column("cube_kept_weights", "kept\n(cube)", 0),
        tables.Column("kept_weights", "kept\n(images)", 0),
        tables.Column("effective_percent", "effective,\n% of kept"),
        tables.Column("mean_singular_value", "mean sv\nafter pruning", 3),
        tables.Column("spread_of_singular_values", "spread of sv\nafter pruning", 3),
        tables.Column("test_accuracy_percent", "test acc, %\nlast epoch", 2),
    ]
    order = sorted(measured, key=lambda name: -measured[name]["information_bits"].mean)
    rows = [{"method": methods.TITLES[name], **measured[name]} for name in order]
    widths = "-".join(map(str, results["widths"]))
    dense = page.over_seeds(results["dense"]["test_accuracy"], scale=100)
    signal = page.over_seeds(results["dense"]["mean_singular_value"])
    caption = (
        f"The map: {asked.data.name}, {widths} ReLU net, density {asked.pruning.density:.3g} of "
        f"{results['weights']:,} weights, {results['epochs']} epochs under the mask, "
        + page.statistic(asked.seeds, f"mean and 95% interval over n = {asked.seeds} seeds")
        + f"; dense {tables.interval_text(dense, 2)} %, mean singular value at the start "
        f"{tables.interval_text(signal, 2)}. Bits on the cube task, "
        f"{asked.information.kept} of {results['cube_weights']} kernel weights kept, over "
        f"{asked.information.initializations} initializations; H(D) = "
        f"{results['entropy_bits']:.2f} bits. {results['images']}"
    )
    return report.Table(rows, columns, caption)


def _figure(
    asked: Settings,
    results: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Any]],
    run: records.Run,
) -> report.Figure:
    rows = []
    for name, found in measured.items():
        rows.append(
            {
                "name": methods.TITLES[name],
                "group": GROUPS[methods.METHODS[name].when],
                "x": found["information_bits"].mean,
                "x_half_width": found["information_bits"].half_width,
                "y": found["mean_singular_value"].mean,
                "y_half_width": found["mean_singular_value"].half_width,
                "color": found["test_accuracy_percent"].mean,
            }
        )
    drawn = plots.numbered_points(
        rows,
        title="Who knows the data, and who merely keeps signals alive?",
        subtitle=f"mean and 95% interval; {asked.information.initializations} initializations "
        f"(bits), {asked.seeds} seeds ({asked.data.name})",
        x_label="mask information I(m; D | init), bits (cube task)",
        y_label=f"mean singular value right after pruning ({asked.data.name})",
        color_label="test accuracy after training, %",
    )
    return page.figure(
        run,
        "map",
        drawn,
        rows,
        caption="Further right, the mask knows more of its data. Higher, the pruned network passes "
        "signals on before any training. Color is the accuracy after training; at the same counts "
        "of kept weights. Left of the line are masks of exactly 0 bits.",
        alt="Mean singular value against mask information, one numbered point per method.",
    )
