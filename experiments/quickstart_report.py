"""Tables, figures, summary and page of the main job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import methods, report, tables
from nopr import plots, records

VOCABULARY = {
    "density": "Kept over prunable weights; of units where whole units are pruned. Biases are not "
    "prunable here.",
    "kept, effective": "Weights that the mask keeps, and those of them that lie on a path from an "
    "input to an output; the others do nothing.",
    "mean singular value": "Mean over inputs and classes of the singular values of the Jacobian of "
    "the logits with respect to the input. Near 1 a network passes signals and gradients through "
    "unchanged (dynamical isometry).",
    "OrthP": "After whole units are removed and before finetuning, every kernel is replaced by one "
    "with orthogonal rows or columns (Gram-Schmidt, the filters in their order).",
    "mask information": "I(m; D | init): how many bits the mask knows of the dataset it was chosen "
    "on. On the cube task every dataset can be pruned on, so it is computed exactly; its ceiling "
    "is H(D), the entropy of the dataset.",
    "interval": "Mean ± half width of the 95% interval, Student's t over the seeds.",
}


def write(
    config: ConfigDict,
    run: records.Run,
    setting: Any,
    dense: Mapping[str, Any],
    found: Mapping[Any, Mapping[str, Any]],
    bits: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """Prints the tables, writes figures, CSVs and report; returns the summary."""
    columns, rows = _accuracy_table(config, setting, dense, found)
    bit_columns, bit_rows = _bits_table(config, bits)
    ceiling = _ceiling(bits)
    size = f"{'-'.join(map(str, _widths(setting)))} ReLU net, {setting.size:,} prunable weights"
    title = f"{config.data.name}, {size}, n = {config.seeds} seeds: mean and 95% interval"
    bits_title = (
        f"Exact mask information on the cube task, bits by weights pruned (of "
        f"{_any(bits)['weights']}); n = {config.information.initializations} initialisations; "
        f"ceiling H(D) = {ceiling:.2f} bits"
    )
    text = tables.aligned(rows, columns, title=title, group_by="method")
    run.show_table(
        text + "\n\n" + tables.aligned(bit_rows, bit_columns, title=bits_title, group_by=None)
    )
    records.write_csv(run.directory / "results.csv", _csv_rows(found, dense))
    _record_metrics(run, dense, found)
    figures = _draw(config, run, setting, dense, found, bits)
    _write_page(config, run, title, (columns, rows), bits_title, (bit_columns, bit_rows), figures)
    print("Figures:", *(str(path) for path in figures.values()), sep="\n  ", flush=True)
    return _summary(config, setting, dense, found, bits)


# --- Tables ------------------------------------------------------------------------------------


def _accuracy_table(
    config: ConfigDict, setting: Any, dense: Mapping[str, Any], found: Mapping[Any, Any]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    columns = [
        tables.Column("method", "method"),
        tables.Column("density", "density", 2),
        tables.Column("last", "test acc, %\nlast epoch"),
        tables.Column("selected", "test acc, %\nselected"),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("effective", "effective\nweights", 0),
        tables.Column("before", "mean sv\npruned", 3),
        tables.Column("after", "mean sv\nfinetuned", 2),
        tables.Column("orthp_last", "OrthP:\ntest acc, %"),
        tables.Column("orthp_before", "mean sv\npruned", 3),
        tables.Column("orthp_after", "mean sv\nfinetuned", 2),
    ]
    repaired = {(job.method, job.density): r for job, r in found.items() if job.repaired}
    rows = [{"method": "dense", "density": 1.0, **_cells(dense)}]
    none = tables.Missing("There is nothing to repair.")
    rows[0] |= dict.fromkeys(("orthp_last", "orthp_before", "orthp_after"), none)
    rows[0]["before"] = tables.interval_text(_interval(dense, "before"), 3)
    for job, result in found.items():
        if job.repaired:
            continue
        row = {"method": methods.TITLES[job.method], "density": job.density, **_cells(result)}
        other = repaired.get((job.method, job.density))
        if other is None:
            why = tables.Missing(_why_no_repair(config, setting, job))
            row |= dict.fromkeys(("orthp_last", "orthp_before", "orthp_after"), why)
        else:
            cells = _cells(other)
            row |= {f"orthp_{key}": cells[key] for key in ("last", "before", "after")}
        rows.append(row)
    return columns, rows


def _why_no_repair(config: ConfigDict, setting: Any, job: Any) -> str:
    if job.method != "units_after":
        return "OrthP orthogonalises whole units; these masks remove single weights."
    classes = _widths(setting)[-1]
    narrow = [d for d in config.pruning.densities if d != config.repair.density]
    units = "; ".join(
        f"{d:g} leaves {'-'.join(str(round(d * w)) for w in config.network.widths)}" for d in narrow
    )
    return (
        f"OrthP is shown at density {config.repair.density:g}. Elsewhere ({units} hidden units) "
        f"layers narrower than the {classes} outputs leave singular values of 0, which no "
        "orthogonalisation mends."
    )


def _cells(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = np.asarray(result["kept"])
    effective = np.asarray(result["effective"])
    return {
        "last": _interval(result, "test_accuracy", 100),
        "selected": _interval(result, "selected_test_accuracy", 100),
        "kept": _count(kept),
        "effective": _count(effective),
        "before": _interval(result, "before"),
        "after": _interval(result, "after"),
    }


def _count(values: np.ndarray) -> Any:
    same = len(set(values.tolist())) == 1
    return int(values[0]) if same else tables.mean_interval(values)


def _interval(result: Mapping[str, Any], key: str, scale: float = 1.0) -> tables.Interval:
    """Over seeds; arrays are first averaged within a seed."""
    values = np.asarray(result[key], np.float64)
    return tables.mean_interval(scale * values.reshape(len(values), -1).mean(axis=1))


def _bits_table(
    config: ConfigDict, bits: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    shown = [k for k in (3, 5, 10, 15, 18, 20) if k < int(_any(bits)["weights"])]
    columns = [tables.Column("method", "method")]
    columns += [tables.Column(str(k), f"{k} pruned", 2) for k in shown]
    columns.append(tables.Column("peak", "highest mean", 2))
    per_unit = config.information.dimension + 2
    rows = []
    for name in _in_order(bits):
        pruned = bits[name]["pruned"].tolist()
        values = bits[name]["bits"]
        why = tables.Missing(f"A unit of the cube net takes {per_unit} weights with it.")
        row = {
            str(k): tables.mean_interval(values[:, pruned.index(k)]) if k in pruned else why
            for k in shown
        }
        peak = tables.mean_interval(values[:, values.mean(axis=0).argmax()])
        rows.append({"method": methods.TITLES[name], **row, "peak": peak})
    return columns, rows


def _in_order(names: Any) -> list[str]:
    return [name for name in methods.TITLES if name in names]


def _any(bits: Mapping[str, Any]) -> Any:
    return next(iter(bits.values()))


def _ceiling(bits: Mapping[str, Any]) -> float:
    return float(_any(bits)["ceiling_bits"])


def _widths(setting: Any) -> tuple[int, ...]:
    shapes = setting.problem.shapes
    return (shapes[0][0], *(shape[1] for shape in shapes))


def _csv_rows(found: Mapping[Any, Any], dense: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a method, density and seed."""
    named = [("dense", 1.0, False, dense)]
    named += [(job.method, job.density, job.repaired, result) for job, result in found.items()]
    return [
        {
            "method": method,
            "density": density,
            "orthp": int(repaired),
            "seed": seed,
            "test_accuracy": float(result["test_accuracy"][seed]),
            "selected_test_accuracy": float(result["selected_test_accuracy"][seed]),
            "best_epoch": int(result["best_epoch"][seed]),
            "kept_weights": int(result["kept"][seed]),
            "effective_weights": int(result["effective"][seed]),
            "mean_singular_value_pruned": float(result["before"][seed].mean()),
            "mean_singular_value_finetuned": float(result["after"][seed].mean()),
        }
        for method, density, repaired, result in named
        for seed in range(len(result["kept"]))
    ]


def _record_metrics(
    run: records.Run, dense: Mapping[str, Any], found: Mapping[Any, Mapping[str, Any]]
) -> None:
    named = {"dense": dense} | {job.name: result for job, result in found.items()}
    for name, result in named.items():
        for split, key in (("train", "loss"), ("validation", "validation_accuracy")):
            for epoch, value in enumerate(np.asarray(result[key]).mean(axis=0)):
                run.metric(epoch, split, f"{name}/{key.removeprefix('validation_')}", value)


# --- Figures -----------------------------------------------------------------------------------


def _draw(
    config: ConfigDict,
    run: records.Run,
    setting: Any,
    dense: Mapping[str, Any],
    found: Mapping[Any, Any],
    bits: Mapping[str, Any],
) -> dict[str, Any]:
    order = tuple(methods.TITLES.values())
    rows = _accuracy_rows(config, setting, dense, found)
    figure = plots.accuracy_against_density(
        rows,
        order=order,
        title="Trained masks keep the accuracy that masks at initialisation lose",
    )
    saved = {"accuracy": plots.save(figure, rows, run.figures, "accuracy_against_density")}
    groups = _spectra(config, dense, found)
    if groups:
        repaired = [name for name in groups if "OrthP" in name]
        note = f"{config.measuring.inputs} training images, {config.seeds} seeds"
        figure = plots.singular_values(
            groups,
            highlight=repaired,
            note=note,
            title="Removing units shrinks the singular values; OrthP brings them back",
        )
        spread = plots.singular_value_rows(groups)
        saved["singular values"] = plots.save(figure, spread, run.figures, "singular_values")
    curves = _curves(bits)
    figure = plots.bits_against_pruned(
        curves,
        _ceiling(bits),
        weights=int(_any(bits)["weights"]),
        n=config.information.initializations,
        order=order,
        title="Masks found by training know their data; data-free masks know nothing",
    )
    saved["bits"] = plots.save(figure, plots.curve_rows(curves), run.figures, "bits_against_pruned")
    return {name: paths.png for name, paths in saved.items()}


