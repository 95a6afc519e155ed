"""The main job: every pruner at every density on a real data set, and what the masks know.

Stages: the dense networks; the masks; one sweep that finetunes and measures every (method,
density, seed); exact information on the cube task; tables, figures and the report.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import cube, held_out, methods
from experiments.quickstart import checks as quickstart_checks
from experiments.quickstart import page as quickstart_report
from experiments.quickstart.outcomes import Job, Outcome, initializations, with_defaults
from nopr import (
    algorithms,
    finetune,
    isometry,
    masks,
    networks,
    pruning,
    spectra,
    surgery,
    sweeps,
    trees,
)
from nopr.lab import progress, records, steps
from nopr.typing import Masks, Params, Pruner


class Setting(NamedTuple):
    """What every stage needs, made once."""

    config: ConfigDict
    network: networks.Network
    problem: methods.Problem
    keys: Any
    shared: dict[str, Any]  # the arrays that all runs read
    scoring: Any  # the examples that SNIP and GraSP score on
    trainer: Any  # `trainer(monitor=..., best_by=...) -> train`
    tune: Any


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Runs all stages, prints the tables and writes figures and report."""
    quickstart_checks.check(config)
    config = with_defaults(config)
    task = _cube_task(config)
    setting = _setting(config)
    dense = run.stage("dense", partial(_train_dense, setting), finite=True)
    kept = {
        name: run.stage(f"masks/{name}", partial(_choose_masks, setting, name, dense["params"]))
        for name in config.methods
    }
    found = _finetune(setting, _jobs(config), kept, dense["params"], run)
    bits = {name: _information(config, task, name, run) for name in config.methods}
    outcome = Outcome(
        config=config,
        problem=setting.problem,
        probes=len(setting.shared["probe"]),
        examples=_examples(setting),
        dense=dense,
        found=found,
        task=task,
        bits=bits,
    )
    return quickstart_report.write(outcome, run)


def _examples(setting: Setting) -> str:
    parts = {"train": "training", "validation": "validation", "test": "test"}
    counts = [f"{len(setting.shared[part][1]):,} {name}" for part, name in parts.items()]
    return f"one split into {', '.join(counts)} images"


def _jobs(config: ConfigDict) -> list[Job]:
    jobs = [Job(name, density) for name in config.methods for density in config.pruning.densities]
    if "units_after" in config.methods:
        jobs.append(Job("units_after", config.repair.density, repaired=True))
    return jobs


def _setting(config: ConfigDict) -> Setting:
    images = held_out.load(config)
    shape = images.train.images.shape[1:]
    network = networks.mlp(
        (*config.network.widths, images.classes),
        inputs=math.prod(shape),
        initialization=config.network.initialization,
    )
    shared = {
        "train": tuple(images.train),
        "validation": tuple(images.validation),
        "test": tuple(images.test),
        "probe": images.train.images[: config.measuring.inputs],
    }
    scoring = config.pruning.scoring_examples
    trainer = _trainer(config, network, len(images.train.labels))
    return Setting(
        config=config,
        network=network,
        problem=_problem(config, network, shape),
        keys=jax.random.split(jax.random.key(config.seed), config.seeds),
        shared=jax.tree.map(jnp.asarray, shared),
        scoring=(images.train.images[:scoring], images.train.labels[:scoring]),
        trainer=trainer,
        tune=_tuning(network, trainer),
    )


def _problem(
    config: ConfigDict, network: networks.Network, input_shape: tuple[int, ...]
) -> methods.Problem:
    apply, temperature = network.apply, config.pruning.grasp_temperature
    like = jax.eval_shape(network.init, jax.random.key(0))
    return methods.Problem(
        apply=apply,
        loss=finetune.cross_entropy(apply),
        grasp_loss=finetune.cross_entropy(apply, temperature=temperature),
        input_shape=input_shape,
        layers=network.layers,
        like=trees.select(like),
    )


# --- Training and measuring: one program for every method, density and seed --------------------


def _trainer(config: ConfigDict, network: networks.Network, examples: int) -> Any:
    """`trainer(monitor=None, best_by=None) -> train`, as the config says."""
    trainer = partial(
        finetune.trainer,
        finetune.cross_entropy(network.apply),
        _optimizer(config, examples),
        epochs=_epochs(config, examples),
        batch_size=config.training.batch_size,
    )
    trainer()  # refuses a bad option now rather than when training is traced
    return trainer


