"""What the main job found, as tables, CSV rows, metrics and summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import cube, methods
from nopr.lab import records, report, tables

MEASURED = {
    "test_accuracy_percent": ("test_accuracy", 100.0),
    "selected_test_accuracy_percent": ("selected_test_accuracy", 100.0),
    "kept_weights": ("kept", 1.0),
    "effective_weights": ("effective", 1.0),
    "mean_singular_value_pruned": ("before", 1.0),
    "mean_singular_value_finetuned": ("after", 1.0),
}
"""What the summary gives of each run: where it is in a result, and its unit."""

_REPAIRED = ("last", "before", "after")


class Job(NamedTuple):
    """One row of the result: a method at a density, repaired or not."""

    method: str
    density: float
    repaired: bool = False

    @property
    def name(self) -> str:
        """For metrics and the summary."""
        return f"{self.method}/density_{self.density:g}" + ("/orthp" if self.repaired else "")


DENSE = Job("dense", 1.0)
"""The dense network as a row."""


class Outcome(NamedTuple):
    """What the main job found; the arrays of a result have a leading axis of seeds.

    Attributes:
      config: What was asked.
      problem: The network that was pruned.
      examples: How many examples are for what, in words.
      probes: Inputs on which Jacobians were taken.
      dense: The result of the dense network.
      found: The result of every job.
      task: The cube task.
      bits: By method, `bits` [initialisations, levels] and `pruned` weights [levels].
    """

    config: ConfigDict
    problem: methods.Problem
    probes: int
    examples: str
    dense: Mapping[str, Any]
    found: Mapping[Job, Mapping[str, Any]]
    task: cube.Task
    bits: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs."""
        return self.problem.widths

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """Every result by name, the dense network first."""
        return {"dense": self.dense} | {job.name: result for job, result in self.found.items()}


def with_defaults(config: ConfigDict) -> ConfigDict:
    """The config with its open fields filled in."""
    config = config.copy_and_resolve_references()
    if config.repair.density is None:
        config.repair.density = float(config.pruning.densities[0])
    return config


def accuracy_table(outcome: Outcome) -> report.Table:
    """A row a method and density; OrthP beside the whole units that it repairs."""
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
    nothing = tables.Missing("There is nothing to repair.")
    rows = [
        {
            "method": "dense",
            "density": 1.0,
            "epochs": epochs(outcome, DENSE),
            **_cells(outcome.dense),
            **_orthp_cells(nothing),
        }
    ]
    for job, result in outcome.found.items():
        if not job.repaired:
            other = outcome.found.get(job._replace(repaired=True))
            repaired = tables.Missing(_why_no_repair(outcome, job)) if other is None else other
            rows.append(
                {
                    "method": methods.TITLES[job.method],
                    "density": job.density,
                    "epochs": epochs(outcome, job),
                    **_cells(result),
                    **_orthp_cells(repaired),
                }
            )
    net = f"{'-'.join(map(str, outcome.widths))} ReLU net"
    caption = (
        f"{outcome.config.data.name}, {net}, {outcome.problem.size:,} prunable weights, "
        f"n = {outcome.config.seeds} seeds: mean and 95% interval over seeds; "
        f"{outcome.examples}"
    )
    return report.Table(rows, columns, caption, "method")


def epochs(outcome: Outcome, job: Job) -> int:
    """Training epochs behind a result, those that chose its mask included."""
    each, pruning = np.shape(outcome.dense["loss"])[1], outcome.config.pruning
    chosen = methods.trainings(
        job.method, job.density, densities=pruning.densities, removal=pruning.imp_removal
    )
    return each * (1 + chosen)


def _cells(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "last": interval(result, "test_accuracy", 100),
        "selected": interval(result, "selected_test_accuracy", 100),
        "kept": _count(result["kept"]),
        "effective": _count(result["effective"]),
        "before": interval(result, "before"),
        "after": interval(result, "after"),
    }


def _orthp_cells(repaired: Mapping[str, Any] | tables.Missing) -> dict[str, Any]:
    if isinstance(repaired, tables.Missing):
        return dict.fromkeys((f"orthp_{key}" for key in _REPAIRED), repaired)
    cells = _cells(repaired)
    return {f"orthp_{key}": cells[key] for key in _REPAIRED}


