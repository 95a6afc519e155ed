"""Every method and its four controls, trained at every density on every seed.

Stages: the dense networks; for each method, the masks of all branches, then a sweep that trains
under them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.pruning_at_init.config import Settings
from nopr import algorithms, surgery, trees
from nopr.lab import choosing, methods, records, settings, training
from nopr.typing import Algorithm, Criterion, Masks, Params

BRANCHES: tuple[str, ...] = get_args(algorithms.Branch)
"""The mask as it was chosen, then its controls."""


class Setting(NamedTuple):
    """Everything the stages need, made once."""

    asked: Settings
    choice: choosing.Choice
    tune: Any


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Runs all stages; results by method, branch and density."""
    setting = _setting(settings.read(Settings, config))
    dense = run.stage("dense", partial(_train_dense, setting), finite=True)
    found = {}
    for name in setting.asked.methods:
        kept = run.stage(f"masks/{name}", partial(choose_masks, setting, name, dense["params"]))
        found[name] = _train(setting, name, kept, dense["params"], run)
    return {
        "dense": {name: value for name, value in dense.items() if name != "params"},
        "found": found,
        "weights": setting.choice.problem.size,
        "widths": setting.choice.problem.widths,
        "epochs": setting.choice.task.epochs,
        "images": training.counted(setting.choice.task.images),
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
        task, asked.pruning, densities=asked.pruning.densities, block=asked.block
    )
    plain = training.tuning(task, partial(_measure, task.network.layers))

    def tune(case: Any, shared: Any) -> dict[str, Any]:
        found = plain(case, shared)
        del found["params"]  # a gigabyte over all cases
        return found

    return Setting(asked, choice, tune)


def _measure(
    layers: tuple[str, ...], start: Params, end: Params, masks: Masks, shared: Any
) -> dict[str, Any]:
    """What the mask leaves of the network."""
    del start, end, shared
    found = surgery.connectivity(masks, layers)
    return {
        "effective": sum(found.live.values()),
        "dead_units": sum(found.dead_units.values()),
        "collapsed_layers": sum(found.collapsed.values()),
        "disconnected_inputs": found.disconnected_inputs,
        "disconnected_outputs": found.disconnected_outputs,
    }


# --- Masks ---------------------------------------------------------------------------------------


def choose_masks(setting: Setting, name: str, dense: Params) -> dict[str, Any]:
    """The masks of every branch, seed and density, and the redrawn params.

    Returns:
      `masks`, bits {branch: {path: [seeds, densities, bytes]}}, and `redrawn`, {path: [seeds,
      ...]}.
    """
    choice = setting.choice

    def choose(case: Mapping[str, Any], data: Any) -> dict[str, Any]:
        def build(criterion: Criterion) -> Algorithm:
            return choosing.algorithm(choice, name, trained=case["params"], criterion=criterion)

        own = methods.METHODS[name].criterion(setting.choice.problem)
        every = algorithms.controls(own, build, init=setting.choice.task.network.init, levels=True)
        starts = every(data, key=case["key"])
        return {
            "masks": {branch: start.masks for branch, start in starts.items()},
            "redrawn": starts["redrawn"].params,
        }

    found = methods.over_seeds(
        name,
        choose,
        {"params": dense, "key": setting.choice.task.keys},
        shared=choice.data(name),
        block=setting.asked.block or setting.asked.seeds,
    )
    kept = {branch: _packed(found["masks"][branch]) for branch in BRANCHES}
    return {"masks": kept, "redrawn": trees.by_path(found["redrawn"], "params")}


def _packed(masks: Masks) -> dict[str, np.ndarray]:
    """Masks as bits, {path: [seeds, densities, bytes]}."""
    leaves = {path: np.asarray(leaf) for path, leaf in trees.by_path(masks, "masks").items()}
    return {path: np.packbits(m.reshape(*m.shape[:2], -1), axis=-1) for path, m in leaves.items()}


def unpacked(bits: Mapping[str, np.ndarray], like: Any) -> Masks:
    """Masks [seeds, densities, ...] from their bits, as a tree like the prunable leaves."""
    leaves = []
    for path, leaf in trees.by_path(like, "like").items():
        flat = np.unpackbits(bits[path], axis=-1, count=leaf.size).astype(bool)
        leaves.append(flat.reshape(*flat.shape[:2], *leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# --- Training ------------------------------------------------------------------------------------


def _train_dense(setting: Setting) -> dict[str, Any]:
    params = setting.choice.task.initial
    case = {"params": params, "masks": jax.vmap(trees.full_masks)(params)}
    tune = training.tuning(setting.choice.task, partial(_measure, setting.choice.problem.layers))
    block = setting.asked.block
    return training.sweep(setting.choice.task, {"dense": case}, tune=tune, block=block)["dense"]


def _train(
    setting: Setting, name: str, kept: Mapping[str, Any], dense: Params, run: records.Run
) -> dict[str, dict[float, dict[str, Any]]]:
    """Results of a method, {branch: {density: {name: [seeds, ...]}}}."""
    initial = setting.choice.task.initial
    chosen = jax.tree.map(jnp.asarray, dense) if name in methods.AFTER_TRAINING else initial
    paths = trees.paths(initial)
    redrawn = jax.tree.unflatten(
        jax.tree.structure(initial), [jnp.asarray(kept["redrawn"][path]) for path in paths]
    )
    cases = {}
    for branch in BRANCHES:
        masks = unpacked(kept["masks"][branch], setting.choice.problem.like)
        params = redrawn if branch == "redrawn" else chosen
        for level, density in enumerate(setting.asked.pruning.densities):
            mask = jax.tree.map(lambda leaf, level=level: leaf[:, level], masks)
            cases[branch, density] = {"params": params, "masks": mask}
    swept = training.sweep(
        setting.choice.task, cases, run, tune=setting.tune, block=setting.asked.block, name=name
    )
    return {
        branch: {d: swept[branch, d] for d in setting.asked.pruning.densities}
        for branch in BRANCHES
    }