def _tuning(network: networks.Network, trainer: Any) -> Any:
    """`tune(case, shared)`: trains under masks and measures before and after."""
    evaluate = partial(finetune.evaluate, network.apply)
    singular_values = partial(spectra.singular_values, network.apply)

    def tune(case: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        def monitor(params: Params) -> dict[str, jax.Array]:
            return {"accuracy": evaluate(params, shared["validation"]).accuracy}

        start = masks.apply(case["params"], case["masks"])
        train = trainer(monitor=monitor, best_by="accuracy")
        fitted = train(start, case["masks"], shared["train"], key=case["key"])
        return {
            "params": fitted.params,
            "test_accuracy": evaluate(fitted.params, shared["test"]).accuracy,
            "selected_test_accuracy": evaluate(fitted.best_params, shared["test"]).accuracy,
            "best_epoch": fitted.best_epoch,
            "loss": fitted.history.loss,
            "validation_accuracy": fitted.history.metrics["accuracy"],
            "before": singular_values(start, shared["probe"]),
            "after": singular_values(fitted.params, shared["probe"]),
            "kept": masks.count(case["masks"]),
            "effective": surgery.effective_count(case["masks"], network.layers),
        }

    return tune


def _optimizer(config: ConfigDict, examples: int) -> optax.GradientTransformation:
    """SGD with momentum; the learning rate falls to 0 along half a cosine."""
    per_epoch = steps.per_epoch(examples, batch_size=config.training.batch_size)
    total = _epochs(config, examples) * per_epoch
    rate = optax.cosine_decay_schedule(config.training.learning_rate, total)
    return optax.chain(
        optax.add_decayed_weights(config.training.weight_decay),
        optax.sgd(rate, momentum=config.training.momentum),
    )


def _epochs(config: ConfigDict, examples: int) -> int:
    length = config.training.length or ("30ep" if config.data.name == "digits" else "3ep")
    per_epoch = steps.per_epoch(examples, batch_size=config.training.batch_size)
    epochs = steps.epochs(length, steps_per_epoch=per_epoch)
    if epochs < 1:
        raise ValueError(f"`training.length` must be at least 1ep, got {length!r}.")
    return epochs


def _initial(setting: Setting) -> Params:
    return jax.vmap(lambda key: setting.network.init(jax.random.split(key)[0]))(setting.keys)


def _train_keys(setting: Setting) -> Any:
    """The order of the batches, the same for all methods of one seed."""
    return jax.vmap(lambda key: jax.random.split(jax.random.split(key)[1])[0])(setting.keys)


def _train_dense(setting: Setting) -> dict[str, Any]:
    params, seeds = _initial(setting), setting.config.seeds
    case = {
        "params": params,
        "masks": jax.vmap(trees.full_masks)(params),
        "key": _train_keys(setting),
    }
    swept = sweeps.run(
        setting.tune, case, shared=setting.shared, block=quickstart_checks.block(setting.config)
    )
    _raise_if_failed(swept, ["dense"] * seeds, setting.config)
    return swept.values


def _finetune(
    setting: Setting,
    jobs: list[Job],
    kept: dict[str, Any],
    dense: Params,
    run: records.Run,
) -> dict[Job, dict[str, Any]]:
    """Every job on every seed, in one sweep whose blocks are stored as they finish."""
    seeds, initial = setting.config.seeds, _initial(setting)
    cases = [_case(setting, job, kept, initial, dense) for job in jobs]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *cases)
    keys = _train_keys(setting)
    together["key"] = keys[np.tile(np.arange(seeds), len(jobs))]
    run.say(f"finetuning: {len(jobs)} networks of {seeds} seeds each, stored as they finish")
    with progress.sweeping("finetuning", unit="run") as show:
        swept = sweeps.run(
            setting.tune,
            together,
            shared=setting.shared,
            block=quickstart_checks.block(setting.config),
            store=run.store("finetuning"),
            progress=show,
        )
    _raise_if_failed(swept, [job.name for job in jobs for _ in range(seeds)], setting.config)
    return {
        job: jax.tree.map(lambda leaf, i=i: leaf[i * seeds : (i + 1) * seeds], swept.values)
        for i, job in enumerate(jobs)
    }


def _raise_if_failed(swept: sweeps.Swept, names: list[str], config: ConfigDict) -> None:
    if swept.failures:
        listed = sorted({names[index] for index in swept.failures})
        raise ValueError(
            f"Training gave NaN or infinity in {len(swept.failures)} of {len(names)} runs: "
            f"{', '.join(listed[:6])}. Lower `training.learning_rate`, "
            f"{config.training.learning_rate}."
        )


