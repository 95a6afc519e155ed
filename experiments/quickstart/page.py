"""Figures and page of the main job."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import methods
from experiments.quickstart import config as standard
from experiments.quickstart import outcomes as quickstart_results
from experiments.quickstart.outcomes import Outcome, with_defaults
from nopr.lab import plots, records, report, tables

BUDGETS = (
    "Training epochs: all that a row took, choosing its mask included; methods are not compared at "
    "equal training. Pruned at initialisation, a network trains once. After training, it starts "
    "from the trained weights and trains again, by the same schedule from its start. IMP trains "
    "once a round, each time from the initial weights, and once more under the mask it ends with."
)
VOCABULARY = {
    "density": "Kept over prunable weights; of units where whole units are pruned. Biases are not "
    "prunable here.",
    "kept, effective": "Weights that the mask keeps, and those of them that lie on a path from an "
    "input to an output; the others do nothing.",
    "mean singular value": "Mean over inputs and classes of the singular values of the Jacobian of "
    "the logits with respect to the input, at the start and at the end of training under the mask. "
    "Where all of them are near 1 a network passes signals and gradients through unchanged "
    "(dynamical isometry); a mean alone does not show that.",
    "OrthP": "After whole units are removed and before finetuning, every kernel is replaced by one "
    "with orthogonal rows or columns (Gram-Schmidt, the filters in their order).",
    "mask information": "I(m; D | init): how many bits the mask knows of the dataset it was chosen "
    "on. On the cube task every dataset can be pruned on, so it is computed exactly; its ceiling "
    "is H(D), the entropy of the dataset.",
    "SNIP, GraSP, SynFlow": "Scores at initialisation: |w dL/dw|; w (Hg), what the gradient's norm "
    "needs; and |w dR/dw| with R the flow through the network of absolute weights, which sees no "
    "data.",
    "IMP": "Iterative magnitude pruning: train, prune, rewind to the initial weights, repeat.",
    "ERK": "Random masks whose layers keep shares proportional to (in + out) / (in * out).",
    "cube task": "Six different corners of the cube {-1, 1}^3 with labels -1 or 1; a 3-4-1 ReLU "
    "net with all 21 parameters prunable, trained on the squared error by gradient descent. There "
    "are 1,792 such datasets, and every pruner is run on each.",
    "interval": "Mean ± half width of the 95% interval, Student's t over the seeds.",
}
READING = {
    "accuracy": (
        "Higher is better, and further right is sparser. The dashed line is the dense network. "
        "Whole units stand where the weights that they keep put them.",
        "Test accuracy against the share of weights kept, one line a method.",
    ),
    "singular values": (
        "Singular values of the input-output Jacobian over all inputs and seeds. Values near 1 "
        "mean that signals pass. OrthP acts right after pruning, before any finetuning.",
        "Distributions of singular values, dense, pruned, repaired and finetuned.",
    ),
    "bits": (
        "Exact bits, averaged over initialisations. No mask can know more than H(D), nor than "
        "the number of masks with so many weights allows.",
        "Mask information in bits against the number of pruned weights.",
    ),
}
"""By figure: its caption, and what it shows for those who cannot see it."""


def write(outcome: Outcome, run: records.Run) -> dict[str, Any]:
    """Prints the tables, writes figures, CSVs and report; returns the summary."""
    accuracy, bits = (
        quickstart_results.accuracy_table(outcome),
        quickstart_results.bits_table(outcome),
    )
    text = [
        tables.aligned(table.rows, table.columns, title=table.caption, group_by=table.group_by)
        for table in (accuracy, bits)
    ]
    text[0] += "\n" + textwrap.fill(BUDGETS, 100)
    run.show_table("\n\n".join(text))
    records.write_csv(run.directory / "results.csv", quickstart_results.csv_rows(outcome))
    quickstart_results.record_metrics(outcome, run)
    figures = _draw(outcome, run.figures)
    _write_page(outcome, run, accuracy, bits, figures)
    print("Figures:", *figures.values(), sep="\n  ", flush=True)
    return quickstart_results.summarize(outcome)


# --- Figures -----------------------------------------------------------------------------------


_ROUNDING = 1e-4  # float32 puts a singular value of 0 anywhere below this, beside others near 10


def _draw(outcome: Outcome, folder: Path) -> dict[str, Path]:
    """The figures by their names in `READING`."""
    drawn = {"accuracy": _draw_accuracy(outcome, folder)}
    groups = _spectra(outcome)
    if groups:
        drawn["singular values"] = _draw_spectra(outcome, groups, folder)
    return drawn | {"bits": _draw_bits(outcome, folder)}


def _draw_accuracy(outcome: Outcome, folder: Path) -> Path:
    rows = _accuracy_rows(outcome)
    figure = plots.accuracy_against_density(
        rows,
        order=tuple(methods.TITLES.values()),
        title=f"Accuracy kept as weights are removed: {outcome.config.data.name}",
    )
    return plots.save(figure, rows, folder, "accuracy_against_density").png


def _draw_spectra(outcome: Outcome, groups: Mapping[str, Any], folder: Path) -> Path:
    figure = plots.singular_values(
        groups,
        highlight=[name for name in groups if "OrthP" in name],
        note=f"{outcome.probes} training images, {outcome.config.seeds} seeds",
        title="Singular values of the input-output Jacobian after removing units",
        floor=_ROUNDING,
    )
    rows = plots.singular_value_rows(groups, floor=_ROUNDING)
    return plots.save(figure, rows, folder, "singular_values").png


def _draw_bits(outcome: Outcome, folder: Path) -> Path:
    curves = _curves(outcome)
    figure = plots.bits_against_pruned(
        curves,
        outcome.task.data.entropy_bits,
        weights=outcome.task.size,
        title=_bits_title(outcome),
        order=tuple(methods.TITLES.values()),
    )
    return plots.save(figure, plots.curve_rows(curves), folder, "bits_against_pruned").png


def _bits_title(outcome: Outcome) -> str:
    chosen = outcome.config.information
    n = f"n = {chosen.initializations} initialisations"
    if "imp" in outcome.bits and chosen.imp_initializations != chosen.initializations:
        n += f", IMP {chosen.imp_initializations}"
    return f"What the mask knows of its data ({n})"


def _accuracy_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Whole units stand at the share of weights that they keep."""
    named = [("dense", outcome.dense)] + [
        (methods.TITLES[job.method], result)
        for job, result in outcome.found.items()
        if not job.repaired
    ]
    rows = []
    for name, result in named:
        mean, half, n = quickstart_results.interval(result, "test_accuracy", 100)
        share = float(np.asarray(result["kept"]).mean()) / outcome.problem.size
        rows.append({"method": name, "density": share, "mean": mean, "half_width": half, "n": n})
    return rows


