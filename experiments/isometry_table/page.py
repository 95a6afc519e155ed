"""Table, figure, page and summary of the isometry table, beside the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.isometry_table import published
from experiments.isometry_table.config import Settings
from nopr.lab import page, plots, records, report, settings, tables

TITLES = {"l1": "L1", "l1_orthp": "L1 + OrthP"}
LEAD = (
    "Units of the smallest mean |w| are removed from a trained network; finetuning starts from "
    "what is left, or from its orthogonalized form (OrthP), at two learning rates."
)
COLUMNS = [
    tables.Column("start", "start"),
    tables.Column("rate", "learning\nrate"),
    tables.Column("last", "test accuracy, %\nlast epoch", 2),
    tables.Column("selected", "test accuracy, %\nselected on validation", 2),
    tables.Column("best_test", "test accuracy, %\nbest test epoch", 2),
    tables.Column("published", "published, %\nbest test epoch", 2),
    tables.Column("jsv", "mean JSV\nafter pruning", 4),
    tables.Column("published_jsv", "published\nmean JSV", 4),
    tables.Column("jsv_end", "mean JSV\nafter finetuning", 3),
]


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the table and writes the figure and the page; returns the summary."""
    asked = settings.read(Settings, config)
    trained = {"dense": results["dense"]}
    trained |= {f"{start}/{rate}": f for (start, rate), f in results["finetuned"].items()}
    for name, found in trained.items():
        for split in ("validation", "test"):
            page.record(run, split, f"{name}/accuracy", found[f"{split}_accuracy"])
    blocks = [_table(asked, results), _figure(asked, results["jsv"], run)]
    page.write(
        run,
        asked,
        title="Does pruning leave a good place to start?",
        lead=LEAD,
        sections=[report.Section("Results", blocks)],
    )
    return _summary(asked, results)


def accuracies(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Test accuracy in %, [seeds]: last epoch, epoch selected on validation, best test epoch."""
    test = 100 * np.asarray(found["test_accuracy"])
    selected = np.asarray(found["validation_accuracy"]).argmax(axis=1)
    return {
        "last": test[:, -1],
        "selected": test[np.arange(len(test)), selected],
        "best_test": test.max(axis=1),
    }


def is_published(asked: Settings) -> bool:
    """Whether this is an MLP-7 of the paper, of any activation, on its data."""
    shape = asked.network.hidden, asked.network.width
    return asked.data.name == "mnist" and shape == (6, 100)


def has_published_table(asked: Settings) -> bool:
    """Whether the paper's table is for this network and ratio."""
    linear = asked.network.activation == "linear"
    return linear and asked.pruning.ratio == 0.8 and is_published(asked)


def _net(asked: Settings) -> str:
    kind = {"linear": "Linear", "relu": "ReLU", "tanh": "Tanh"}[asked.network.activation]
    return f"MLP-{asked.network.hidden + 1}-{kind} on {asked.data.name}"


def _statistic(asked: Settings) -> str:
    return page.statistic(asked.seeds, f"mean and 95% interval, n = {asked.seeds} seeds")


def _table(asked: Settings, results: Mapping[str, Any]) -> report.Table:
    none = tables.Missing(
        "The paper has these numbers for MLP-7-Linear on MNIST at ratio 0.8 only."
    )
    rows = []
    for (start, rate), found in results["finetuned"].items():
        *best, jsv = published.ACCURACY_AND_JSV[start]
        place = list(results["finetuned"]).index((start, rate)) % len(best)
        rows.append(
            {
                "start": TITLES[start],
                "rate": rate,
                **{kind: page.over_seeds(values) for kind, values in accuracies(found).items()},
                "published": best[place] if has_published_table(asked) else none,
                "jsv": page.over_seeds(results["pruned"][start]["jsv"]),
                "published_jsv": jsv if has_published_table(asked) else none,
                "jsv_end": page.over_seeds(found["jsv"]),
            }
        )
    caption = (
        f"{_net(asked)}, pruning ratio {asked.pruning.ratio}; {_statistic(asked)}. The best test "
        "epoch is what the paper reports; it is chosen on the test set and shown only for "
        "comparison."
    )
    accuracy = page.over_seeds(accuracies(results["dense"])["last"])
    jsv = page.over_seeds(results["dense"]["jsv"])
    note = (
        f"Dense, before pruning: test accuracy {tables.interval_text(accuracy, 2)} % (last epoch), "
        f"mean JSV {tables.interval_text(jsv, 3)}."
    )
    return report.Table(rows, COLUMNS, caption, "start", note)


def _figure(asked: Settings, jsv: np.ndarray, run: records.Run) -> report.Figure:
    ours = page.curve(asked.pruning.ratios, jsv)
    cut = ""
    if "low" in ours:
        # On a logarithmic axis an interval must stay above 0.
        if np.any(ours["low"] < ours["mean"] / 10):
            cut = "; intervals that reach 0 are cut at a tenth of the mean"
        ours["low"] = np.maximum(ours["low"], ours["mean"] / 10)
    curves = {"ours": ours}
    activation = asked.network.activation
    if activation in published.JSV and is_published(asked):
        curves["published"] = {"x": published.RATIOS, "mean": published.JSV[activation]}
    drawn = plots.lines_with_intervals(
        curves,
        title=f"Isometry after removing units: {_net(asked)}",
        subtitle=f"{_statistic(asked)}; right after L1 pruning, before finetuning{cut}",
        x_label="pruning ratio (share of hidden units removed)",
        y_label="mean JSV (log scale; 1 is isometry)",
        y_scale="log",
    )
    return page.figure(
        run,
        "jsv_against_ratio",
        drawn,
        plots.curve_rows(curves),
        caption="Mean Jacobian singular value right after removing units, before finetuning.",
        alt="Mean singular value against pruning ratio on a logarithmic axis.",
    )


def _summary(asked: Settings, results: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "seeds": asked.seeds,
        "dense/test_accuracy_last_percent": accuracies(results["dense"])["last"],
        "dense/mean_jsv": results["dense"]["jsv"],
    }
    for start, found in results["pruned"].items():
        values[f"{start}/mean_jsv_after_pruning"] = found["jsv"]
    for (start, rate), found in results["finetuned"].items():
        for kind, percent in accuracies(found).items():
            values[f"{start}/lr_{rate}/test_accuracy_{kind}_percent"] = percent
        values[f"{start}/lr_{rate}/mean_jsv_after_finetuning"] = found["jsv"]
    for ratio, jsv in zip(asked.pruning.ratios, results["jsv"].T, strict=True):
        values[f"ratio_{ratio}/mean_jsv_after_pruning"] = jsv
    return page.summarize(values)
