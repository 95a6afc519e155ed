"""Building blocks of criteria: the remaining weights, the summed gradient, and common kinds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import masks as masks_
from nopr import trees
from nopr.typing import Batch, Criterion, Loss, Masks, Params, Scores, Where


def from_weights(score: Callable[[Array], Array], *, where: Where) -> Criterion:
    """A criterion of the weights alone.

    Args:
      score: `score(weights) -> scores`, called with each prunable leaf, pruned weights set to 0.
      where: `where(path, leaf)`, true for a prunable leaf.
    """

    def criterion(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        return jax.tree.map(score, living(params, masks, where))

    return criterion


def from_gradients(
    score: Callable[[Array, Array], Array], loss: Loss, *, where: Where, stacked: bool
) -> Criterion:
    """A criterion of the weights and the gradient of the loss at the masked weights.

    Args:
      score: `score(weights, gradient) -> scores`, called with each prunable leaf, pruned weights
        set to 0.
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches, over which gradients are summed.
    """

    def criterion(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = living(params, masks, where)
        return jax.tree.map(score, weights, gradient(loss, params, batch, stacked)(weights))

    return criterion


def living(params: Params, masks: Masks | None, where: Where) -> Params:
    """The prunable leaves, pruned weights set to 0.

    Raises:
      ValueError: If the masks are not bool or do not match the prunable leaves; the message names
        the leaf.
    """
    weights = trees.select(params, where)
    if masks is None:
        return weights
    trees.check_same(masks, weights, name="masks", other="params")
    masks_.check_bool(masks)
    return trees.map_prunable(lambda m, w: jnp.where(m, w, 0), masks, weights)


def gradient(loss: Loss, params: Params, batch: Batch, stacked: bool) -> Callable[[Params], Params]:
    """The gradient of the loss with respect to the prunable leaves, as a function of them.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      params: The parameters; leaves that are not prunable are constants.
      batch: The batch.
      stacked: Whether the batch holds several batches, over which gradients are summed.
    """

    def one(weights: Params, batch: Batch) -> Params:
        return jax.grad(
            lambda weights: loss(trees.overlay(lambda _, new: new, params, weights), batch)
        )(weights)

    if not stacked:
        return lambda weights: one(weights, batch)

    def summed(weights: Params) -> Params:
        def add(total: Params, batch: Batch) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, one(weights, batch)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), batch)[0]

    return summed


def check(criterion: Criterion) -> None:
    """Checks that `criterion` is a criterion, and not a constructor that was not called.

    Raises:
      ValueError: If its signature does not accept (params, batch, *, masks, key).
    """
    try:
        signature = inspect.signature(criterion)
    except (TypeError, ValueError):  # without a signature there is nothing to check
        return
    try:
        signature.bind(None, None, masks=None, key=None)
    except TypeError:
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise ValueError(
            f"`criterion` must take (params, batch, *, masks, key), got `{name}{signature}`. "
            f"A constructor has to be called: `{name}(...)`."
        ) from None
