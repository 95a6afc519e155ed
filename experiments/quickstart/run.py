"""The main job: every pruner at every density on a real dataset, and what the masks know.

Stages: the dense networks; the masks; one sweep that finetunes and measures every (method,
density, seed); exact information on the cube task.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.mask_information import cube
from experiments.quickstart.config import Settings
from nopr import isometry, spectra, surgery, trees
from nopr.lab import choosing, methods, records, settings, training
from nopr.typing import Masks, Params


class Job(NamedTuple):
    """One row of the result: a method at a density, repaired or not."""

    method: str
    density: float
    repaired: bool = False

    @property
    def name(self) -> str:
        """The job's name in metrics and the summary."""
        return f"{self.method}/density_{self.density:g}" + ("/orthp" if self.repaired else "")


class Setting(NamedTuple):
    """Everything the stages need, made once."""

    asked: Settings
    choice: choosing.Choice
    tune: Any

    @property
    def task(self) -> training.Task:
        """The network and its data."""
        return self.choice.task

    @property
    def problem(self) -> methods.Problem:
        """Its description for the pruners."""
        return self.choice.problem


class Outcome(NamedTuple):
    """Results of the main job; their arrays have a leading axis of seeds.

    Attributes:
      task: Network that was pruned, and its data.
      problem: Its description for the pruners.
      dense: Result of the dense network.
      found: Result of every job.
      cube: Cube task.
      bits: By method, `bits` [initializations, levels] and `pruned` weights [levels].
    """

    task: training.Task
    problem: methods.Problem
    dense: Mapping[str, Any]
    found: Mapping[Job, Mapping[str, Any]]
    cube: cube.Task
    bits: Mapping[Any, Mapping[str, np.ndarray]]


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> Outcome:
    """Runs all stages."""
    asked = settings.read(Settings, config)
    task, setting = cube.task(asked.information), _setting(asked)
    dense = run.stage("dense", partial(_train_dense, setting), finite=True)
    kept = {
        name: run.stage(f"masks/{name}", partial(choose_masks, setting, name, dense["params"]))
        for name in asked.methods
    }
    jobs = {job.name: job for job in _jobs(asked)}
    cases = {name: _case(setting, job, kept, dense["params"]) for name, job in jobs.items()}
    found = _sweep(setting, cases, run)
    bits = {name: _information(asked, task, name, run) for name in asked.methods}
    tuned = {job: found[name] for name, job in jobs.items()}
    return Outcome(setting.task, setting.problem, dense, tuned, task, bits)


def _jobs(asked: Settings) -> list[Job]:
    jobs = [Job(name, density) for name in asked.methods for density in asked.pruning.densities]
    if "units_after" in asked.methods:
        jobs.append(Job("units_after", asked.repaired_density, repaired=True))
    return jobs


def _setting(asked: Settings) -> Setting:
    task = training.task(
        asked.data,
        asked.training,
        widths=asked.network.widths,
        initialization=asked.network.initialization,
        seed=asked.seed,
        seeds=asked.seeds,
    )
    pruning = asked.pruning
    choice = choosing.choice(task, pruning, densities=pruning.densities, block=asked.block)
    problem = choice.problem
    least = min(asked.pruning.densities)
    if round(least * problem.size) < 1:
        raise ValueError(
            f"`pruning.densities` must leave one of {problem.size:,} weights, got {least}."
        )
    return Setting(asked, choice, training.tuning(task, _measure(task)))


def _measure(task: training.Task) -> training.Measure:
    """Singular values before and after training, and the weights on a path."""
    singular_values = partial(spectra.singular_values, task.network.apply)

    def measure(start: Params, end: Params, masks: Masks, shared: Any) -> dict[str, Any]:
        return {
            "before": singular_values(start, shared["probe"]),
            "after": singular_values(end, shared["probe"]),
            "effective": surgery.effective_count(masks, task.network.layers),
        }

    return measure


# --- Training ------------------------------------------------------------------------------------


def _sweep(
    setting: Setting, cases: dict[str, Any], run: records.Run | None = None
) -> dict[str, dict[str, Any]]:
    probe = setting.task.images.train.images[: setting.asked.measuring.inputs]
    return training.sweep(
        setting.task,
        cases,
        run,
        tune=setting.tune,
        shared={"probe": jnp.asarray(probe)},
        block=setting.asked.block,
        name="finetuning" if run else "dense",
    )


def _train_dense(setting: Setting) -> dict[str, Any]:
    params = setting.task.initial
    cases = {"dense": {"params": params, "masks": jax.vmap(trees.full_masks)(params)}}
    return _sweep(setting, cases)["dense"]


def _case(setting: Setting, job: Job, kept: Mapping[Any, Any], dense: Params) -> dict[str, Any]:
    """Params and masks of one job, stacked over seeds."""
    level = setting.asked.pruning.densities.index(job.density)
    mask = jax.tree.map(lambda leaf: leaf[:, level], _masks_like(setting, kept[job.method]))
    trained = job.method in methods.AFTER_TRAINING
    params = jax.tree.map(jnp.asarray, dense) if trained else setting.task.initial
    if job.repaired:
        repair = partial(isometry.orthogonalize, gain=setting.asked.repair.gain)
        params = jax.vmap(repair)(params, mask)
    return {"params": params, "masks": mask}


# --- Masks ---------------------------------------------------------------------------------------


def choose_masks(setting: Setting, name: str, dense: Params) -> dict[str, Any]:
    """Masks of all seeds and densities, {path: [seeds, densities, ...]}."""
    found = choosing.masks(setting.choice, name, dense)
    return dict(zip(trees.paths(found), map(np.asarray, jax.tree.leaves(found)), strict=True))


def _masks_like(setting: Setting, stored: dict[str, Any]) -> Masks:
    """Stored masks as a tree like the params."""
    like = setting.problem.like
    leaves = [stored[path] for path in trees.paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# --- Information ---------------------------------------------------------------------------------


def _information(
    asked: Settings, task: cube.Task, name: str, run: records.Run
) -> dict[str, np.ndarray]:
    """Exact bits of a method on the cube task, [initializations, levels]."""
    pruned = cube.pruned_counts(name, task, range(1, task.size))
    algorithm = cube.algorithm(name, task, pruned, rounds=asked.pruning.rounds)

    def measure(index: int) -> dict[str, np.ndarray]:
        key = jax.random.fold_in(jax.random.key(asked.seed), index)
        return cube.measure(algorithm, task, check=index < asked.information.checked, key=key)

    chosen = asked.information
    count = chosen.imp_initializations if name == "imp" else chosen.initializations
    rows = [
        run.stage(f"information/{name}/{index}", partial(measure, index), finite=True)["bits"]
        for index in range(count)
    ]
    return {"bits": np.stack(rows), "pruned": np.array(pruned)}
