"""Tables, figures, page, CSV and summary of pruning at initialization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.pruning_at_init.config import Settings
from experiments.pruning_at_init.run import BRANCHES
from nopr.lab import comparisons, methods, page, plots, records, report, settings, tables

CONTROLS = BRANCHES[1:]
LEVEL = 0.05
"""Below it, a corrected p-value is a finding."""

LEAD = (
    "Masks chosen before, or after, training, and four controls of each: if a control trains as "
    "well as the chosen mask, the method found no more than what the control preserves."
)
VOCABULARY = {
    "chosen": "The mask as the method chose it, on the weights that it was chosen on; for IMP on "
    "the initial weights.",
    "shuffled": "The same mask, shuffled within each layer: it preserves the counts of the layers.",
    "redrawn": "The same mask on newly drawn initial weights.",
    "inverted": "The mask that the negated scores choose.",
    "random": "A random mask with the same count in each layer, drawn from the key alone.",
    "density": "Kept over prunable weights; biases are not prunable.",
    "effective": "Weights on a path from an input to an output, over prunable weights.",
    "interval": "Mean ± half width of the 95% interval, Student's t over the seeds.",
    "corrected": "By Holm's method over all methods and controls of this page.",
}


class Compared(NamedTuple):
    """The chosen masks against one of their controls."""

    method: str
    control: str
    difference: comparisons.Difference
    corrected: float


def show(results: Mapping[str, Any], config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the tables and writes figures, CSVs and the page; returns the summary."""
    asked = settings.read(Settings, config)
    records.write_csv(run.directory / "results.csv", csv_rows(results["found"]))
    compared = compare(results["found"])
    records.write_csv(run.directory / "controls.csv", comparison_rows(compared))
    sections = [
        report.Section(
            "Do the controls hurt?",
            [_controls_table(asked, compared), _controls_figure(asked, compared, run)],
        ),
        report.Section(
            "Accuracy", [_accuracy_table(asked, results), _accuracy_figure(asked, results, run)]
        ),
        report.Section("What the masks leave", [_structure_table(asked, results)]),
        report.Section("Vocabulary", [report.Terms(VOCABULARY)]),
    ]
    page.write(
        run,
        asked,
        title=f"Which weights, or only how many in each layer? {asked.data.name}",
        lead=LEAD,
        sections=sections,
    )
    return _summary(results, compared)


# --- Comparisons ---------------------------------------------------------------------------------


def compare(found: Mapping[str, Any]) -> list[Compared]:
    """Every method against every control, by accuracies averaged over the densities of a seed."""
    pairs = [(method, control) for method in found for control in CONTROLS]
    differences = [
        comparisons.paired(_mean_accuracy(found[m]["chosen"]), _mean_accuracy(found[m][control]))
        for m, control in pairs
    ]
    corrected = comparisons.holm([difference.p_value for difference in differences])
    return [
        Compared(*pair, difference, float(p))
        for pair, difference, p in zip(pairs, differences, corrected, strict=True)
    ]


def _mean_accuracy(levels: Mapping[float, Any]) -> np.ndarray:
    """Test accuracy of the last epoch in %, averaged over densities, [seeds]."""
    return np.mean([_accuracy(found) for found in levels.values()], axis=0)


def _accuracy(found: Mapping[str, Any]) -> np.ndarray:
    return 100 * np.asarray(found["test_accuracy"], np.float64)


def _in_order(names: Sequence[str]) -> list[str]:
    return [name for name in methods.TITLES if name in names]


def _verdict(compared: Sequence[Compared], sign: int) -> str:
    """The controls that are worse (sign 1) or better (-1) than the chosen masks."""
    names = [
        one.control
        for one in compared
        if one.corrected < LEVEL and sign * one.difference.interval.mean > 0
    ]
    return ", ".join(names) or "none"


# --- Tables --------------------------------------------------------------------------------------