def _why_no_repair(outcome: Outcome, job: Job) -> str:
    if job.method != "units_after":
        return "OrthP orthogonalises whole units; these masks remove single weights."
    config, classes = outcome.config, outcome.widths[-1]
    shown = f"OrthP is shown at density {config.repair.density:g}."
    others = [d for d in config.pruning.densities if d != config.repair.density]
    kept = {d: methods.kept_units(config.network.widths, d) for d in others}
    narrow = {d: units for d, units in kept.items() if min(units) < classes}
    if job.density not in narrow:
        return shown
    left = "; ".join(f"{d:g} leaves {'-'.join(map(str, units))}" for d, units in narrow.items())
    return (
        f"{shown} Elsewhere ({left} hidden units) layers narrower than the {classes} outputs "
        "leave singular values of 0, which no orthogonalisation mends."
    )


def _count(values: np.ndarray) -> Any:
    """One number where all seeds agree."""
    same = len(set(values.tolist())) == 1
    return int(values[0]) if same else tables.mean_interval(values)


def interval(result: Mapping[str, Any], key: str, scale: float = 1.0) -> tables.Interval:
    """Over seeds; arrays are first averaged within a seed."""
    values = np.asarray(result[key], np.float64)
    return tables.mean_interval(scale * values.reshape(len(values), -1).mean(axis=1))


def bits_table(outcome: Outcome) -> report.Table:
    """Exact bits, a row a method."""
    config, task = outcome.config.information, outcome.task
    shown = [k for k in (3, 5, 10, 15, 18, 20) if k < task.size]
    columns = [tables.Column("method", "method")]
    columns += [tables.Column(str(k), f"{k} pruned", 2) for k in shown]
    columns.append(tables.Column("n", "initialisations", 0))
    why = tables.Missing(f"A unit of the cube net takes {config.dimension + 2} weights with it.")
    rows = []
    for name, found in in_order(outcome.bits):
        pruned, values = found["pruned"].tolist(), found["bits"]
        row = {
            str(k): tables.mean_interval(values[:, pruned.index(k)]) if k in pruned else why
            for k in shown
        }
        rows.append({"method": methods.TITLES[name], **row, "n": len(values)})
    caption = (
        f"Exact mask information on the cube task, bits by weights pruned (of {task.size}); "
        f"mean and 95% interval; ceiling H(D) = {task.data.entropy_bits:.2f} bits; "
        f"H(m | D) = 0 checked on the first {config.checked} of each"
    )
    return report.Table(rows, columns, caption)


def initializations(config: ConfigDict, name: str) -> int:
    """On how many initialisations the information of a method is computed."""
    chosen = config.information
    return chosen.imp_initializations if name == "imp" else chosen.initializations


def in_order(bits: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries in the order in which methods are shown."""
    return ((name, bits[name]) for name in methods.TITLES if name in bits)


def csv_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row a method, density and seed."""
    results = {DENSE: outcome.dense, **outcome.found}
    return [
        {
            "method": job.method,
            "density": job.density,
            "orthp": int(job.repaired),
            "seed": seed,
            "training_epochs": epochs(outcome, job),
            "test_accuracy": float(result["test_accuracy"][seed]),
            "selected_test_accuracy": float(result["selected_test_accuracy"][seed]),
            "best_epoch": int(result["best_epoch"][seed]),
            "kept_weights": int(result["kept"][seed]),
            "effective_weights": int(result["effective"][seed]),
            "mean_singular_value_pruned": float(result["before"][seed].mean()),
            "mean_singular_value_finetuned": float(result["after"][seed].mean()),
        }
        for job, result in results.items()
        for seed in range(len(result["kept"]))
    ]


def record_metrics(outcome: Outcome, run: records.Run) -> None:
    """Records losses and validation accuracies, means over seeds, epoch by epoch."""
    for name, result in outcome.results.items():
        for split, key in (("train", "loss"), ("validation", "validation_accuracy")):
            for epoch, value in enumerate(np.asarray(result[key]).mean(axis=0)):
                run.metric(epoch, split, f"{name}/{key.removeprefix('validation_')}", value)


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The flat summary: means, and half widths of their intervals where there are any."""
    summary: dict[str, Any] = {
        "data": outcome.config.data.name,
        "seeds": outcome.config.seeds,
        "prunable_weights": outcome.problem.size,
        "dataset_entropy_bits": outcome.task.data.entropy_bits,
    }

    def add(name: str, found: tables.Interval) -> None:
        summary[name] = found.mean
        if found.half_width is not None:
            summary[f"{name}_half_width"] = found.half_width

    for name, result in outcome.results.items():
        for quantity, (key, scale) in MEASURED.items():
            add(f"{name}/{quantity}", interval(result, key, scale))
    for name, found in outcome.bits.items():
        for level, pruned in enumerate(found["pruned"].tolist()):
            bits = tables.mean_interval(found["bits"][:, level])
            add(f"cube/{name}/pruned_{pruned}/bits", bits)
    return summary
