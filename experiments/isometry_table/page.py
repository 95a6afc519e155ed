"""Table, figure, summary and page of the isometry table, beside the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nopr.lab import plots, records, report, tables

PUBLISHED = {
    # arXiv:2105.05916, MLP-7-Linear, 90 epochs: best accuracy (%) at 1e-2 and 1e-3, mean JSV.
    "l1": (91.36, 90.54, 0.0040),
    "l1_orthp": (92.79, 92.77, 1.0),
}
PUBLISHED_JSV = {
    # Mean JSV right after L1 pruning, by pruning ratio.
    "ratios": (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    "linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "relu": (1.8265, 1.6664, 1.2583, 0.6295, 0.1334, 0.0055),
}
STARTS = {"l1": "L1", "l1_orthp": "L1 + OrthP"}
SCHEDULES = {"1e-2": "large_rates", "1e-3": "small_rates"}


def write(
    config: ConfigDict,
    run: records.Run,
    dense: Mapping[str, Any],
    pruned: Mapping[str, Any],
    finetuned: Mapping[tuple[str, str], Any],
    jsv: np.ndarray,
) -> dict[str, Any]:
    """Prints the table, writes figure and page; returns the summary.

    Args:
      config: What was asked.
      run: Where to write.
      dense: The dense networks, as trained.
      pruned: By start, the networks right after pruning.
      finetuned: By start and learning rate.
      jsv: Mean JSV right after pruning, [seeds, ratios].
    """
    _record_metrics(run, dense, finetuned)
    columns, rows = _table(config, pruned, finetuned)
    title = f"{_net(config)}, pruning ratio {config.pruning.ratio}; {_statistic(config)}"
    dense_line = _dense_line(dense)
    run.show_table(tables.aligned(rows, columns, title=title, group_by="start") + "\n" + dense_line)
    _draw(config, jsv, run)
    _write_report(config, run, (columns, rows), dense_line)
    return _summary(config, dense, pruned, finetuned, jsv)


def _net(config: ConfigDict) -> str:
    kind = {"linear": "Linear", "relu": "ReLU", "tanh": "Tanh"}[config.network.activation]
    return f"MLP-{config.network.hidden + 1}-{kind} on {config.data.name}"


def _statistic(config: ConfigDict) -> str:
    return f"mean and 95% interval, n = {config.seeds} seeds"


def _accuracies(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Test accuracy in %, [seeds]: last epoch, epoch selected on validation, best test epoch."""
    test = 100 * np.asarray(found["test_accuracy"])
    selected = np.asarray(found["validation_accuracy"]).argmax(axis=1)
    return {
        "last": test[:, -1],
        "selected": test[np.arange(len(test)), selected],
        "best_test": test.max(axis=1),
    }