def _caption(asked: Settings, results: Mapping[str, Any], what: str) -> str:
    widths = "-".join(map(str, results["widths"]))
    seeds = page.statistic(asked.seeds, f"mean and 95% interval over n = {asked.seeds} seeds")
    return (
        f"{what}: {asked.data.name}, {widths} ReLU net, {results['weights']:,} prunable weights, "
        f"{results['epochs']} epochs under the mask; {seeds}; {results['images']}"
    )


def _controls_table(asked: Settings, compared: Sequence[Compared]) -> report.Table:
    columns = [
        tables.Column("method", "method"),
        *(tables.Column(name, f"chosen -\n{name}", 2) for name in CONTROLS),
        tables.Column("hurt", "controls that hurt"),
        tables.Column("help", "controls that help"),
    ]
    rows = []
    for name in _in_order([one.method for one in compared]):
        own = [one for one in compared if one.method == name]
        rows.append(
            {
                "method": methods.TITLES[name],
                **{one.control: one.difference.interval for one in own},
                "hurt": _verdict(own, 1),
                "help": _verdict(own, -1),
            }
        )
    count = len(asked.pruning.densities)
    caption = (
        f"Test accuracy of the chosen masks minus that of a control, in points, {asked.data.name}: "
        f"averaged over {count} densities within a seed, "
        + page.statistic(asked.seeds, f"then mean and 95% interval over n = {asked.seeds} seeds")
        + f". A control hurts or helps where the paired t-test, corrected by Holm's method over "
        f"all {len(compared)} comparisons, has p < {LEVEL}"
    )
    return report.Table(rows, columns, caption)


def _accuracy_table(asked: Settings, results: Mapping[str, Any]) -> report.Table:
    densities = asked.pruning.densities
    columns = [
        tables.Column("method", "method"),
        *(tables.Column(f"{d:g}", f"density\n{d:.2g}") for d in densities),
    ]
    rows = [
        {
            "method": methods.TITLES[name],
            **{
                f"{d:g}": page.over_seeds(_accuracy(results["found"][name]["chosen"][d]))
                for d in densities
            },
        }
        for name in _in_order(list(results["found"]))
    ]
    dense = page.over_seeds(_accuracy(results["dense"]))
    caption = _caption(asked, results, "Test accuracy of the last epoch in %, chosen masks")
    return report.Table(
        rows, columns, f"{caption}; the dense networks reach {tables.interval_text(dense, 1)}"
    )


def _structure_table(asked: Settings, results: Mapping[str, Any]) -> report.Table:
    least = min(asked.pruning.densities)
    columns = [
        tables.Column("method", "method"),
        tables.Column("branch", "branch"),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("effective", "effective\nweights", 0),
        tables.Column("dead_units", "dead\nunits", 1),
        tables.Column("collapsed_layers", "collapsed\nlayers", 1),
        tables.Column("disconnected_inputs", "disconnected\ninputs", 1),
        tables.Column("disconnected_outputs", "disconnected\noutputs", 1),
    ]
    rows = [
        {
            "method": methods.TITLES[name],
            "branch": branch,
            **{
                column.key: _count(results["found"][name][branch][least][column.key])
                for column in columns[2:]
            },
        }
        for name in _in_order(list(results["found"]))
        for branch in ("chosen", "shuffled", "inverted")
    ]
    caption = _caption(asked, results, f"What masks of density {least:.2g} leave of the network")
    return report.Table(rows, columns, caption, "method")


def _count(values: np.ndarray) -> Any:
    """One number where all seeds agree."""
    return int(values[0]) if len(set(np.asarray(values).tolist())) == 1 else page.over_seeds(values)


# --- Figures -------------------------------------------------------------------------------------


