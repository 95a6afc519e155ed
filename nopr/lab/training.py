"""Training for experiments: a dataset, a network, many masks and seeds in one sweep.

    task = training.task(asked.data, asked.training, widths=(300, 100), seed=0, seeds=5)
    found = training.sweep(task, {("SNIP", 0.05): training.pruned(task, prune)}, run)
    found["SNIP", 0.05]["test_accuracy"]  # one number per seed

All seeds of a network start from `task.initial` and see the batches of `task.train_keys`, so that
networks differ by their masks alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify

from nopr import data, finetune, masks, networks, sweeps
from nopr.lab import methods, progress, records, settings, steps
from nopr.typing import Apply, Loss, Masks, Params, Pruner

_MOST = 2**31 - 1

Measure = Callable[[Params, Params, Masks, Any], Mapping[str, Any]]
"""`measure(start, end, masks, shared)`: further results of a training, by name."""


class Task(NamedTuple):
    """A dataset, a network for it, and how it is trained; see `task`.

    Attributes:
      images: Dataset in its parts.
      network: Network.
      loss: Cross-entropy of the network.
      trainer: `trainer(monitor=None, best_by=None) -> train`; see `finetune.trainer`.
      epochs: Epochs of one training.
      keys: One key per seed.
      learning_rate: Initial learning rate.
    """

    images: data.Images
    network: networks.Network
    loss: Loss
    trainer: Callable[..., Callable[..., Any]]
    epochs: int
    keys: Any
    learning_rate: float

    @property
    def parts(self) -> dict[str, Any]:
        """The images and labels of each part, as JAX arrays."""
        return arrays(self.images)

    @property
    def initial(self) -> Params:
        """The initial params of every seed, stacked."""
        return jax.vmap(lambda key: self.network.init(jax.random.split(key)[0]))(self.keys)

    @property
    def train_keys(self) -> Any:
        """The key of each seed's batches, the same for every training."""
        return jax.vmap(lambda key: jax.random.split(jax.random.split(key)[1])[0])(self.keys)

    def examples(self, count: int) -> tuple[Any, Any]:
        """The first training examples, for criteria to score on."""
        return self.images.train.images[:count], self.images.train.labels[:count]


def task(
    asked: settings.Data,
    training: settings.Training,
    *,
    widths: Sequence[int],
    initialization: str = "he",
    seed: int,
    seeds: int,
) -> Task:
    """Loads the data and builds a fully connected network of these hidden widths.

    Raises:
      ValueError: If a setting cannot be used; nothing has been trained then.
    """
    images = load(asked, seed=seed)
    network = mlp(images, widths, initialization=initialization, copies=seeds)
    loss = finetune.cross_entropy(network.apply)
    count = epochs(training.length, images, training.batch_size)
    trainer = partial(
        finetune.trainer,
        loss,
        cosine_sgd(training, images, epochs=count),
        epochs=count,
        batch_size=training.batch_size,
    )
    keys = jax.random.split(jax.random.key(seed), seeds)
    return Task(images, network, loss, trainer, count, keys, training.learning_rate)


# --- What a task is made of ----------------------------------------------------------------------


def load(asked: settings.Data, *, seed: int) -> data.Images:
    """Loads a dataset with examples held out for selecting an epoch.

    Raises:
      ValueError: If nothing would be held out; otherwise as for `data.load`.
    """
    # A flag may turn 5000 into 5000.0 or back, so the type does not decide.
    counted = asked.validation >= 1 and float(asked.validation).is_integer()
    validation = int(asked.validation) if counted else asked.validation
    images = data.load(asked.name, validation=validation, seed=seed, pad=asked.pad)
    if not len(images.validation.labels):
        raise ValueError(
            f"`data.validation` must hold out at least one example to select an epoch on, "
            f"got {asked.validation}."
        )
    return images


