"""Every method once: exact bits on the cube task, and trainability on images.

Stages: the dense networks; for each method, its masks and its bits; one sweep that measures and
trains under all masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.criteria_map.config import Settings
from experiments.mask_information import cube
from nopr import information, spectra, surgery, trees
from nopr.lab import choosing, methods, records, settings, training
from nopr.typing import Masks, Params


class Setting(NamedTuple):
    """Everything the stages need, made once."""

    asked: Settings
    choice: choosing.Choice
    cube: cube.Task

    @property
    def task(self) -> training.Task:
        """The network on images."""
        return self.choice.task


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Runs all stages."""
    setting = _setting(settings.read(Settings, config))
    names = setting.asked.methods
    dense = run.stage("dense", partial(_train_dense, setting), finite=True)
    cases = {}
    for name in names:
        found = run.stage(f"masks/{name}", partial(_masks, setting, name, dense["params"]))
        cases[name] = _case(setting, name, found, dense["params"])
    trained = _sweep(setting, cases, run)
    bits = {name: _bits(setting, name, run) for name in names}
    return {
        "dense": _without_params(dense),
        "trained": {name: _without_params(found) for name, found in trained.items()},
        "bits": bits,
        "entropy_bits": setting.cube.data.entropy_bits,
        "cube_weights": setting.cube.size,
        "weights": setting.choice.problem.size,
        "widths": setting.choice.problem.widths,
        "epochs": setting.task.epochs,
        "images": training.counted(setting.task.images),
    }


def _setting(asked: Settings) -> Setting:
    task = training.task(
        asked.data,
        asked.training,
        widths=asked.network.widths,
        initialization=asked.network.initialization,
        seed=asked.seed,
        seeds=asked.seeds,
    )
    choice = choosing.choice(
        task, asked.pruning, densities=(asked.pruning.density,), block=asked.block
    )
    return Setting(asked, choice, cube.task(asked.information, where=trees.is_prunable))


# --- Images --------------------------------------------------------------------------------------


def _measure(
    apply: Any, layers: tuple[str, ...], start: Params, end: Params, masks: Masks, shared: Any
) -> dict[str, Any]:
    del end
    values = spectra.singular_values(apply, start, shared["probe"])
    return {
        "mean_singular_value": jnp.mean(values),
        "spread_of_singular_values": jnp.std(values),
        "effective": surgery.effective_count(masks, layers),
    }


def _sweep(
    setting: Setting, cases: Mapping[Any, Any], run: records.Run | None = None
) -> dict[Any, dict[str, Any]]:
    network = setting.task.network
    probe = setting.task.images.train.images[: setting.asked.measuring.inputs]
    return training.sweep(
        setting.task,
        cases,
        run,
        tune=training.tuning(setting.task, partial(_measure, network.apply, network.layers)),
        shared={"probe": jnp.asarray(probe)},
        block=setting.asked.block,
    )


def _train_dense(setting: Setting) -> dict[str, Any]:
    params = setting.task.initial
    cases = {"dense": {"params": params, "masks": jax.vmap(trees.full_masks)(params)}}
    return _sweep(setting, cases)["dense"]


def _masks(setting: Setting, name: str, dense: Params) -> dict[str, np.ndarray]:
    """Masks, {path: [seeds, ...]}."""
    choice = setting.choice
    if name in settings.WHOLE_UNITS:
        choice = choice._replace(densities=(_unit_density(setting),))
    found = trees.by_path(choosing.masks(choice, name, dense), "masks")
    return {path: np.asarray(leaf)[:, 0] for path, leaf in found.items()}


def _unit_density(setting: Setting) -> float:
    """The density of units whose kept weights are nearest to those of the other methods."""
    inputs, *hidden, outputs = setting.choice.problem.widths
    asked = setting.asked.pruning.density

    def distance(density: float) -> float:
        widths = (inputs, *methods.kept_units(hidden, density), outputs)
        kept = sum(a * b for a, b in itertools.pairwise(widths))
        return abs(kept - asked * setting.choice.problem.size)

    return min((k / 1000 for k in range(1, 1001)), key=distance)


def _case(setting: Setting, name: str, kept: dict[str, np.ndarray], dense: Params) -> Any:
    like = setting.choice.problem.like
    masks = jax.tree.unflatten(jax.tree.structure(like), [kept[p] for p in trees.paths(like)])
    trained = name in methods.AFTER_TRAINING
    params = jax.tree.map(jnp.asarray, dense) if trained else setting.task.initial
    return {"params": params, "masks": masks}


def _without_params(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "params"}


# --- The cube ------------------------------------------------------------------------------------


def _bits(setting: Setting, name: str, run: records.Run) -> dict[str, np.ndarray]:
    """Exact bits and kept weights on the cube, [initializations]."""
    asked, task = setting.asked, setting.cube
    kept, rounds = asked.information.kept, asked.pruning.rounds
    counts: Any = [methods.plan(name, kept / task.size, task.problem, rounds=rounds)]
    if name == "imp":  # one weight at a time
        counts = range(task.size - 1, kept - 1, -1)
    algorithm = cube.with_counts(name, task, counts, rounds=rounds)

    def measure(index: int) -> dict[str, np.ndarray]:
        found: Any = information.exact(
            algorithm,
            task.data.datasets,
            weights=task.data.weights,
            levels=True,
            check=False,
            batching=task.batching,
            key=jax.random.fold_in(jax.random.key(asked.seed), index),
        )
        return {"bits": np.asarray(found.bits)[-1], "kept": np.asarray(found.kept)[..., -1].max()}

    rows = [
        run.stage(f"information/{name}/{index}", partial(measure, index), finite=True)
        for index in range(asked.information.initializations)
    ]
    return {key: np.stack([row[key] for row in rows]) for key in ("bits", "kept")}
