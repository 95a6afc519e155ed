"""Training of a dense network that survives being killed: all seeds at once, with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nopr import finetune, networks
from nopr.lab import checkpoints, progress
from nopr.lab.training import accuracies
from nopr.typing import Params


def with_checkpoints(
    network: networks.Network,
    params: Params,
    parts: Mapping[str, Any],
    *,
    tx: optax.GradientTransformation,
    epochs: int,
    every: int,
    batch_size: int,
    folder: Path,
    keys: Any,
) -> dict[str, Any]:
    """Trains all seeds of a dense network at once, with a checkpoint every few epochs.

    Args:
      network: The network.
      params: Initial params, stacked over seeds.
      parts: Data, as `arrays` returns it.
      tx: Optax transformation.
      epochs: Number of epochs.
      every: Epochs between checkpoints, which carry the histories too.
      batch_size: Examples per step.
      folder: Folder of the checkpoints, such as `run.checkpoints("dense")`.
      keys: Keys of the batches, one per seed.

    Returns:
      The `params`, and `loss`, `validation_accuracy` and `test_accuracy` by epoch.

    Raises:
      FloatingPointError: If training gave NaN or infinity.
    """
    start = jax.vmap(lambda params, key: finetune.start(params, None, tx=tx, key=key))
    carry = start(jax.tree.map(jnp.asarray, params), keys)
    names, step_loss = ("loss", *_CURVES), finetune.stateless(finetune.cross_entropy(network.apply))
    logs = {name: np.full((len(keys), epochs), -1.0) for name in names}

    def advance(carry: Any, parts: Any, count: int) -> Any:
        monitor = accuracies(network.apply, parts)
        return finetune.advance(
            carry,
            parts["train"],
            step_loss=step_loss,
            tx=tx,
            epochs=count,
            batch_size=batch_size,
            monitor=lambda params: {name: monitor(params)[name] for name in _CURVES},
        )

    program = jax.jit(jax.vmap(advance, in_axes=(0, None, None)), static_argnums=2)
    done, found = 0, checkpoints.restore(folder, (carry, logs))
    if found is not None:
        done, (carry, logs) = found
        logs = jax.tree.map(np.array, logs)
    with progress.bar(total=epochs, initial=done, desc=folder.name, unit="epoch") as bar:
        while done < epochs:
            count = min(every, epochs - done)
            fitted = program(carry, parts, count)
            carry, history = fitted.carry, fitted.history
            finetune.raise_if_not_finite(fitted, runs="seeds", remedy="Lower the learning rates.")
            for name in names:
                values = history.loss if name == "loss" else history.metrics[name]
                logs[name][:, done : done + count] = values
            done += count
            bar.update(count)
            checkpoints.save(folder, done, (carry, logs))
    return {"params": jax.tree.map(np.asarray, carry.params), **logs}


_CURVES = ("validation_accuracy", "test_accuracy")
