"""Exact bits against pruned weights on the cube task, beside the published curves."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cube, methods
from nopr.lab import plots, progress, records, report, tables

PUBLISHED = {
    # Bits read off figure 4 of arXiv:2402.01089 (regression), good to about 0.01.
    "pruned": (3, 5, 7, 9, 11, 13, 15, 17, 18, 19, 20),
    "imp": (8.25, 8.72, 8.81, 8.80, 8.55, 8.27, 7.94, 6.85, 6.15, 4.35, 3.07),
    "magnitude_after": (8.24, 8.89, 8.99, 8.98, 8.98, 8.95, 8.86, 8.56, 8.06, 6.71, 4.06),
    "snip": (3.37, 5.35, 6.48, 7.11, 7.13, 6.93, 6.29, 5.31, 4.65, 3.61, 1.97),
    "grasp": (2.29, 4.83, 6.18, 5.41, 4.73, 4.93, 4.65, 3.35, 2.81, 1.67, 1.38),
}


class Setting(NamedTuple):
    """One choice of what the paper leaves open."""

    name: str
    config: ConfigDict
    methods: tuple[str, ...]


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Measures every method at every setting; each (setting, method, key) is a stage."""
    _check(config)
    settings = list(_settings(config))
    bits: dict[str, dict[str, np.ndarray]] = {}
    total = sum(len(setting.methods) * setting.config.initializations for setting in settings)
    with progress.bar(total=total, unit="law") as bar:
        for setting in settings:
            bits[setting.name] = {
                name: _measure(setting, name, run, bar) for name in setting.methods
            }
    task = _task(config)
    base = bits["as configured"]
    columns, rows = _table(config, base)
    text = tables.aligned(rows, columns, title=_title(config, task), group_by="group")
    effect_columns, effects = _sensitivity(config, bits)
    if effects:
        text += "\n\n" + tables.aligned(
            effects, effect_columns, title=_effects_title(effects), group_by="setting"
        )
    run.show_table(text)
    _draw(config, base, task, run)
    _write_report(config, task, run, (columns, rows), (effect_columns, effects))
    return _summary(config, bits, task)


def _check(config: ConfigDict) -> None:
    methods.check(config.methods)
    if "units_after" in config.methods:
        raise ValueError(
            "`methods` must prune one weight at a time, 'units_after' does not. "
            "The main job measures it."
        )
    if config.initializations < 1:
        raise ValueError(f"`initializations` must be at least 1, got {config.initializations}.")
    if config.sensitivity.initializations < 1:
        raise ValueError(
            "`sensitivity.initializations` must be at least 1, "
            f"got {config.sensitivity.initializations}."
        )
    # Every task is built now: a bad option of the last setting would else be told after an hour.
    size = min(_task(setting.config).size for setting in _settings(config))
    if not 0 < config.pruning.most < size:
        raise ValueError(f"`pruning.most` must be from 1 to {size - 1}, got {config.pruning.most}.")


def _settings(config: ConfigDict) -> Iterator[Setting]:
    yield Setting("as configured", config, tuple(config.methods))
    trained = [name for name in config.methods if name in ("imp", "magnitude_after")]
    scored = [name for name in config.methods if name in ("snip", "grasp")]
    for name in config.sensitivity.initialization:
        changed = _changed(config, "network", "initialization", name)
        yield Setting(f"initialisation {name}", changed, (*trained, *scored))
    for field, label in (("learning_rate", "learning rate"), ("steps", "steps")):
        for value in config.sensitivity[field]:
            changed = _changed(config, "training", field, value)
            yield Setting(f"{label} {value}", changed, tuple(trained))


def _changed(config: ConfigDict, section: str, field: str, value: Any) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.initializations = min(config.initializations, config.sensitivity.initializations)
    try:
        changed[section][field] = value
    except TypeError as error:
        kind = type(config[section][field]).__name__
        raise ValueError(f"`sensitivity.{field}` must be of {kind}, got {value!r}.") from error
    return changed


def _slug(name: str) -> str:
    """A name as stages and the summary have it."""
    return re.sub(r"[^\w./-]+", "_", name)


def _task(config: ConfigDict) -> cube.Task:
    return cube.task(
        **config.data,
        width=config.network.width,
        **config.training,
        initialization=config.network.initialization,
    )


def _pruned(config: ConfigDict) -> tuple[int, ...]:
    return tuple(range(1, config.pruning.most + 1))


def _measure(setting: Setting, name: str, run: records.Run, bar: Any) -> np.ndarray:
    """Bits, [initialisations, levels]."""
    config, task = setting.config, _task(setting.config)
    algorithm = cube.algorithm(
        name, task, _pruned(config), synflow_rounds=config.pruning.synflow_rounds
    )
    rows = []
    for index in range(config.initializations):
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        check = index < config.checked
        bar.set_postfix_str(f"{setting.name}, {methods.TITLES[name]}")
        found = run.stage(
            _slug(f"{setting.name}/{name}/{index}"),
            lambda key=key, check=check: cube.measure(algorithm, task, check=check, key=key),
            finite=True,
        )
        rows.append(found["bits"])
        bar.update()
    return np.stack(rows)


def _title(config: ConfigDict, task: cube.Task) -> str:
    return (
        f"Exact mask information, bits (mean and 95% interval over {config.initializations} "
        f"initialisations); H(D) = {task.data.entropy_bits:.2f} bits; "
        f"{methods.checked_text(config.checked, config.initializations)}"
    )


def _table(
    config: ConfigDict, bits: Mapping[str, np.ndarray]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    shown = [k for k in PUBLISHED["pruned"] if k <= config.pruning.most]
    columns = [tables.Column("method", "method"), tables.Column("source", "")]
    columns += [tables.Column(str(k), f"{k}\npruned", 2) for k in shown]
    rows: list[dict[str, Any]] = []
    for name in _in_order(bits):
        values = bits[name]
        means = {str(k): tables.mean_interval(values[:, k - 1]) for k in shown}
        rows.append({"group": name, "method": methods.TITLES[name], "source": "ours", **means})
        if name in PUBLISHED:
            published = dict(zip(PUBLISHED["pruned"], PUBLISHED[name], strict=True))
            row = {str(k): float(published[k]) for k in shown}
            rows.append({"group": name, "method": "", "source": "published", **row})
    return columns, rows


def _sensitivity(
    config: ConfigDict, bits: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    shown = [k for k in (9, 18) if k <= config.pruning.most]
    columns = [tables.Column("setting", "setting"), tables.Column("method", "method")]
    columns += [tables.Column(str(k), f"{k} pruned", 2) for k in shown]
    columns += [tables.Column("peak", "highest mean", 2), tables.Column("at", "at pruned", 0)]
    columns.append(tables.Column("n", "initialisations", 0))
    rows = []
    if len(bits) > 1:
        # All on the same initialisations, so that a difference is of the setting alone.
        n = min(len(values) for by_method in bits.values() for values in by_method.values())
        for setting, by_method in bits.items():
            for name in _in_order(by_method):
                if name not in ("synflow", "random"):
                    values = by_method[name][:n]
                    peak = int(values.mean(axis=0).argmax())
                    row = {str(k): tables.mean_interval(values[:, k - 1]) for k in shown}
                    row["peak"] = tables.mean_interval(values[:, peak])
                    row |= {"setting": setting, "method": methods.TITLES[name]}
                    row |= {"at": peak + 1, "n": len(values)}
                    rows.append(row)
    return columns, rows


def _effects_title(effects: list[dict[str, Any]]) -> str:
    n = effects[0]["n"]
    return (
        "What the paper leaves open, one at a time; bits (mean and 95% interval over the same "
        f"n = {n} initialisations)"
    )


def _in_order(names: Container[str]) -> list[str]:
    return [name for name in methods.TITLES if name in names]


def _curves(config: ConfigDict, bits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    curves = {}
    for name in _in_order(bits):
        mean, half, _ = tables.mean_interval(bits[name])
        curve = {"pruned": _pruned(config), "mean": mean}
        if half is not None:
            curve |= {"low": mean - half, "high": mean + half}
        curves[methods.TITLES[name]] = curve
    return curves


def _draw(config: ConfigDict, bits: Mapping[str, Any], task: cube.Task, run: records.Run) -> None:
    curves = _curves(config, bits)
    published = {
        methods.TITLES[name]: {"pruned": PUBLISHED["pruned"], "mean": PUBLISHED[name]}
        for name in bits
        if name in PUBLISHED
    }
    figure = plots.bits_against_pruned(
        curves,
        task.data.entropy_bits,
        published,
        weights=task.size,
        n=config.initializations,
        title="What the mask knows of its data: exact (lines) and published (hollow)",
        order=tuple(methods.TITLES.values()),
    )
    plots.save(figure, plots.curve_rows(curves, published), run.figures, "bits_against_pruned")


def _write_report(
    config: ConfigDict, task: cube.Task, run: records.Run, main: Any, sensitivity: Any
) -> None:
    blocks: list[report.Block] = [
        f"Every dataset of the law {config.data.law!r} was pruned on: "
        f"{len(task.data.weights):,} of them, H(D) = {task.data.entropy_bits:.2f} bits. The law "
        "of the mask given the initialisation is then known, and I(m; D | init) = H(m | init) is "
        "computed, not estimated.",
        report.Table(main[1], main[0], _title(config, task), "group"),
        report.Figure(
            run.figures / "bits_against_pruned.png",
            "Lines: exact, with the 95% interval over initialisations. Hollow markers: the "
            "published plug-in estimates from 32,000 samples.",
            "Mask information in bits against the number of pruned weights, by method.",
        ),
    ]
    sections = [report.Section("Bits against pruned weights", blocks)]
    if sensitivity[1]:
        caption = _effects_title(sensitivity[1])
        table = report.Table(sensitivity[1], sensitivity[0], caption, "setting")
        sections.append(report.Section("What the paper leaves open", [table]))
    settings = report.Details("Configuration", str(config))
    sections.append(report.Section("Again", [settings]))
    report.build(
        run.report,
        title="What does a pruning mask know about its data?",
        lead="Exact mutual information of mask and data on the cube task of No Free Prune, "
        "appendix C.2, beside the published curves.",
        sections=sections,
    )


def _summary(
    config: ConfigDict, bits: Mapping[str, Mapping[str, np.ndarray]], task: cube.Task
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "datasets": len(task.data.weights),
        "dataset_entropy_bits": task.data.entropy_bits,
        "initializations": config.initializations,
    }
    for setting, by_method in bits.items():
        for name, values in by_method.items():
            for k in _pruned(config):
                mean, half, _ = tables.mean_interval(values[:, k - 1])
                prefix = _slug(f"{setting}/{name}/pruned_{k}")
                summary[f"{prefix}/bits"] = mean
                if half is not None:
                    summary[f"{prefix}/half_width_bits"] = half
    return summary