def mlp(
    images: data.Images,
    widths: Sequence[int],
    *,
    activation: str = "relu",
    initialization: str = "torch",
    copies: int = 1,
) -> networks.Network:
    """A fully connected network for a dataset.

    Raises:
      ValueError: If there is no hidden layer, or so many copies have too many weights to count.
    """
    if not widths:
        raise ValueError("`network.widths` must name at least one hidden layer, got none.")
    shape = (inputs(images), *widths, images.classes)
    weights = copies * sum(map(math.prod, itertools.pairwise(shape)))
    if weights > _MOST:
        raise ValueError(
            f"`network` must have at most {_MOST:,} weights over all seeds, got {weights:,}. "
            "Lower its widths."
        )
    return networks.mlp(
        shape[1:], inputs=shape[0], activation=activation, initialization=initialization
    )


def inputs(images: data.Images) -> int:
    """The number of values in one image."""
    return math.prod(images.train.images.shape[1:])


def arrays(images: data.Images) -> dict[str, Any]:
    """The images and labels of each part, as JAX arrays."""
    names = ("train", "validation", "test")
    return {name: jax.tree.map(jnp.asarray, tuple(getattr(images, name))) for name in names}


def epochs(
    length: str | None,
    images: data.Images,
    batch_size: int,
    *,
    name: str = "training.length",
    least: int = 1,
) -> int:
    """The number of epochs in a length; None means 30 for digits and 3 for larger sets.

    Raises:
      ValueError: If it is not a whole number, is less than `least`, or has too many steps to
        count.
    """
    length = length or ("30ep" if images.name == "digits" else "3ep")
    per_epoch = steps.per_epoch(len(images.train.labels), batch_size=batch_size)
    count = steps.epochs(length, steps_per_epoch=per_epoch, name=name)
    if count < least:
        raise ValueError(f"`{name}` must be at least {least}ep, got {length!r}.")
    if count * per_epoch > _MOST:
        raise ValueError(f"`{name}` must be at most {_MOST:,} steps, got {length!r}.")
    return count


def cosine_sgd(
    training: settings.Training, images: data.Images, *, epochs: int
) -> optax.GradientTransformation:
    """SGD with momentum; the learning rate falls to 0 along half a cosine."""
    per_epoch = steps.per_epoch(len(images.train.labels), batch_size=training.batch_size)
    return sgd(training, optax.cosine_decay_schedule(training.learning_rate, epochs * per_epoch))


