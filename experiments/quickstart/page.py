"""Tables, figures, page, CSV, metrics and summary of the main job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.quickstart.config import Settings
from experiments.quickstart.run import Job, Outcome
from nopr.lab import methods, page, plots, records, report, settings, tables, training

MEASURED = {
    "test_accuracy_percent": ("test_accuracy", 100.0),
    "selected_test_accuracy_percent": ("selected_test_accuracy", 100.0),
    "kept_weights": ("kept", 1.0),
    "effective_weights": ("effective", 1.0),
    "mean_singular_value_pruned": ("before", 1.0),
    "mean_singular_value_finetuned": ("after", 1.0),
}
"""Quantities in the summary of each run: their key in a result, and their scale."""

DENSE = Job("dense", 1.0)
"""The dense network as a row."""

_ROUNDING = 1e-4  # float32 gives a singular value of 0 anywhere below this, beside some near 10

BUDGETS = (
    "Training epochs: the total for a row, including the choice of its mask; methods are not "
    "compared at equal training. A network pruned at initialization trains once. One pruned after "
    "training starts from the trained weights and trains again, by the same schedule from its "
    "start. IMP trains once per round, each time from the initial weights, and once more under its "
    "final mask."
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
    "mask information": "I(m; D | init): how many bits the mask knows about the dataset it was "
    "chosen on. On the cube task every dataset can be pruned on, so it is computed exactly; its "
    "ceiling is H(D), the entropy of the dataset.",
    "SNIP, GraSP, SynFlow": "Scores at initialization: |w dL/dw|; w (Hg), what the gradient's norm "
    "needs; and |w dR/dw| with R the flow through the network of absolute weights, which sees no "
    "data.",
    "IMP": "Iterative magnitude pruning: train, prune, rewind to the initial weights, repeat.",
    "ERK": "Random masks whose layers keep shares proportional to (in + out) / (in * out).",
    "cube task": "Six different corners of the cube {-1, 1}^3 with labels -1 or 1; a 3-4-1 ReLU "
    "net with all 21 parameters prunable, trained on the squared error by gradient descent. There "
    "are 1,792 such datasets, and every pruner is run on each.",
    "interval": "Mean ± half width of the 95% interval, Student's t over the seeds.",
}


def show(outcome: Outcome, config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Prints the tables and writes figures, CSVs and the page; returns the summary."""
    asked = settings.read(Settings, config)
    records.write_csv(run.directory / "results.csv", csv_rows(asked, outcome))
    for job, result in _all(outcome).items():
        name = job.name if job != DENSE else "dense"
        page.record(run, "train", f"{name}/loss", result["loss"])
        page.record(run, "validation", f"{name}/accuracy", result["validation_accuracy"])
    selected = (
        "Selected: the epoch of the best validation accuracy. No number was chosen on test data."
    )
    trainability = [selected, accuracy_table(asked, outcome), _accuracy_figure(asked, outcome, run)]
    if "units_after" in asked.methods:
        trainability.append(_spectra_figure(asked, outcome, run))
    page.write(
        run,
        asked,
        title="Pruning: what a mask knows, and how trainable it is",
        lead=f"Ways to choose a mask, compared on {asked.data.name}: how accurate is what they "
        "leave, are its weights a good place to start, and what does the mask know about "
        "the data it was chosen on?",
        sections=[
            report.Section("Accuracy and trainability", trainability),
            report.Section(
                "What the mask knows",
                [bits_table(asked, outcome), _bits_figure(asked, outcome, run)],
            ),
            report.Section("Vocabulary", [report.Terms(VOCABULARY)]),
        ],
    )
    figures = sorted(run.figures.glob("*.png"))
    print("Figures:", *figures, sep="\n  ", flush=True)
    return _summary(asked, outcome)


def _all(outcome: Outcome) -> dict[Job, Mapping[str, Any]]:
    return {DENSE: outcome.dense, **outcome.found}


# --- Tables --------------------------------------------------------------------------------------


def accuracy_table(asked: Settings, outcome: Outcome) -> report.Table:
    """One row per method and density; OrthP beside the whole units that it repairs."""
    columns = [
        tables.Column("method", "method"),
        tables.Column("density", "density", 2),
        tables.Column("epochs", "training\nepochs", 0),
        tables.Column("last", "test acc, %\nlast epoch"),
        tables.Column("selected", "test acc, %\nselected"),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("effective", "effective\nweights", 0),
        tables.Column("before", "mean sv\nat start", 3),
        tables.Column("after", "mean sv\nat end", 2),
        tables.Column("orthp_last", "OrthP:\ntest acc, %"),
        tables.Column("orthp_before", "mean sv\nat start", 3),
        tables.Column("orthp_after", "mean sv\nat end", 2),
    ]
    rows = []
    for job, result in _all(outcome).items():
        if job.repaired:
            continue
        other = outcome.found.get(job._replace(repaired=True))
        repaired = tables.Missing(_why_no_repair(asked, outcome, job))
        cells = (
            dict.fromkeys(("last", "before", "after"), repaired) if other is None else _cells(other)
        )
        rows.append(
            {
                "method": methods.TITLES.get(job.method, job.method),
                "density": job.density,
                "epochs": epochs(asked, outcome, job),
                **_cells(result),
                **{f"orthp_{key}": cells[key] for key in ("last", "before", "after")},
            }
        )
    n = asked.seeds
    seeds = page.statistic(n, f"n = {n} seeds: mean and 95% interval over seeds")
    net = f"{'-'.join(map(str, outcome.problem.widths))} ReLU net"
    caption = (
        f"{asked.data.name}, {net}, {outcome.problem.size:,} prunable weights, {seeds}; "
        f"one split into {training.counted(outcome.task.images)}"
    )
    return report.Table(rows, columns, caption, "method", BUDGETS)


def epochs(asked: Settings, outcome: Outcome, job: Job) -> int:
    """Training epochs behind a result, those that chose its mask included."""
    pruning = asked.pruning
    chosen = methods.trainings(
        job.method, job.density, densities=pruning.densities, removal=pruning.imp_removal
    )
    return outcome.task.epochs * (1 + chosen)


def _cells(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "last": page.over_seeds(result["test_accuracy"], scale=100),
        "selected": page.over_seeds(result["selected_test_accuracy"], scale=100),
        "kept": _count(result["kept"]),
        "effective": _count(result["effective"]),
        "before": page.over_seeds(result["before"]),
        "after": page.over_seeds(result["after"]),
    }


def _count(values: np.ndarray) -> Any:
    """One number where all seeds agree."""
    return int(values[0]) if len(set(values.tolist())) == 1 else tables.mean_interval(values)


def _why_no_repair(asked: Settings, outcome: Outcome, job: Job) -> str:
    if job == DENSE:
        return "There is nothing to repair."
    if job.method != "units_after":
        return "OrthP orthogonalizes whole units; these masks remove single weights."
    classes = outcome.problem.widths[-1]
    shown = f"OrthP is shown at density {asked.repaired_density:g}."
    others = [d for d in asked.pruning.densities if d != asked.repaired_density]
    kept = {d: methods.kept_units(asked.network.widths, d) for d in others}
    narrow = {d: units for d, units in kept.items() if min(units) < classes}
    if job.density not in narrow:
        return shown
    left = "; ".join(f"{d:g} leaves {'-'.join(map(str, units))}" for d, units in narrow.items())
    return (
        f"{shown} Elsewhere ({left} hidden units) layers narrower than the {classes} outputs "
        "leave singular values of 0, which no orthogonalization repairs."
    )


def bits_table(asked: Settings, outcome: Outcome) -> report.Table:
    """Exact bits, one row per method."""
    chosen, task = asked.information, outcome.cube
    shown = [k for k in (3, 5, 10, 15, 18, 20) if k < task.size]
    columns = [tables.Column("method", "method")]
    columns += [tables.Column(str(k), f"{k} pruned", 2) for k in shown]
    columns.append(tables.Column("n", "initializations", 0))
    why = tables.Missing(f"A unit of the cube net takes {chosen.dimension + 2} weights with it.")
    rows = []
    for name, found in _bits_in_order(outcome).items():
        pruned, values = found["pruned"].tolist(), found["bits"]
        row = {
            str(k): page.over_seeds(values[:, pruned.index(k)]) if k in pruned else why
            for k in shown
        }
        rows.append({"method": name, **row, "n": len(values)})
    most = max(len(found["bits"]) for found in outcome.bits.values())
    interval = page.statistic(most, "mean and 95% interval", unit="initialization")
    caption = (
        f"Exact mask information on the cube task, bits by weights pruned (of {task.size}); "
        f"{interval}; ceiling H(D) = {task.data.entropy_bits:.2f} bits; computed on "
        f"{chosen.batching}; H(m | D) = 0 checked on the first {chosen.checked} of each"
    )
    return report.Table(rows, columns, caption)


def _bits_in_order(outcome: Outcome) -> dict[str, Mapping[str, np.ndarray]]:
    return {title: outcome.bits[k] for k, title in methods.TITLES.items() if k in outcome.bits}


# --- Figures -------------------------------------------------------------------------------------


def _accuracy_figure(asked: Settings, outcome: Outcome, run: records.Run) -> report.Figure:
    rows = []
    for job, result in _all(outcome).items():
        if not job.repaired:
            # Whole units are placed at the share of weights that they keep.
            share = float(np.asarray(result["kept"]).mean()) / outcome.problem.size
            mean, half, n = page.over_seeds(result["test_accuracy"], scale=100)
            row = {"method": methods.TITLES.get(job.method, job.method), "density": share}
            rows.append({**row, "mean": mean, "half_width": half, "n": n})
    drawn = plots.accuracy_against_density(
        rows,
        order=tuple(methods.TITLES.values()),
        title=f"Accuracy kept as weights are removed: {asked.data.name}",
    )
    return page.figure(
        run,
        "accuracy_against_density",
        drawn,
        rows,
        caption="Higher is better, and further right is sparser. The dashed line is the dense "
        "network. Whole units are placed by their share of weights kept.",
        alt="Test accuracy against the share of weights kept, one line per method.",
    )


def _spectra_figure(asked: Settings, outcome: Outcome, run: records.Run) -> report.Figure:
    """The unit-pruned network with and without OrthP, and the dense one."""
    density = asked.repaired_density
    groups: dict[str, Any] = {"dense, trained": outcome.dense["after"]}
    for job, result in outcome.found.items():
        if job.method == "units_after" and job.density == density:
            name = f"{density:.0%} of the units" + (" + OrthP" if job.repaired else "")
            groups[f"{name}, pruned"] = result["before"]
            groups[f"{name}, finetuned"] = result["after"]
    probes = np.shape(outcome.dense["after"])[1]
    drawn = plots.singular_values(
        groups,
        highlight=[name for name in groups if "OrthP" in name],
        note=f"{probes} training images, {asked.seeds} seeds",
        title="Singular values of the input-output Jacobian after removing units",
        floor=_ROUNDING,
    )
    return page.figure(
        run,
        "singular_values",
        drawn,
        plots.singular_value_rows(groups, floor=_ROUNDING),
        caption="Singular values of the input-output Jacobian over all inputs and seeds. Values "
        "near 1 mean that signals pass. OrthP acts right after pruning, before any finetuning.",
        alt="Distributions of singular values, dense, pruned, repaired and finetuned.",
    )


def _bits_figure(asked: Settings, outcome: Outcome, run: records.Run) -> report.Figure:
    chosen = asked.information
    curves = {
        name: page.curve(found["pruned"].tolist(), found["bits"], key="pruned")
        for name, found in _bits_in_order(outcome).items()
    }
    n = f"n = {chosen.initializations} initializations"
    if "imp" in outcome.bits and chosen.imp_initializations != chosen.initializations:
        n += f", IMP {chosen.imp_initializations}"
    drawn = plots.bits_against_pruned(
        curves,
        outcome.cube.data.entropy_bits,
        weights=outcome.cube.size,
        title=f"What the mask knows of its data ({n})",
        order=tuple(methods.TITLES.values()),
    )
    return page.figure(
        run,
        "bits_against_pruned",
        drawn,
        plots.curve_rows(curves),
        caption="Exact bits, averaged over initializations. No mask can know more than H(D), nor "
        "than the number of masks with so many weights allows.",
        alt="Mask information in bits against the number of pruned weights.",
    )


# --- Numbers -------------------------------------------------------------------------------------


def csv_rows(asked: Settings, outcome: Outcome) -> list[dict[str, Any]]:
    """One row per method, density and seed."""
    return [
        {
            "method": job.method,
            "density": job.density,
            "orthp": int(job.repaired),
            "seed": seed,
            "training_epochs": epochs(asked, outcome, job),
            "test_accuracy": float(result["test_accuracy"][seed]),
            "selected_test_accuracy": float(result["selected_test_accuracy"][seed]),
            "best_epoch": int(result["best_epoch"][seed]),
            "kept_weights": int(result["kept"][seed]),
            "effective_weights": int(result["effective"][seed]),
            "mean_singular_value_pruned": float(result["before"][seed].mean()),
            "mean_singular_value_finetuned": float(result["after"][seed].mean()),
        }
        for job, result in _all(outcome).items()
        for seed in range(asked.seeds)
    ]


def _summary(asked: Settings, outcome: Outcome) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": asked.data.name,
        "seeds": asked.seeds,
        "prunable_weights": outcome.problem.size,
        "dataset_entropy_bits": outcome.cube.data.entropy_bits,
    }
    for job, result in _all(outcome).items():
        name = job.name if job != DENSE else "dense"
        for quantity, (key, scale) in MEASURED.items():
            values[f"{name}/{quantity}"] = page.over_seeds(result[key], scale=scale)
    for name, found in outcome.bits.items():
        for level, pruned in enumerate(found["pruned"].tolist()):
            values[f"cube/{name}/pruned_{pruned}/bits"] = found["bits"][:, level]
    return page.summarize(values)
