"""Unit pruning with and without OrthP, finetuned at two learning rates.

All seeds run in one vmapped program. Units are removed physically, so that the small dense network
of the paper is finetuned.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.isometry_table.config import Rates, Settings, kept_units
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
from nopr.lab import long_training, records, settings, steps, training
from nopr.typing import Masks, Params

STARTS = ("l1", "l1_orthp")
SCHEDULES = {"1e-2": "large_rates", "1e-3": "small_rates"}


class Setting(NamedTuple):
    """Everything the stages need."""

    asked: Settings
    images: data.Images
    epochs: int  # of the dense network
    finetuning_epochs: int
    every: int  # epochs between checkpoints
    network: networks.Network
    small: networks.Network  # the network without the removed units
    keys: Any

    @property
    def probe(self) -> np.ndarray:
        """The images on which Jacobians are taken."""
        return self.images.train.images[: self.asked.measuring.inputs]


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains, prunes, repairs, finetunes; each part is a stage, training with checkpoints."""
    setting = _setting(settings.read(Settings, config))
    dense = run.stage("dense", partial(_train_dense, setting, run), finite=True)
    pruned = {
        name: run.stage(f"pruned/{name}", partial(_prune, setting, dense["params"], name))
        for name in STARTS
    }
    curve = run.stage("jsv", partial(_jsv_by_ratio, setting, dense["params"]), finite=True)
    finetuned = {
        (name, rate): run.stage(
            f"finetuned/{name}/{rate}",
            partial(_finetune, setting, pruned[name]["params"], f"{name}_lr_{rate}", rate, run),
            finite=True,
        )
        for name in STARTS
        for rate in SCHEDULES
    }
    return {"dense": dense, "pruned": pruned, "finetuned": finetuned, "jsv": curve["mean"]}


def _setting(asked: Settings) -> Setting:
    images = training.load(asked.data, seed=asked.seed)

    def mlp(width: int) -> networks.Network:
        widths = [width] * asked.network.hidden
        activation, seeds = asked.network.activation, asked.seeds
        return training.mlp(images, widths, activation=activation, copies=seeds)

    epochs = partial(training.epochs, images=images, batch_size=asked.training.batch_size)
    small = kept_units(asked.network.width, asked.pruning.ratio)
    keys = jax.random.split(jax.random.key(asked.seed), asked.seeds)
    return Setting(
        asked=asked,
        images=images,
        epochs=epochs(asked.training.length),
        finetuning_epochs=epochs(asked.finetuning.length, name="finetuning.length"),
        every=epochs(asked.training.checkpoint_every, name="training.checkpoint_every"),
        network=mlp(asked.network.width),
        small=mlp(small),
        keys=keys,
    )


# --- Training ------------------------------------------------------------------------------------


def _train_dense(setting: Setting, run: records.Run) -> dict[str, Any]:
    params = jax.vmap(lambda key: setting.network.init(jax.random.split(key)[0]))(setting.keys)
    rates = setting.asked.training.dense_rates
    return _train(setting, setting.network, params, setting.epochs, rates, "dense", run)


def _finetune(
    setting: Setting, params: Params, name: str, rate: str, run: records.Run
) -> dict[str, Any]:
    rates = getattr(setting.asked.finetuning, SCHEDULES[rate])
    return _train(setting, setting.small, params, setting.finetuning_epochs, rates, name, run)


def _train(
    setting: Setting,
    network: networks.Network,
    params: Params,
    epochs: int,
    rates: Rates,
    name: str,
    run: records.Run,
) -> dict[str, Any]:
    asked = setting.asked.training
    per_epoch = steps.per_epoch(len(setting.images.train.labels), batch_size=asked.batch_size)
    found = long_training.with_checkpoints(
        network,
        params,
        training.arrays(setting.images),
        tx=training.sgd(asked, finetune.epoch_rates(dict(rates), steps_per_epoch=per_epoch)),
        epochs=epochs,
        every=setting.every,
        batch_size=asked.batch_size,
        folder=run.checkpoints(name),
        keys=jax.vmap(lambda key: jax.random.split(key)[1])(setting.keys),
    )
    return {**found, "jsv": _mean_jsv(setting, network, found["params"])}


# --- Pruning and measuring -----------------------------------------------------------------------


def _unit_masks(setting: Setting, params: Params, ratio: float) -> Masks:
    """Keeps the units of largest mean |w| of every hidden layer."""
    prune = pruning.pruner(
        criteria.magnitude(),
        scope="layer",
        granularity=granularity.units(setting.network.layers),
    )
    asked = setting.asked.network
    counts = np.array([[kept_units(asked.width, ratio)] * asked.hidden], np.int32)
    return jax.vmap(lambda p: prune(p, None, count=counts, key=jax.random.key(0)))(params)


def _prune(setting: Setting, params: Params, name: str) -> dict[str, Any]:
    """The small networks of all seeds, stacked."""
    kept = _unit_masks(setting, params, setting.asked.pruning.ratio)
    smaller = []
    for seed in range(setting.asked.seeds):
        one, mask = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (params, kept))
        small, _ = surgery.remove(one, mask, setting.network.layers)
        if name == "l1_orthp":
            gain = 1.0 if setting.asked.network.activation == "linear" else math.sqrt(2)
            small = isometry.orthogonalize(small, gain=gain)
        smaller.append(small)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *smaller)
    return {"params": stacked, "jsv": _mean_jsv(setting, setting.small, stacked)}


def _jsv_by_ratio(setting: Setting, params: Params) -> dict[str, Any]:
    """Mean JSV right after pruning, [seeds, ratios]; masking is equivalent to removal."""
    means = []
    for ratio in setting.asked.pruning.ratios:
        kept = _unit_masks(setting, params, ratio)
        zeroed = trees.overlay(lambda leaf, mask: jnp.where(mask, leaf, 0), params, kept)
        means.append(_mean_jsv(setting, setting.network, zeroed))
    return {"mean": np.stack(means, axis=1)}


def _mean_jsv(setting: Setting, network: networks.Network, params: Params) -> np.ndarray:
    """The mean singular value of the Jacobians of each seed."""
    measure = jax.jit(jax.vmap(partial(spectra.singular_values, network.apply), (0, None)))
    return np.asarray(measure(params, setting.probe)).mean(axis=(1, 2))
