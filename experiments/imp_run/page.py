"""Table, figure, page, metrics and summary of the long run, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nopr.lab import page, plots, records, report, tables, training

SPLITS = ("validation", "test")
COLUMNS = [
    tables.Column("level", "level", 0),
    tables.Column("density", "density", 4),
    tables.Column("kept", "kept\nweights", 0),
    tables.Column("validation_accuracy", "validation\nacc, %"),
    tables.Column("validation_loss", "validation\nloss, nats", 4),
    tables.Column("test_accuracy", "test\nacc, %"),
    tables.Column("test_loss", "test\nloss, nats", 4),
]


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the table and writes the figure and the page; returns the summary."""
    del config
    setting, rows = results["setting"], _rows(results)
    curves = {("train", "loss"): results["loss"]} | {
        (split, name): results[f"{split}_{name}"]
        for split in SPLITS
        for name in ("accuracy", "loss")
    }
    for (split, name), levels in curves.items():
        for level, values in enumerate(levels):
            page.record(run, split, f"level_{level}/{name}", values[None], first=setting.rewind)
    widths = (*setting.asked.network.widths, setting.images.classes)
    shape = "-".join(map(str, (training.inputs(setting.images), *widths)))
    rewound = f"epoch {setting.rewind}" if setting.rewind else "initialization"
    of_weights = setting.asked.pruning.retrain == "weight_rewinding"
    what = "rewound" if of_weights else "learning rate rewound"
    caption = (
        f"Iterative magnitude pruning on {setting.asked.data.name}, {shape} ReLU net, {what} to "
        f"{rewound}; last of {setting.epochs} epochs of each level; n = 1 seed, so there is no "
        f"interval; {training.counted(setting.images)}"
    )
    blocks = [report.Table(rows, COLUMNS, caption), _figure(setting.asked.data.name, rows, run)]
    page.write(
        run,
        setting.asked,
        title="Iterative magnitude pruning, level by level",
        lead="One network is trained, loses a share of its smallest weights, "
        + ("is rewound to its early weights, " if of_weights else "has its schedule rewound, ")
        + "and is trained again.",
        sections=[report.Section("Results", blocks)],
    )
    return _summary(setting, rows)


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per level, after its last epoch; accuracies in %."""
    rows = []
    for level, kept in enumerate(results["kept"].tolist()):
        row = {"level": level, "density": kept / results["setting"].size, "kept": kept}
        for split in SPLITS:
            row[f"{split}_accuracy"] = 100 * float(results[f"{split}_accuracy"][level, -1])
            row[f"{split}_loss"] = float(results[f"{split}_loss"][level, -1])
        rows.append(row)
    return rows


def _figure(name: str, rows: list[dict[str, Any]], run: records.Run) -> report.Figure:
    points = [
        {
            "method": "IMP" if row["level"] else "dense",
            "density": row["density"],
            "mean": row["test_accuracy"],
            "half_width": None,
            "n": 1,
        }
        for row in rows
    ]
    return page.figure(
        run,
        "accuracy_against_density",
        plots.accuracy_against_density(points, title=f"Accuracy under iterative pruning: {name}"),
        points,
        caption="Higher is better, and further right is sparser. The dashed line is the dense "
        "network. One seed, so that a step of one image up or down means nothing.",
        alt="Test accuracy against the share of weights kept, level by level.",
    )


def _summary(setting: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "data": setting.asked.data.name,
        "seeds": 1,
        "prunable_weights": setting.size,
        "rewind_epoch": setting.rewind,
        "retrain": setting.asked.pruning.retrain,
        "epochs_trained": setting.rewind + len(rows) * (setting.epochs - setting.rewind),
    }
    for row in rows:
        name = f"level_{row['level']}"
        summary |= {f"{name}/density": row["density"], f"{name}/kept_weights": row["kept"]}
        for split in SPLITS:
            summary[f"{name}/{split}_accuracy_percent"] = row[f"{split}_accuracy"]
            summary[f"{name}/{split}_loss_nats"] = row[f"{split}_loss"]
    return summary