def _table(
    config: ConfigDict, pruned: Mapping[str, Any], finetuned: Mapping[Any, Any]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    columns = [
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
    compared = _published_applies(config)
    none = tables.Missing(
        "The paper prints these numbers for MLP-7-Linear on MNIST at ratio 0.8 only."
    )
    rows = []
    for (name, rate), found in finetuned.items():
        place = list(SCHEDULES).index(rate)
        intervals = {
            key: tables.mean_interval(values) for key, values in _accuracies(found).items()
        }
        rows.append(
            {
                "start": STARTS[name],
                "rate": rate,
                **intervals,
                "published": PUBLISHED[name][place] if compared else none,
                "jsv": tables.mean_interval(pruned[name]["jsv"]),
                "published_jsv": PUBLISHED[name][2] if compared else none,
                "jsv_end": tables.mean_interval(found["jsv"]),
            }
        )
    return columns, rows


def _published_applies(config: ConfigDict) -> bool:
    linear = config.network.activation == "linear"
    return linear and config.pruning.ratio == 0.8 and _is_published_net(config)


def _is_published_net(config: ConfigDict) -> bool:
    """Whether this is an MLP-7 of the paper, of any activation, on its data."""
    shape = config.network.hidden, config.network.width
    return config.data.name == "mnist" and shape == (6, 100)


def _dense_line(dense: Mapping[str, Any]) -> str:
    accuracy = tables.interval_text(tables.mean_interval(_accuracies(dense)["last"]), 2)
    jsv = tables.interval_text(tables.mean_interval(dense["jsv"]), 3)
    return f"Dense, before pruning: test accuracy {accuracy} % (last epoch), mean JSV {jsv}."


def _record_metrics(run: records.Run, dense: Any, finetuned: Mapping[Any, Any]) -> None:
    named = {"dense": dense} | {
        f"{name}/{rate}": found for (name, rate), found in finetuned.items()
    }
    for name, found in named.items():
        for split in ("validation", "test"):
            means = np.asarray(found[f"{split}_accuracy"]).mean(axis=0)
            for epoch, value in enumerate(means):
                run.metric(epoch, split, f"{name}/accuracy", value)


def _draw(config: ConfigDict, jsv: np.ndarray, run: records.Run) -> None:
    mean, half, _ = tables.mean_interval(jsv)
    ours = {"x": config.pruning.ratios, "mean": mean}
    cut = ""
    if half is not None:
        # On a logarithmic axis an interval has to stay above 0.
        ours |= {"low": np.maximum(mean - half, mean / 10), "high": mean + half}
        if np.any(mean - half < mean / 10):
            cut = "; intervals that go on to 0 are cut at a tenth of the mean"
    curves = {"ours": ours}
    activation = config.network.activation
    if activation in PUBLISHED_JSV and _is_published_net(config):
        curves["published"] = {"x": PUBLISHED_JSV["ratios"], "mean": PUBLISHED_JSV[activation]}
    figure = plots.lines_with_intervals(
        curves,
        title=f"Isometry after removing units: {_net(config)}",
        subtitle=f"{_statistic(config)}; right after L1 pruning, before finetuning{cut}",
        x_label="pruning ratio (share of hidden units removed)",
        y_label="mean JSV (log scale; 1 is isometry)",
        y_scale="log",
    )
    plots.save(figure, plots.curve_rows(curves), run.figures, "jsv_against_ratio")


def _write_report(config: ConfigDict, run: records.Run, main: Any, dense_line: str) -> None:
    caption = (
        f"{_net(config)}, pruning ratio {config.pruning.ratio}; {_statistic(config)}. The best "
        "test epoch is what the paper reports; it is chosen on the test set and only stands here "
        "to be compared."
    )
    blocks: list[report.Block] = [
        dense_line,
        report.Table(main[1], main[0], caption, "start"),
        report.Figure(
            run.figures / "jsv_against_ratio.png",
            "Mean Jacobian singular value right after removing units, before finetuning.",
            "Mean singular value against pruning ratio on a logarithmic axis.",
        ),
    ]
    again = [report.Details("Configuration", str(config))]
    report.build(
        run.report,
        title="Does pruning leave a good place to start?",
        lead="Units of the smallest mean |w| are removed from a trained network; finetuning starts "
        "from what is left, or from its orthogonalised form (OrthP), at two learning rates.",
        sections=[report.Section("Results", blocks), report.Section("Again", again)],
    )


def _summary(
    config: ConfigDict, dense: Any, pruned: Any, finetuned: Mapping[Any, Any], jsv: np.ndarray
) -> dict[str, Any]:
    summary: dict[str, Any] = {"seeds": config.seeds}

    def add(name: str, values: Any) -> None:
        mean, half, _ = tables.mean_interval(values)
        summary[name] = mean
        if half is not None:
            summary[f"{name}_half_width"] = half

    add("dense/test_accuracy_last_percent", _accuracies(dense)["last"])
    add("dense/mean_jsv", dense["jsv"])
    for name in STARTS:
        add(f"{name}/mean_jsv_after_pruning", pruned[name]["jsv"])
    for (name, rate), found in finetuned.items():
        for kind, values in _accuracies(found).items():
            add(f"{name}/lr_{rate}/test_accuracy_{kind}_percent", values)
        add(f"{name}/lr_{rate}/mean_jsv_after_finetuning", found["jsv"])
    for ratio, values in zip(config.pruning.ratios, jsv.T, strict=True):
        add(f"ratio_{ratio}/mean_jsv_after_pruning", values)
    return summary