def sgd(training: Any, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD with the momentum and the weight decay of `training`, at any learning rate."""
    return optax.chain(
        optax.add_decayed_weights(training.weight_decay),
        optax.sgd(rate, momentum=training.momentum),
    )


def accuracies(apply: Apply, parts: Mapping[str, Any]) -> Callable[[Params], dict[str, Any]]:
    """`monitor(params)`: accuracy and loss on the validation and the test part."""

    def monitor(params: Params) -> dict[str, Any]:
        found = {}
        for split in ("validation", "test"):
            result = finetune.evaluate(apply, params, parts[split])
            found |= {f"{split}_accuracy": result.accuracy, f"{split}_loss": result.loss}
        return found

    return monitor


def counted(images: data.Images) -> str:
    """The sizes of all parts, such as `"1,197 training, 240 validation, 360 test images"`."""
    parts = {"training": images.train, "validation": images.validation, "test": images.test}
    return ", ".join(f"{len(part.labels):,} {name}" for name, part in parts.items()) + " images"


# --- Many trainings ------------------------------------------------------------------------------


def tuning(task: Task, measure: Measure | None = None) -> Callable[[Any, Any], dict[str, Any]]:
    """`tune(case, shared)`: trains a case under its masks; make it once and reuse it.

    A case has `params`, `masks` and the `key` of its batches; `shared` has the parts of the data.
    The result has the `params`, the `test_accuracy` of the last epoch and of the epoch with the
    best validation accuracy (`selected_test_accuracy`, `best_epoch`), `loss` and
    `validation_accuracy` epoch by epoch, the `kept` weights and what `measure` adds.
    """
    evaluate = partial(finetune.evaluate, task.network.apply)

    def tune(case: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
        def monitor(params: Params) -> dict[str, Any]:
            return {"accuracy": evaluate(params, shared["validation"]).accuracy}

        start = masks.apply(case["params"], case["masks"])
        train = task.trainer(monitor=monitor, best_by="accuracy")
        fitted = train(start, case["masks"], shared["train"], key=case["key"])
        more = {} if measure is None else measure(start, fitted.params, case["masks"], shared)
        return {
            "params": fitted.params,
            "test_accuracy": evaluate(fitted.params, shared["test"]).accuracy,
            "selected_test_accuracy": evaluate(fitted.best_params, shared["test"]).accuracy,
            "best_epoch": fitted.best_epoch,
            "loss": fitted.history.loss,
            "validation_accuracy": fitted.history.metrics["accuracy"],
            "kept": masks.count(case["masks"]),
            **more,
        }

    return tune


def pruned(task: Task, prune: Pruner, *, params: Any = None, examples: int = 512) -> dict[str, Any]:
    """A case for `sweep`: the network of every seed, with its own masks.

    Args:
      task: The network, its data and the seeds.
      prune: Pruner that chooses the masks, with one key per seed.
      params: Params stacked over seeds, such as those of a sweep; `task.initial` by default.
      examples: Number of training examples that it scores on.

    Raises:
      ValueError: If a score is NaN or infinite.
    """
    batch, params = task.examples(examples), task.initial if params is None else params
    choose = checkify.checkify(lambda p, key: prune(p, batch, key=key), errors=checkify.user_checks)
    error, kept = jax.jit(jax.vmap(choose))(params, task.keys)
    methods.raise_failed(error, "the networks that `prune` was given")
    return {"params": params, "masks": kept}


def sweep(
    task: Task,
    cases: Mapping[Any, Mapping[str, Any]],
    run: records.Run | None = None,
    *,
    tune: Callable[[Any, Any], dict[str, Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
    block: int | None = None,
    name: str = "training",
) -> dict[Any, dict[str, Any]]:
    """Trains every case on every seed in one sweep, whose blocks are stored as they finish.

    Args:
      task: The network, its data and the seeds.
      cases: `params` and `masks`, stacked over seeds, by name (anything hashable); see `pruned`.
      run: Run that stores the results; None stores nothing.
      tune: Function that `tuning` made; by default `tuning(task)`.
      shared: Arrays that all cases read besides the parts of the data.
      block: Seeds in one vmapped call on a device; by default all.
      name: Name of the sweep, for the store and the progress; unique in the run.

    Returns:
      Results of `tune` by name, stacked over seeds.

    Raises:
      ValueError: If a training gave NaN or infinity, or the run has another sweep of this name.
    """
    seeds = len(task.keys)
    store = None if run is None else run.sweep_store(name, networks=len(cases), seeds=seeds)
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(_plain, cases.values()))
    together["key"] = task.train_keys[np.tile(np.arange(seeds), len(cases))]
    with progress.shown(name, unit="run") as show:
        swept = sweeps.run(
            tuning(task) if tune is None else tune,
            together,
            shared={**task.parts, **(shared or {})},
            block=seeds if block is None else block,
            store=store,
            progress=show,
        )
    names = [str(case) for case in cases for _ in range(seeds)]
    failed = sorted({names[index] for index in swept.failures})
    if failed:
        raise ValueError(
            f"Training gave NaN or infinity in {len(swept.failures)} of {len(names)} runs: "
            f"{', '.join(failed[:6])}. Lower `training.learning_rate`, {task.learning_rate}."
        )
    return {
        case: jax.tree.map(lambda leaf, i=i: leaf[i * seeds : (i + 1) * seeds], swept.values)
        for i, case in enumerate(cases)
    }


def _plain(case: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(np.asarray, {"params": case["params"], "masks": case["masks"]})
