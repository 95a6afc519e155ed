"""Unit pruning with and without OrthP, finetuned at two learning rates, beside the published table.

The seeds are one vmapped program. Units are removed physically, so that what is finetuned is the
small dense network of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import held_out
from experiments.isometry_table import page as isometry_report
from experiments.isometry_table.page import SCHEDULES, STARTS
from nopr import (
    criteria,
    data,
    finetune,
    granularity,
    isometry,
    networks,
    pruning,
    spectra,
    surgery,
    trees,
)
from nopr.lab import checkpoints, progress, records, steps
from nopr.typing import Masks, Params

LENGTHS = ("training.length", "finetuning.length", "training.checkpoint_every")


class Setting(NamedTuple):
    """What every stage needs."""

    config: ConfigDict
    images: data.Images
    epochs: Mapping[str, int]  # of each of LENGTHS
    network: networks.Network
    small: networks.Network  # what is left when the units are removed
    keys: Any
    probe: np.ndarray


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains, prunes, repairs, finetunes; each part is a stage, training with checkpoints."""
    _check(config)
    setting = _setting(config)
    dense = run.stage("dense", lambda: _train_dense(setting, run), finite=True)
    pruned = {
        name: run.stage(f"pruned/{name}", partial(_prune, setting, dense["params"], name))
        for name in STARTS
    }
    curve = run.stage("jsv", partial(_jsv_by_ratio, setting, dense["params"]), finite=True)
    finetuned = {
        (name, rate): run.stage(
            f"finetuned/{name}/{rate}",
            partial(_finetune, setting, pruned[name]["params"], SCHEDULES[rate], name, rate, run),
            finite=True,
        )
        for name in STARTS
        for rate in SCHEDULES
    }
    return isometry_report.write(config, run, dense, pruned, finetuned, curve["mean"])


def _check(config: ConfigDict) -> None:
    for name, ratios in (
        ("pruning.ratio", [config.pruning.ratio]),
        ("pruning.ratios", config.pruning.ratios),
    ):
        for ratio in ratios:
            if not 0 <= ratio < 1 or _kept_units(config, ratio) < 1:
                raise ValueError(
                    f"`{name}` must be at least 0 and leave a unit of {config.network.width}, "
                    f"got {ratio}."
                )
    counts = {
        "seeds": config.seeds,
        "network.hidden": config.network.hidden,
        "measuring.inputs": config.measuring.inputs,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _setting(config: ConfigDict) -> Setting:
    images = held_out.load(config, pad=config.data.pad)
    inputs = math.prod(images.train.images.shape[1:])

    def mlp(width: int) -> networks.Network:
        widths = (*[width] * config.network.hidden, images.classes)
        return networks.mlp(widths, inputs=inputs, activation=config.network.activation)

    network, small = mlp(config.network.width), mlp(_kept_units(config, config.pruning.ratio))
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    probe = images.train.images[: config.measuring.inputs]
    return Setting(config, images, _epochs(config, images), network, small, keys, probe)


def _epochs(config: ConfigDict, images: data.Images) -> dict[str, int]:
    """The lengths of the config in epochs."""
    batch_size = config.training.batch_size
    per_epoch = steps.per_epoch(len(images.train.labels), batch_size=batch_size)
    found = {}
    for name in LENGTHS:
        section, field = name.split(".")
        found[name] = steps.epochs(config[section][field], steps_per_epoch=per_epoch)
        if found[name] < 1:
            raise ValueError(f"`{name}` must be at least 1ep, got {config[section][field]!r}.")
    return found


# --- Training ----------------------------------------------------------------------------------


def _train_dense(setting: Setting, run: records.Run) -> dict[str, Any]:
    params = jax.vmap(setting.network.init)(jax.vmap(_init_key)(setting.keys))
    epochs, rates = setting.epochs["training.length"], setting.config.training.dense_rates
    return _train(setting, setting.network, params, epochs, rates, "dense", run)


def _finetune(
    setting: Setting, params: Params, rates: str, name: str, rate: str, run: records.Run
) -> dict[str, Any]:
    epochs = setting.epochs["finetuning.length"]
    scheduled = setting.config.finetuning[rates]
    return _train(setting, setting.small, params, epochs, scheduled, f"{name}_lr_{rate}", run)


def _train(
    setting: Setting,
    network: networks.Network,
    params: Params,
    epochs: int,
    rates: Sequence[Sequence[float]],
    name: str,
    run: records.Run,
) -> dict[str, Any]:
    """Trains all seeds at once; a checkpoint every few epochs carries the histories too."""
    tx = _optimizer(setting, rates)
    begin = jax.vmap(lambda params, key: finetune.start(params, None, tx=tx, key=key))
    carry = begin(jax.tree.map(jnp.asarray, params), jax.vmap(_run_key)(setting.keys))
    logs = {key: np.full((len(setting.keys), epochs), -1.0) for key in ("loss", *_MEASURED)}
    folder, done = run.checkpoints(name), 0
    found = checkpoints.restore(folder, (carry, logs))
    if found is not None:
        done, (carry, logs) = found
        logs = jax.tree.map(np.array, logs)
    program, parts = _program(setting, network, tx), _parts(setting.images)
    with progress.bar(total=epochs, initial=done, desc=name, unit="epoch") as bar:
        while done < epochs:
            count = min(setting.epochs["training.checkpoint_every"], epochs - done)
            fitted = program(carry, parts, count)
            _raise_if_not_finite(name, rates, fitted)
            carry, history = fitted.carry, fitted.history
            for key in logs:
                values = history.loss if key == "loss" else history.metrics[key]
                logs[key][:, done : done + count] = values
            done += count
            bar.update(count)
            checkpoints.save(folder, done, (carry, logs))
    jsv = _singular_values(setting, network, carry.params).mean(axis=(1, 2))
    return {"params": jax.tree.map(np.asarray, carry.params), **logs, "jsv": jsv}


def _optimizer(setting: Setting, rates: Sequence[Sequence[float]]) -> optax.GradientTransformation:
    config, examples = setting.config.training, len(setting.images.train.labels)
    per_epoch = steps.per_epoch(examples, batch_size=config.batch_size)
    schedule = finetune.epoch_rates(
        {int(epoch): rate for epoch, rate in rates}, steps_per_epoch=per_epoch
    )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )


def _program(setting: Setting, network: networks.Network, tx: optax.GradientTransformation) -> Any:
    """`(carry, parts, count) -> Fitted`: `count` epochs of all seeds."""
    step_loss = finetune.stateless(finetune.cross_entropy(network.apply))

    def advance(carry: Any, parts: Any, count: int) -> Any:
        train, validation, test = parts
        return finetune.advance(
            carry,
            train,
            step_loss=step_loss,
            tx=tx,
            epochs=count,
            batch_size=setting.config.training.batch_size,
            monitor=partial(_measure, network.apply, validation, test),
        )

    return jax.jit(jax.vmap(advance, in_axes=(0, None, None)), static_argnums=2)


def _parts(images: data.Images) -> Any:
    parts = (tuple(images.train), tuple(images.validation), tuple(images.test))
    return jax.tree.map(jnp.asarray, parts)


def _raise_if_not_finite(name: str, rates: Sequence[Sequence[float]], fitted: Any) -> None:
    if not np.all(fitted.finite):
        failed = int((~np.asarray(fitted.finite)).sum())
        raise ValueError(
            f"Training {name!r} gave NaN or infinity for {failed} of {np.size(fitted.finite)} "
            f"seeds. Lower its learning rates, {tuple(map(tuple, rates))}."
        )


_MEASURED = ("validation_accuracy", "test_accuracy")


def _measure(apply: Any, validation: Any, test: Any, params: Params) -> dict[str, jax.Array]:
    """Selection sees the validation accuracy alone."""
    return {
        "validation_accuracy": finetune.evaluate(apply, params, validation).accuracy,
        "test_accuracy": finetune.evaluate(apply, params, test).accuracy,
    }


def _init_key(key: Any) -> Any:
    return jax.random.split(key)[0]


def _run_key(key: Any) -> Any:
    return jax.random.split(key)[1]


# --- Pruning and measuring ---------------------------------------------------------------------


def _unit_masks(setting: Setting, params: Params, ratio: float) -> Masks:
    """Keeps the units of largest mean |w| of every hidden layer; ceil(ratio * n) go."""
    prune = pruning.pruner(
        criteria.magnitude(),
        scope="layer",
        granularity=granularity.units(setting.network.layers),
    )
    kept = _kept_units(setting.config, ratio)
    counts = np.array([[kept] * setting.config.network.hidden], np.int32)
    return jax.vmap(lambda p: prune(p, None, count=counts, key=jax.random.key(0)))(params)


def _kept_units(config: ConfigDict, ratio: float) -> int:
    return config.network.width - math.ceil(ratio * config.network.width - 1e-9)


def _prune(setting: Setting, params: Params, name: str) -> dict[str, Any]:
    """The small networks of all seeds, stacked."""
    kept = _unit_masks(setting, params, setting.config.pruning.ratio)
    smaller = []
    for seed in range(setting.config.seeds):
        one, mask = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (params, kept))
        small, _ = surgery.remove(one, mask, setting.network.layers)
        if name == "l1_orthp":
            gain = 1.0 if setting.config.network.activation == "linear" else math.sqrt(2)
            small = isometry.orthogonalize(small, gain=gain)
        smaller.append(small)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *smaller)
    values = _singular_values(setting, setting.small, stacked)
    return {"params": stacked, "jsv": values.mean(axis=(1, 2)), "singular_values": values}


def _jsv_by_ratio(setting: Setting, params: Params) -> dict[str, Any]:
    """Mean JSV right after pruning, [seeds, ratios]; masked is as good as removed."""
    means = []
    for ratio in setting.config.pruning.ratios:
        kept = _unit_masks(setting, params, ratio)
        zeroed = trees.overlay(lambda leaf, mask: jnp.where(mask, leaf, 0), params, kept)
        means.append(_singular_values(setting, setting.network, zeroed).mean(axis=(1, 2)))
    return {"mean": np.stack(means, axis=1)}


def _singular_values(setting: Setting, network: networks.Network, params: Params) -> np.ndarray:
    """[seeds, inputs, classes]."""
    measure = jax.jit(jax.vmap(partial(spectra.singular_values, network.apply), (0, None)))
    return np.asarray(measure(params, setting.probe))