def _accuracy_figure(
    asked: Settings, results: Mapping[str, Any], run: records.Run
) -> report.Figure:
    panels, rows = {}, []
    for name in _in_order(list(results["found"])):
        panels[methods.TITLES[name]] = curves = {}
        for branch, levels in results["found"][name].items():
            values = np.stack([_accuracy(found) for found in levels.values()], axis=1)
            curves[branch] = page.curve([100 * density for density in levels], values, key="x")
            rows += [
                {"method": name, "branch": branch, **row}
                for row in plots.curve_rows({branch: curves[branch]})
            ]
    drawn = plots.panels(
        panels,
        title=f"Chosen masks and their controls: {asked.data.name}",
        subtitle=page.statistic(asked.seeds, f"mean and 95% interval, n = {asked.seeds} seeds"),
        x_label="weights kept, %",
        y_label="test accuracy, %",
        level=float(_accuracy(results["dense"]).mean()),
        level_name="dense",
        y_range=(0, 100),
    )
    return page.figure(
        run,
        "accuracy_of_controls",
        drawn,
        rows,
        caption="One panel per method; where shuffled and redrawn lie on chosen, the mask knows no "
        "more than how many weights each layer keeps. The dashed line is the dense network.",
        alt="Test accuracy against the share of weights kept, five lines in a panel per method.",
    )


def _controls_figure(
    asked: Settings, compared: Sequence[Compared], run: records.Run
) -> report.Figure:
    order = _in_order([one.method for one in compared])
    columns = {
        control: {
            methods.TITLES[one.method]: one.difference.interval
            for name in order
            for one in compared
            if (one.method, one.control) == (name, control)
        }
        for control in CONTROLS
    }
    drawn = plots.differences(
        {f"chosen - {control}": column for control, column in columns.items()},
        title=f"What a control costs: {asked.data.name}",
        subtitle=page.statistic(asked.seeds, f"mean and 95% interval, n = {asked.seeds} seeds"),
        x_label="points of test accuracy",
    )
    return page.figure(
        run,
        "differences",
        drawn,
        comparison_rows(compared),
        caption="Right of the line, the control trains to a lower accuracy than the chosen mask.",
        alt="Differences of accuracy with intervals, one row per method and a panel per control.",
    )


# --- Numbers -------------------------------------------------------------------------------------


def comparison_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row per method and control."""
    return [
        {
            "method": one.method,
            "control": one.control,
            "difference_points": one.difference.interval.mean,
            "half_width_points": one.difference.interval.half_width,
            "n": one.difference.interval.n,
            "p_value": one.difference.p_value,
            "corrected_p_value": one.corrected,
        }
        for one in compared
    ]


def csv_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method, branch, density and seed."""
    return [
        {
            "method": method,
            "branch": branch,
            "density": density,
            "seed": seed,
            "test_accuracy": float(values["test_accuracy"][seed]),
            "selected_test_accuracy": float(values["selected_test_accuracy"][seed]),
            "best_epoch": int(values["best_epoch"][seed]),
            "kept_weights": int(values["kept"][seed]),
            "effective_weights": int(values["effective"][seed]),
            "dead_units": int(values["dead_units"][seed]),
            "collapsed_layers": int(values["collapsed_layers"][seed]),
            "disconnected_inputs": int(values["disconnected_inputs"][seed]),
            "disconnected_outputs": int(values["disconnected_outputs"][seed]),
        }
        for method, branches in found.items()
        for branch, levels in branches.items()
        for density, values in levels.items()
        for seed in range(len(values["test_accuracy"]))
    ]


def _summary(results: Mapping[str, Any], compared: Sequence[Compared]) -> dict[str, Any]:
    values: dict[str, Any] = {"dense/test_accuracy_percent": _accuracy(results["dense"])}
    values |= {
        f"{method}/{branch}/density_{density:g}/test_accuracy_percent": _accuracy(found)
        for method, branches in results["found"].items()
        for branch, levels in branches.items()
        for density, found in levels.items()
    }
    for one in compared:
        name = f"{one.method}/chosen_minus_{one.control}"
        values[f"{name}_points"] = one.difference.interval
        values[f"{name}_corrected_p_value"] = one.corrected
    return page.summarize(values)