def _case(
    setting: Setting, job: Job, kept: dict[str, Any], initial: Params, dense: Params
) -> dict[str, Any]:
    """Params and masks of one job, stacked over seeds."""
    level = list(setting.config.pruning.densities).index(job.density)
    mask = jax.tree.map(lambda leaf: leaf[:, level], _masks_like(setting, kept[job.method]))
    trained = job.method in methods.AFTER_TRAINING
    params = jax.tree.map(jnp.asarray, dense) if trained else initial
    if job.repaired:
        repair = partial(isometry.orthogonalize, gain=setting.config.repair.gain)
        params = jax.vmap(repair)(params, mask)
    return jax.tree.map(np.asarray, {"params": params, "masks": mask})


# --- Masks -------------------------------------------------------------------------------------


def _choose_masks(setting: Setting, name: str, dense: Params) -> dict[str, Any]:
    """Masks of all seeds and densities, {path: [seeds, densities, ...]}."""
    if name == "imp":
        found = _imp(setting)
    elif name in methods.AT_INIT:
        algorithm = algorithms.at_init(_pruner(setting, name), init=setting.network.init)
        found = methods.over_seeds(
            name,
            lambda key, batch: algorithm(batch, key=key),
            setting.keys,
            shared=setting.scoring,
            block=quickstart_checks.block(setting.config),
        )
    else:
        # The dense networks are there; `algorithms.after_training` would train them again.
        prune = _pruner(setting, name)
        found = methods.over_seeds(
            name,
            lambda case: prune(case["params"], None, key=case["key"]),
            {"params": dense, "key": setting.keys},
            block=quickstart_checks.block(setting.config),
        )
    return dict(zip(trees.paths(found), map(np.asarray, jax.tree.leaves(found)), strict=True))


def _pruner(setting: Setting, name: str) -> Pruner:
    """Masks at every density, from one scoring where the method scores once."""
    rounds, problem = setting.config.pruning.synflow_rounds, setting.problem
    each = [
        methods.plan(name, density, problem, synflow_rounds=rounds)
        for density in setting.config.pruning.densities
    ]
    return pruning.levels(methods.pruner(name, problem, synflow_rounds=rounds), np.stack(each))


def _imp(setting: Setting) -> Masks:
    """Geometric rounds that hit each density; the masks at the densities alone."""
    config = setting.config.pruning
    levels, hits = methods.imp_levels(list(config.densities), removal=config.imp_removal)
    algorithm = algorithms.imp(
        methods.pruner("imp", setting.problem, synflow_rounds=1),
        init=setting.network.init,
        train=setting.trainer(),
        counts=pruning.level_counts(setting.problem.size, levels),
        levels=True,
    )
    path = methods.over_seeds(
        "imp",
        lambda key, data: algorithm(data, key=key),
        setting.keys,
        shared=setting.shared["train"],
        block=quickstart_checks.block(setting.config),
    )
    return jax.tree.map(lambda leaf: leaf[:, np.array(hits)], path)


def _masks_like(setting: Setting, stored: dict[str, Any]) -> Masks:
    """Stored masks as a tree like the params."""
    like = trees.select(jax.eval_shape(setting.network.init, jax.random.key(0)))
    leaves = [stored[path] for path in trees.paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# --- Information -------------------------------------------------------------------------------


def _cube_task(config: ConfigDict) -> cube.Task:
    chosen = config.information.to_dict()
    return cube.task(**{k: v for k, v in chosen.items() if k not in _MEASURING})


_MEASURING = ("initializations", "checked", "imp_initializations")


def _information(
    config: ConfigDict, task: cube.Task, name: str, run: records.Run
) -> dict[str, np.ndarray]:
    """Exact bits of a method on the cube task, [initialisations, levels]."""
    pruned = cube.pruned_counts(name, task, range(1, task.size))
    algorithm = cube.algorithm(name, task, pruned, synflow_rounds=config.pruning.synflow_rounds)

    def measure(index: int) -> dict[str, np.ndarray]:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        return cube.measure(algorithm, task, check=index < config.information.checked, key=key)

    rows = [
        run.stage(f"information/{name}/{index}", partial(measure, index), finite=True)["bits"]
        for index in range(initializations(config, name))
    ]
    return {"bits": np.stack(rows), "pruned": np.array(pruned)}
