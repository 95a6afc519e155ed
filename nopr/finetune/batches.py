"""Batches: the number of examples, the examples of a batch, and the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nopr import trees
from nopr.typing import Batch, check_flags, is_real, shown, whole_number


def steps_per_epoch(examples: int, *, batch_size: int | None, remainder: bool = True) -> int:
    """Number of steps that `advance` takes in an epoch.

    Args:
      examples: Number of examples.
      batch_size: Examples per step; None for all.
      remainder: Whether leftover examples form one more, smaller step.

    Raises:
      ValueError: If `examples` or `batch_size` is not a whole number of at least 1.
    """
    check_flags(remainder=remainder)
    examples = whole_number("examples", examples)
    if batch_size is None:
        return 1
    batch_size = whole_number("batch_size", batch_size)
    return examples // batch_size + (1 if remainder and examples % batch_size else 0)


def epoch_rates(rates: Mapping[int, float], *, steps_per_epoch: int) -> optax.Schedule:
    """A learning rate that changes at the start of given epochs.

    Args:
      rates: Learning rate from each epoch on, such as `{0: 0.01, 30: 0.001}`; epoch 0 is required.
      steps_per_epoch: Steps per epoch.

    Returns:
      An optax schedule.

    Raises:
      ValueError: If `rates` has none for epoch 0, or an epoch or `steps_per_epoch` is not a whole
        number.
    """
    steps_per_epoch = whole_number("steps_per_epoch", steps_per_epoch)
    if not isinstance(rates, Mapping) or 0 not in rates:
        raise ValueError(f"`rates` must be a dict with a rate for epoch 0, got {shown(rates)}.")
    epochs = sorted(whole_number("rates", epoch, least=0) for epoch in rates)
    for epoch in epochs:
        if not is_real(rates[epoch]):
            raise ValueError(f"`rates` must hold numbers, got {shown(rates[epoch])} at {epoch}.")
    constants = [optax.constant_schedule(rates[epoch]) for epoch in epochs]
    return optax.join_schedules(constants, [epoch * steps_per_epoch for epoch in epochs[1:]])


def examples_in(data: Batch) -> int:
    """The number of examples in `data`: the common length of its leaves.

    Raises:
      ValueError: If the lengths differ, or there are no leaves or no examples.
    """
    lengths = {path: jnp.shape(leaf)[:1] for path, leaf in _named(data)}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        shapes = {path: jnp.shape(leaf) for path, leaf in _named(data)}
        raise ValueError(
            f"The leaves of `data` must share a leading example axis, got shapes {shapes}."
        )
    (examples,) = next(iter(lengths.values()))
    if examples < 1:
        raise ValueError("`data` must have at least one example, got none.")
    return examples


def take(data: Batch, rows: Int[Array, " batch"]) -> Batch:
    """The examples at `rows`; a row past the end gives the last example."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data)


def _named(data: Batch) -> list[tuple[str, Any]]:
    return list(trees.by_path(data, "data").items())