def _accuracy_rows(
    config: ConfigDict, setting: Any, dense: Mapping[str, Any], found: Mapping[Any, Any]
) -> list[dict[str, Any]]:
    """Whole units stand at the share of weights that they keep."""
    rows = []
    named = [("dense", dense)] + [
        (methods.TITLES[job.method], result) for job, result in found.items() if not job.repaired
    ]
    for name, result in named:
        mean, half, n = _interval(result, "test_accuracy", 100)
        share = float(np.asarray(result["kept"]).mean()) / setting.size
        rows.append({"method": name, "density": share, "mean": mean, "half_width": half, "n": n})
    return rows


def _spectra(
    config: ConfigDict, dense: Mapping[str, Any], found: Mapping[Any, Any]
) -> dict[str, Any]:
    """The unit-pruned network with and without OrthP, and the dense one."""
    groups: dict[str, Any] = {}
    share = f"{config.repair.density:.0%} of the units"
    for job, result in found.items():
        if job.method == "units_after" and job.density == config.repair.density:
            name = f"{share} + OrthP" if job.repaired else share
            groups[f"{name}, pruned"] = result["before"]
            groups[f"{name}, finetuned"] = result["after"]
    return {"dense, trained": dense["after"], **groups} if groups else {}


def _curves(bits: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    curves = {}
    for name in _in_order(bits):
        mean, half, _ = tables.mean_interval(bits[name]["bits"])
        curve = {"pruned": bits[name]["pruned"].tolist(), "mean": mean}
        if half is not None:
            curve |= {"low": mean - half, "high": mean + half}
        curves[methods.TITLES[name]] = curve
    return curves


# --- Page and summary --------------------------------------------------------------------------


def _write_page(
    config: ConfigDict,
    run: records.Run,
    title: str,
    main: tuple[Any, Any],
    bits_title: str,
    information: tuple[Any, Any],
    figures: Mapping[str, Any],
) -> None:
    reading = {
        "accuracy": (
            "Higher is better, and further right is sparser. The dashed line is the dense network. "
            "Whole units stand where the weights that they keep put them.",
            "Test accuracy against the share of weights kept, one line a method.",
        ),
        "singular values": (
            "Singular values of the input-output Jacobian over all inputs and seeds. Values near 1 "
            "mean that signals pass; OrthP puts them back before any training.",
            "Distributions of singular values, dense, pruned, repaired and finetuned.",
        ),
        "bits": (
            "Exact bits, averaged over initialisations. No mask can know more than H(D), nor than "
            "the number of masks with so many weights allows.",
            "Mask information in bits against the number of pruned weights.",
        ),
    }
    drawn = {name: report.Figure(path, *reading[name]) for name, path in figures.items()}
    trainable = [drawn[name] for name in ("accuracy", "singular values") if name in drawn]
    settings = report.Details("Configuration", str(config))
    environment = report.Details(
        "Environment", (run.directory / "environment.json").read_text().strip()
    )
    report.build(
        run.report,
        title="Pruning: what a mask knows, and how trainable it is",
        lead=f"{len(config.methods)} ways to choose a mask, on {config.data.name}: how accurate is "
        "what they leave, are its weights a good place to start, and what does the mask know of the data it was "
        "chosen on?",
        sections=[
            report.Section(
                "Accuracy and trainability",
                [
                    "Selected: the epoch of the best validation accuracy. No number was chosen on "
                    "test data.",
                    report.Table(main[1], main[0], title, "method"),
                    *trainable,
                ],
            ),
            report.Section(
                "What the mask knows",
                [report.Table(information[1], information[0], bits_title), drawn["bits"]],
            ),
            report.Section("Vocabulary", [report.Terms(VOCABULARY)]),
            report.Section("Again", [report.Command("make demo"), settings, environment]),
        ],
    )


def _summary(
    config: ConfigDict,
    setting: Any,
    dense: Mapping[str, Any],
    found: Mapping[Any, Any],
    bits: Mapping[str, Any],
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "data": config.data.name,
        "seeds": config.seeds,
        "prunable_weights": setting.size,
        "dataset_entropy_bits": _ceiling(bits),
    }

    def add(name: str, interval: tables.Interval) -> None:
        summary[name] = interval.mean
        if interval.half_width is not None:
            summary[f"{name}_half_width"] = interval.half_width

    named = {"dense": dense} | {job.name: result for job, result in found.items()}
    for name, result in named.items():
        add(f"{name}/test_accuracy_percent", _interval(result, "test_accuracy", 100))
        add(
            f"{name}/selected_test_accuracy_percent",
            _interval(result, "selected_test_accuracy", 100),
        )
        add(f"{name}/kept_weights", _interval(result, "kept"))
        add(f"{name}/effective_weights", _interval(result, "effective"))
        add(f"{name}/mean_singular_value_pruned", _interval(result, "before"))
        add(f"{name}/mean_singular_value_finetuned", _interval(result, "after"))
    for name, result in bits.items():
        for level, pruned in enumerate(result["pruned"].tolist()):
            interval = tables.mean_interval(result["bits"][:, level])
            add(f"cube/{name}/pruned_{pruned}/bits", interval)
    return summary
