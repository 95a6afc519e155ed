"""Exact bits against pruned weights on the cube task, for every method at every setting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.mask_information import cube
from experiments.mask_information.config import Cube, Settings
from nopr.lab import methods, progress, records, settings

BASE = "as configured"


class Setting(NamedTuple):
    """One choice of what the paper leaves open."""

    name: str
    task: Cube
    methods: tuple[str, ...]
    initializations: int


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Measures every method at every setting; each (setting, method, key) is a stage."""
    asked = settings.read(Settings, config)
    chosen = list(variations(asked))
    tasks = {setting.name: cube.task(setting.task) for setting in chosen}
    bits: dict[str, dict[str, np.ndarray]] = {}
    total = sum(len(setting.methods) * setting.initializations for setting in chosen)
    with progress.bar(total=total, unit="law") as bar:
        for setting in chosen:
            task = tasks[setting.name]
            bits[setting.name] = {
                name: _measure(asked, setting, task, name, run, bar) for name in setting.methods
            }
    return {"bits": bits, "task": tasks[BASE]}


def variations(asked: Settings) -> Iterator[Setting]:
    """The task as configured, then with one thing changed at a time."""
    yield Setting(BASE, asked.task, asked.methods, asked.initializations)
    fewer = min(asked.initializations, asked.sensitivity.initializations)
    trained = [name for name in asked.methods if name in ("imp", "magnitude_after")]
    scored = [name for name in asked.methods if name in ("snip", "grasp")]
    for field in ("initialization", "learning_rate", "steps"):
        # Scores depend on the data and the initialization, not on the training.
        names = (*trained, *scored) if field == "initialization" else tuple(trained)
        for value in getattr(asked.sensitivity, field):
            changed = replace(asked.task, **{field: value})
            yield Setting(f"{field.replace('_', ' ')} {value}", changed, names, fewer)


def slug(name: str) -> str:
    """A name in the form used by stages and the summary."""
    return re.sub(r"[^\w./-]+", "_", name)


def _measure(
    asked: Settings, setting: Setting, task: cube.Task, name: str, run: records.Run, bar: Any
) -> np.ndarray:
    """Bits, [initializations, levels]."""
    pruned = tuple(range(1, asked.pruning.most + 1))
    algorithm = cube.algorithm(name, task, pruned, rounds=asked.pruning.rounds)
    rows = []
    for index in range(setting.initializations):
        key = jax.random.fold_in(jax.random.key(asked.seed), index)
        check = index < asked.checked
        bar.set_postfix_str(f"{setting.name}, {methods.TITLES[name]}")
        found = run.stage(
            slug(f"{setting.name}/{name}/{index}"),
            lambda key=key, check=check: cube.measure(algorithm, task, check=check, key=key),
            finite=True,
        )
        rows.append(found["bits"])
        bar.update()
    return np.stack(rows)
