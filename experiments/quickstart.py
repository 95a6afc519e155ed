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
from tqdm import tqdm

from experiments import cube, methods, quickstart_report, steps
from nopr import (
    algorithms,
    data,
    finetune,
    isometry,
    masks,
    networks,
    pruning,
    records,
    schedules,
    spectra,
    surgery,
    sweeps,
    trees,
)
from nopr.typing import Masks, Params


class Setting(NamedTuple):
    """What every stage needs, made once."""

    config: ConfigDict
    images: data.Images
    network: networks.Network
    problem: methods.Problem
    size: int
    keys: Any
    scoring: tuple[np.ndarray, np.ndarray]
    probe: np.ndarray
    tune: Any
    shared: Any


class Job(NamedTuple):
    """One row of the result: a method at a density, repaired or not."""

    method: str
    density: float
    repaired: bool = False

    @property
    def name(self) -> str:
        """For file names and the summary."""
        return f"{self.method}/density_{self.density:g}" + ("/orthp" if self.repaired else "")


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Runs all stages, prints the tables and writes figures and report."""
    _check(config)
    setting = _setting(config)
    dense = run.stage("dense", partial(_train_dense, setting), finite=True)
    kept = {
        name: run.stage(f"masks/{name}", partial(_choose_masks, setting, name, dense["params"]))
        for name in config.methods
    }
    jobs = [Job(name, density) for name in config.methods for density in config.pruning.densities]
    if "units_after" in config.methods and config.repair.density in config.pruning.densities:
        jobs.append(Job("units_after", config.repair.density, repaired=True))
    found = _finetune(setting, jobs, kept, dense["params"], run)
    bits = {name: _information(setting.config, name, run) for name in config.methods}
    return quickstart_report.write(config, run, setting, dense, found, bits)


def _check(config: ConfigDict) -> None:
    methods.check(config.methods)
    for density in config.pruning.densities:
        if not 0 < density <= 1:
            raise ValueError(f"`pruning.densities` must be in (0, 1], got {density}.")
    counts = {
        "seeds": config.seeds,
        "information.initializations": config.information.initializations,
        "measuring.inputs": config.measuring.inputs,
        "pruning.scoring_examples": config.pruning.scoring_examples,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _setting(config: ConfigDict) -> Setting:
    images = data.load(config.data.name, validation=config.data.validation, seed=config.seed)
    shape = images.train.images.shape[1:]
    network = networks.mlp(
        (*config.network.widths, images.classes),
        inputs=math.prod(shape),
        initialization=config.network.initialization,
    )
    like = jax.eval_shape(network.init, jax.random.key(0))
    apply, temperature = network.apply, config.pruning.grasp_temperature
    problem = methods.Problem(
        apply=apply,
        loss=finetune.cross_entropy(apply),
        grasp_loss=finetune.cross_entropy(apply, temperature=temperature),
        input_shape=shape,
        layers=network.layers,
        shapes=trees.shapes(trees.select(like)),
    )
    shared = jax.tree.map(
        jnp.asarray,
        {
            "train": tuple(images.train),
            "validation": tuple(images.validation),
            "test": tuple(images.test),
            "probe": images.train.images[: config.measuring.inputs],
        },
    )
    scoring = config.pruning.scoring_examples
    return Setting(
        config=config,
        images=images,
        network=network,
        problem=problem,
        size=sum(math.prod(side) for side in problem.shapes),
        keys=jax.random.split(jax.random.key(config.seed), config.seeds),
        scoring=(images.train.images[:scoring], images.train.labels[:scoring]),
        probe=images.train.images[: config.measuring.inputs],
        tune=_tuning(config, network, images),
        shared=shared,
    )


# --- Training and measuring: one program for every method, density and seed --------------------


def _tuning(config: ConfigDict, network: networks.Network, images: data.Images) -> Any:
    """`tune(case, shared)`: trains under masks and measures before and after."""
    loss, tx = finetune.cross_entropy(network.apply), _optimizer(config)
    epochs = _epochs(config, len(images.train.labels))
    batch_size = config.training.batch_size
    singular_values = partial(spectra.singular_values, network.apply)

    def tune(case: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        def monitor(params: Params) -> dict[str, jax.Array]:
            found = finetune.evaluate(network.apply, params, shared["validation"])
            return {"accuracy": found.accuracy}

        train = finetune.trainer(
            loss,
            tx,
            epochs=epochs,
            batch_size=batch_size,
            monitor=monitor,
            best_by="accuracy",
        )
        start = masks.apply(case["masks"], case["params"])
        fitted = train(start, case["masks"], shared["train"], key=case["key"])
        test = partial(finetune.evaluate, network.apply, data=shared["test"])
        return {
            "params": fitted.params,
            "test_accuracy": test(fitted.params).accuracy,
            "selected_test_accuracy": test(fitted.best).accuracy,
            "best_epoch": fitted.best_epoch,
            "loss": fitted.history.loss,
            "validation_accuracy": fitted.history.metrics["accuracy"],
            "before": singular_values(start, shared["probe"]),
            "after": singular_values(fitted.params, shared["probe"]),
            "kept": masks.count(case["masks"]),
            "effective": surgery.effective_count(case["masks"], network.layers),
        }

    return tune


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(config.training.weight_decay),
        optax.sgd(config.training.learning_rate, momentum=config.training.momentum),
    )


def _epochs(config: ConfigDict, examples: int) -> int:
    length = config.training.length or ("30ep" if config.data.name == "digits" else "3ep")
    per_epoch = steps.per_epoch(examples, batch_size=config.training.batch_size)
    return steps.epochs(length, steps_per_epoch=per_epoch)


def _initial(setting: Setting) -> Params:
    return jax.vmap(lambda key: setting.network.init(jax.random.split(key)[0]))(setting.keys)


def _train_keys(setting: Setting) -> Any:
    """The order of the batches, the same for all methods of one seed."""
    return jax.vmap(lambda key: jax.random.split(jax.random.split(key)[1])[0])(setting.keys)


def _train_dense(setting: Setting) -> dict[str, Any]:
    params = _initial(setting)
    case = {
        "params": params,
        "masks": _full(params, setting),
        "key": _train_keys(setting),
    }
    swept = sweeps.run(setting.tune, case, shared=setting.shared, block=setting.config.seeds)
    _raise_if_failed(swept, ["dense"] * setting.config.seeds, setting)
    return swept.values


def _full(params: Params, setting: Setting) -> Masks:
    one = trees.full_masks(jax.tree.map(lambda leaf: leaf[0], params))
    return jax.tree.map(lambda leaf: jnp.ones((setting.config.seeds, *leaf.shape), bool), one)


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
    with tqdm(total=len(jobs) * seeds, unit="run", desc="finetuning", disable=None) as bar:
        swept = sweeps.run(
            setting.tune,
            together,
            shared=setting.shared,
            block=seeds,
            store=run.store("finetuning"),
            progress=lambda done, total, failures: bar.update(done - bar.n),
        )
    _raise_if_failed(swept, [job.name for job in jobs for _ in range(seeds)], setting)
    return {
        job: jax.tree.map(lambda leaf, i=i: leaf[i * seeds : (i + 1) * seeds], swept.values)
        for i, job in enumerate(jobs)
    }


def _raise_if_failed(swept: sweeps.Swept, names: list[str], setting: Setting) -> None:
    if swept.failures:
        listed = sorted({names[index] for index in swept.failures})
        raise ValueError(
            f"Training gave NaN or infinity in {len(swept.failures)} of {len(names)} runs: "
            f"{', '.join(listed[:6])}. Lower `training.learning_rate`, "
            f"{setting.config.training.learning_rate}."
        )


def _case(
    setting: Setting, job: Job, kept: dict[str, Any], initial: Params, dense: Params
) -> dict[str, Any]:
    """Params and masks of one job, stacked over seeds."""
    level = list(setting.config.pruning.densities).index(job.density)
    mask = jax.tree.map(lambda leaf: leaf[:, level], _masks_like(setting, kept[job.method]))
    trained = job.method in ("magnitude_after", "units_after")
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
    else:
        rounds = setting.config.pruning.synflow_rounds
        counts = [
            _unit_counts(setting, density)
            if name == "units_after"
            else methods.plan(name, density, setting.problem, synflow_rounds=rounds)
            for density in setting.config.pruning.densities
        ]
        prune = pruning.levels(
            methods.pruner(name, setting.problem, synflow_rounds=rounds), np.stack(counts)
        )
        found = _prune_all(setting, prune, name, dense)
    return dict(zip(trees.paths(found), map(np.asarray, jax.tree.leaves(found)), strict=True))


def _prune_all(setting: Setting, prune: Any, name: str, dense: Params) -> Masks:
    if name in methods.AT_INIT:
        algorithm = algorithms.at_init(prune, init=setting.network.init)
        return jax.jit(jax.vmap(lambda key, batch: algorithm(batch, key=key), in_axes=(0, None)))(
            setting.keys, setting.scoring
        )
    # The dense networks are there already; `algorithms.after_training` would train them again.
    return jax.jit(jax.vmap(lambda params, key: prune(params, None, key=key)))(
        jax.tree.map(jnp.asarray, dense), setting.keys
    )


def _unit_counts(setting: Setting, density: float) -> np.ndarray:
    """Kept units of every hidden layer, one round."""
    return np.array([[round(density * width) for width in setting.config.network.widths]])


def _imp(setting: Setting) -> Masks:
    """Geometric rounds that hit each density; the masks at the densities alone."""
    targets = list(setting.config.pruning.densities)
    levels, hits = imp_levels(targets, removal=setting.config.pruning.imp_removal)
    algorithm = algorithms.imp(
        methods.pruner("imp", setting.problem, synflow_rounds=1),
        init=setting.network.init,
        train=_imp_train(setting),
        counts=pruning.level_counts(setting.size, levels),
        levels=True,
    )
    program = jax.jit(jax.vmap(lambda key, data: algorithm(data, key=key), in_axes=(0, None)))
    path = program(setting.keys, setting.shared["train"])
    return jax.tree.map(lambda leaf: leaf[:, np.array(hits)], path)


def imp_levels(targets: list[float], *, removal: float) -> tuple[list[float], list[int]]:
    """Densities of the IMP rounds, and which of them are the targets.

    Between one target and the next the rounds are geometric and remove at most `removal` of what
    is left.
    """
    if sorted(targets, reverse=True) != targets:
        raise ValueError(f"`pruning.densities` must fall from left to right, got {targets}.")
    if not 0 < removal < 1:
        raise ValueError(f"`pruning.imp_removal` must be between 0 and 1, got {removal}.")
    levels, hits, last = [], [], 1.0
    for target in targets:
        rounds = max(1, math.ceil(math.log(target / last) / math.log(1 - removal) - 1e-9))
        at = schedules.exponential(density=target / last, steps=rounds)
        levels += [last * at(step) for step in range(1, rounds)] + [target]
        hits.append(len(levels) - 1)
        last = target
    return levels, hits


def _imp_train(setting: Setting) -> Any:
    config = setting.config
    train = finetune.trainer(
        finetune.cross_entropy(setting.network.apply),
        _optimizer(config),
        epochs=_epochs(config, len(setting.images.train.labels)),
        batch_size=config.training.batch_size,
    )
    return lambda params, kept, examples, *, key: train(params, kept, examples, key=key).params


def _masks_like(setting: Setting, stored: dict[str, Any]) -> Masks:
    """Stored masks as a tree like the params."""
    like = trees.select(jax.eval_shape(setting.network.init, jax.random.key(0)))
    leaves = [stored[path] for path in trees.paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# --- Information -------------------------------------------------------------------------------


def _information(config: ConfigDict, name: str, run: records.Run) -> dict[str, np.ndarray]:
    """Exact bits of a method on the cube task, [initialisations, levels]."""
    chosen = config.information.to_dict()
    count, checked = chosen.pop("initializations"), chosen.pop("checked")
    task = cube.task(**chosen)
    pruned = cube.pruned_counts(name, task, range(1, task.size))
    algorithm = cube.algorithm(name, task, pruned, synflow_rounds=config.pruning.synflow_rounds)
    rows = [
        run.stage(
            f"information/{name}/{index}",
            lambda index=index: cube.measure(
                algorithm,
                task,
                check=index < checked,
                key=jax.random.fold_in(jax.random.key(config.seed), index),
            ),
            finite=True,
        )["bits"]
        for index in range(count)
    ]
    return {
        "bits": np.stack(rows),
        "pruned": np.array(pruned),
        "ceiling_bits": np.array(task.data.entropy_bits),
        "weights": np.array(task.size),
    }