def _spectra(outcome: Outcome) -> dict[str, Any]:
    """The unit-pruned network with and without OrthP, and the dense one."""
    groups: dict[str, Any] = {}
    density = outcome.config.repair.density
    for job, result in outcome.found.items():
        if job.method == "units_after" and job.density == density:
            name = f"{density:.0%} of the units" + (" + OrthP" if job.repaired else "")
            groups[f"{name}, pruned"] = result["before"]
            groups[f"{name}, finetuned"] = result["after"]
    return {"dense, trained": outcome.dense["after"], **groups} if groups else {}


def _curves(outcome: Outcome) -> dict[str, Any]:
    curves = {}
    for name, found in quickstart_results.in_order(outcome.bits):
        mean, half, _ = tables.mean_interval(found["bits"])
        curve = {"pruned": found["pruned"].tolist(), "mean": mean}
        if half is not None:
            curve |= {"low": mean - half, "high": mean + half}
        curves[methods.TITLES[name]] = curve
    return curves


# --- Page --------------------------------------------------------------------------------------


def _write_page(
    outcome: Outcome,
    run: records.Run,
    accuracy: report.Table,
    bits: report.Table,
    figures: Mapping[str, Path],
) -> None:
    config = outcome.config
    drawn = {name: report.Figure(path, *READING[name]) for name, path in figures.items()}
    environment = (run.directory / "environment.json").read_text().strip()
    trainability = [
        "Selected: the epoch of the best validation accuracy. No number was chosen on test data.",
        accuracy,
        BUDGETS,
        *(drawn[name] for name in ("accuracy", "singular values") if name in drawn),
    ]
    again = [
        report.Command(command(config)),
        report.Details("Configuration", str(config)),
        report.Details("Environment", environment),
    ]
    report.build(
        run.report,
        title="Pruning: what a mask knows, and how trainable it is",
        lead=f"Ways to choose a mask, compared on {config.data.name}: how accurate is what they "
        "leave, are its weights a good place to start, and what does the mask know of the data it "
        "was chosen on?",
        sections=[
            report.Section("Accuracy and trainability", trainability),
            report.Section("What the mask knows", [bits, drawn["bits"]]),
            report.Section("Vocabulary", [report.Terms(VOCABULARY)]),
            report.Section("Again", again),
        ],
    )


def command(config: ConfigDict) -> str:
    """The command line that runs this config."""
    usual = _flat(with_defaults(standard.get_config()).to_dict())
    changes = [
        f"--config.{key}={value}"
        for key, value in _flat(with_defaults(config).to_dict()).items()
        if key not in usual or usual[key] != value
    ]
    if not changes:
        return "make demo"
    program = ["python", "-m", "experiments.launch"]
    return shlex.join([*program, "--config=experiments/quickstart/config.py", *changes])


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        inside = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat
