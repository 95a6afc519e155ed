"""Iterative magnitude pruning of one network with checkpoints: level by level, in one long run."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.imp_run.config import Settings
from nopr import algorithms, criteria, data, finetune, masks, networks, pruning, trees
from nopr.lab import checkpoints, progress, records, settings, training
from nopr.typing import Status


class Setting(NamedTuple):
    """Everything the run needs, made once."""

    asked: Settings
    images: data.Images
    network: networks.Network
    epochs: int  # of a level, including those before the rewind epoch
    every: int  # epochs between checkpoints
    rewind: int  # epoch to rewind to
    counts: np.ndarray  # kept weights after each level of pruning
    size: int  # prunable weights


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains and prunes all levels as one stage with checkpoints."""
    setting = _setting(settings.read(Settings, config))
    found = run.stage("imp", partial(_iterate, setting, run), finite=True)
    return {"setting": setting, **found}


def _setting(asked: Settings) -> Setting:
    images = training.load(asked.data, seed=asked.seed)
    network = training.mlp(
        images, asked.network.widths, initialization=asked.network.initialization
    )
    like = jax.eval_shape(network.init, jax.random.key(0))
    size = sum(math.prod(shape) for shape in trees.shapes(trees.select(like)))
    epochs = partial(training.epochs, images=images, batch_size=asked.training.batch_size)
    every = epochs(asked.training.checkpoint_every, name="training.checkpoint_every")
    rewind = epochs(asked.pruning.rewind, name="pruning.rewind", least=0)
    total = epochs(asked.training.length)
    if not rewind < total:
        raise ValueError(
            f"`pruning.rewind` must be below `training.length`, {asked.training.length!r}, "
            f"got {asked.pruning.rewind!r}."
        )
    kept = [(1 - asked.pruning.removal) ** level for level in range(1, asked.pruning.levels + 1)]
    if round(kept[-1] * size) < 1:
        raise ValueError(
            f"`pruning.removal` must leave one of {size:,} weights after {asked.pruning.levels} "
            f"levels, got {asked.pruning.removal}."
        )
    counts = pruning.level_counts(size, kept)
    return Setting(asked, images, network, total, every, rewind, counts, size)


def _iterate(setting: Setting, run: records.Run) -> dict[str, Any]:
    """Runs all levels; an interrupted run resumes from its newest whole checkpoint."""
    asked, network = setting.asked.training, setting.network
    parts = training.arrays(setting.images)
    init_key, run_key = jax.random.split(jax.random.key(setting.asked.seed))
    said: list[int] = []

    def report(status: Status) -> None:
        if not said and status.done:
            run.say(f"imp: resuming after epoch {status.done} of {status.total}")
        said.append(status.done)
        show(status)

    with (
        checkpoints.Saver(run.checkpoints("imp"), keep=asked.checkpoint_keep, say=run.say) as saver,
        progress.shown("imp", unit="epoch") as show,
    ):
        levels = algorithms.resume_imp(
            pruning.pruner(criteria.magnitude(), scope=setting.asked.pruning.scope),
            network.init(init_key),
            parts["train"],
            counts=setting.counts,
            epochs=setting.epochs,
            rewind_epoch=setting.rewind,
            retrain=setting.asked.pruning.retrain,
            every=setting.every,
            keeper=saver,
            progress=report,
            key=run_key,
            step_loss=finetune.stateless(finetune.cross_entropy(network.apply)),
            tx=training.cosine_sgd(asked, setting.images, epochs=setting.epochs),
            batch_size=asked.batch_size,
            monitor=training.accuracies(network.apply, parts),
        )
    return {
        "params": jax.tree.map(np.asarray, levels.params),
        "masks": jax.vmap(masks.pack)(levels.masks),
        "kept": jax.vmap(masks.count)(levels.masks),
        "loss": levels.history.loss,
        **levels.history.metrics,
    }
