"""Every method at every density on every seed, one training after another.

Each training is a stage, with checkpoints inside. Scores are taken in training mode, since running
statistics do not normalize before training; SynFlow's and the trained accuracy in inference mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.synaptic_flow.config import Settings
from nopr import finetune, masks, networks, trees
from nopr.lab import checkpoints, methods, progress, records, settings, training
from nopr.typing import Apply, Batch, Masks, Params, StepLoss

_NETWORKS = {"vgg16": partial(networks.vgg, 16), "resnet20": partial(networks.resnet, 20)}


class Setting(NamedTuple):
    """Everything the stages need."""

    asked: Settings
    images: Any
    parts: dict[str, Any]
    network: networks.Network
    problem: methods.Problem
    epochs: int
    every: int
    tx: optax.GradientTransformation
    step_loss: StepLoss
    monitor: Any


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be run."""
    settings.read(Settings, config)


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains the dense network and every pruned one."""
    setting = _setting(settings.read(Settings, config))
    asked = setting.asked
    found: dict[str, Any] = {"dense": _over_seeds(setting, "dense", 1.0, run)}
    for name in asked.methods:
        found[name] = {d: _over_seeds(setting, name, d, run) for d in asked.pruning.densities}
    return {
        "found": found,
        "weights": setting.problem.size,
        "epochs": setting.epochs,
        "images": training.counted(setting.images),
    }


def _setting(asked: Settings) -> Setting:
    images = training.load(asked.data, seed=asked.seed)
    shape = images.train.images.shape[1:]
    network = _NETWORKS[asked.network.name](
        classes=images.classes, input_shape=shape, width=asked.network.width
    )
    epochs = partial(training.epochs, images=images, batch_size=asked.training.batch_size)
    per_epoch = finetune.steps_per_epoch(
        len(images.train.labels), batch_size=asked.training.batch_size
    )
    rates = finetune.epoch_rates(dict(asked.training.rates), steps_per_epoch=per_epoch)
    parts, plain = training.arrays(images), network.step_loss(finetune.cross_entropy)
    return Setting(
        asked=asked,
        images=images,
        parts=parts,
        network=network,
        problem=_problem(network, shape, asked.pruning.grasp_temperature),
        epochs=epochs(asked.training.length),
        every=epochs(asked.training.checkpoint_every, name="training.checkpoint_every"),
        tx=training.sgd(asked.training, rates),
        step_loss=augmented(plain, shift=asked.training.shift, mirror=asked.training.mirror),
        monitor=_monitor(network, parts),
    )


def _problem(
    network: networks.Network, shape: tuple[int, ...], temperature: float
) -> methods.Problem:
    state = network.init_state()

    def normalized(params: Params, inputs: Any) -> Any:
        return network.train(params, state, inputs)[0]

    return methods.Problem(
        apply=network.bind(state),
        loss=finetune.cross_entropy(normalized),
        grasp_loss=finetune.cross_entropy(normalized, temperature=temperature),
        input_shape=shape,
        layers=network.layers,
        like=trees.select(jax.eval_shape(network.init, jax.random.key(0))),
    )


# --- One training --------------------------------------------------------------------------------


def _over_seeds(setting: Setting, name: str, density: float, run: records.Run) -> dict[str, Any]:
    """Results of all seeds, [seeds, ...]."""
    rows = []
    for seed in range(setting.asked.seeds):
        label = f"{name}/density_{density:g}/seed_{seed}"
        one = partial(_train, setting, name, density, seed, run, label)
        rows.append(run.stage(label, one, finite=True))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _train(
    setting: Setting, name: str, density: float, seed: int, run: records.Run, label: str
) -> dict[str, Any]:
    asked, network = setting.asked.training, setting.network
    init_key, mask_key, train_key = jax.random.split(
        jax.random.fold_in(jax.random.key(setting.asked.seed), seed), 3
    )
    params = network.init(init_key)
    kept = trees.full_masks(params)
    if name != "dense":
        kept = _masks(setting, name, density, params, mask_key)
    folder = label.replace("/", "-")
    with (
        checkpoints.Saver(run.checkpoints(folder), say=run.say) as saver,
        progress.shown(folder, unit="epoch") as show,
    ):
        fitted = finetune.resume(
            finetune.start(params, kept, tx=setting.tx, state=network.init_state(), key=train_key),
            setting.parts["train"],
            step_loss=setting.step_loss,
            tx=setting.tx,
            epochs=setting.epochs,
            every=setting.every,
            batch_size=asked.batch_size,
            keeper=saver,
            progress=show,
            monitor=setting.monitor,
        )
    found = {key: np.asarray(value) for key, value in fitted.history.metrics.items()}
    return {**found, "loss": np.asarray(fitted.history.loss), "kept": int(masks.count(kept))}


def _masks(setting: Setting, name: str, density: float, params: Params, key: Any) -> Masks:
    asked = setting.asked.pruning
    prune = methods.pruner(name, setting.problem, rounds=asked.rounds)
    count = methods.plan(name, density, setting.problem, rounds=asked.rounds)
    batch = setting.images.train.images[: asked.scoring_examples]
    labels = setting.images.train.labels[: asked.scoring_examples]
    return jax.jit(prune)(params, (batch, labels), count=jnp.asarray(count), key=key)


def _monitor(network: networks.Network, parts: Any) -> Any:
    def monitor(params: Params, state: Any) -> dict[str, Any]:
        apply: Apply = network.bind(state)
        return {
            f"{split}_accuracy": finetune.evaluate(apply, params, parts[split]).accuracy
            for split in ("validation", "test")
        }

    return monitor


def augmented(step_loss: StepLoss, *, shift: int, mirror: bool) -> StepLoss:
    """A step loss on images that are shifted by up to `shift` pixels, and half of them mirrored."""

    def on_others(params: Params, state: Any, batch: Batch, key: Any) -> Any:
        images, labels = batch
        rest, *keys = jax.random.split(key, 3)
        if shift:
            offsets = jax.random.randint(keys[0], (len(images), 2), 0, 2 * shift + 1)
            pads = [(0, 0), (shift, shift), (shift, shift), (0, 0)]
            images = jax.vmap(partial(_window, shape=images.shape[1:]))(
                jnp.pad(images, pads), offsets
            )
        if mirror:
            flips = jax.random.bernoulli(keys[1], 0.5, (len(images), 1, 1, 1))
            images = jnp.where(flips, images[:, :, ::-1], images)
        return step_loss(params, state, (images, labels), rest)

    return on_others


def _window(image: Any, offset: Any, *, shape: tuple[int, ...]) -> Any:
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), shape)
