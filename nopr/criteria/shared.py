"""Building blocks of criteria: the remaining weights, the summed gradient, and common kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import budgets, sweeps, trees
from nopr import masks as masks_
from nopr.typing import (
    Batch,
    Criterion,
    Loss,
    Masks,
    Params,
    Scores,
    Where,
    check_form,
    check_loss,
    check_loss_value,
    function_name,
    shown,
    takes,
)


def from_weights(score: Callable[[Array], Array], *, where: Where = trees.is_prunable) -> Criterion:
    """A criterion of the weights alone.

    The criterion applies the masks, so that pruned weights do not influence the scores.

    Args:
      score: `score(weights) -> scores`, called with each prunable leaf, pruned weights set to 0;
        the scores have the shape of the leaf, and higher = keep.
      where: `where(path, leaf)`, true for a prunable leaf.

    Raises:
      ValueError: If `score` does not take one argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> relative = criteria.from_weights(lambda w: jnp.abs(w) / jnp.linalg.norm(w))
      >>> relative({"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)}, None)
      {'bias': None, 'kernel': Array([[0.6, 0.8]], dtype=float32)}
    """
    check_form(score, "(weights)", name="score", remedy="It is called with each prunable leaf.")

    def criterion(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        return jax.tree.map(score, living(params, masks, where))

    return criterion


def from_gradients(
    score: Callable[[Array, Array], Array],
    loss: Loss,
    *,
    where: Where = trees.is_prunable,
    stacked: bool = False,
) -> Criterion:
    """A criterion of the weights and the gradient of the loss at the masked weights.

    The criterion applies the masks before it differentiates, so that pruned weights do not
    influence the scores.

    Args:
      score: `score(weights, gradient) -> scores`, called with each prunable leaf, pruned weights
        set to 0; the scores have the shape of the leaf, and higher = keep.
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches, over which gradients are summed.

    Raises:
      ValueError: If `score` does not take two arguments, or `loss` does not take (params, batch).

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> def loss(params, batch):
      ...     return jnp.sum(params["kernel"] * batch)
      >>> score = criteria.from_gradients(lambda w, g: jnp.abs(w) * jnp.sqrt(jnp.abs(g)), loss)
      >>> score({"kernel": jnp.array([[3.0, -1.0]])}, jnp.array([[4.0, 9.0]]))
      {'kernel': Array([[6., 3.]], dtype=float32)}
    """
    check_form(
        score, "(weights, gradient)", name="score", remedy="It is called with each prunable leaf."
    )
    check_loss(loss)

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


def alive(masks: Masks | None, like: Params | Scores) -> Masks:
    """The masks, or masks that keep every weight of `like` if there are none.

    Raises:
      ValueError: If the masks are not bool or do not match `like`; the message names the leaf.
    """
    if masks is None:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
    trees.check_same(masks, like, name="masks", other="scores")
    masks_.check_bool(masks)
    return masks


def wide(values: Any) -> Array:
    """Values in at least float32: sums in half precision would lose their small terms."""
    values = jnp.asarray(values)
    return values.astype(jnp.float32) if values.dtype.itemsize < 4 else values


def check_input_shape(input_shape: Any) -> None:
    """Checks that the shape of one input is a tuple of whole numbers.

    Raises:
      ValueError: If it is not.
    """
    must = "`input_shape` must be a tuple of whole numbers"
    if budgets.whole(input_shape, must=must).ndim != 1:
        raise ValueError(f"{must}, got {shown(input_shape)}.")


def check_filters(tree: Params | Scores) -> None:
    """Checks that the last axis of every leaf numbers its filters.

    Raises:
      ValueError: If a leaf has three dimensions: those of attention are [in, heads, features] or
        [heads, features, out], and do not show which they are.
    """
    for path, leaf in trees.by_path(tree, "params").items():
        if leaf.ndim == 3:
            raise ValueError(
                f"Filters must be along the last axis of a kernel, got shape {leaf.shape} at "
                f"{path!r}, which may be attention's. Leave it out with `where`."
            )


def filter_sums(values: Any) -> Array:
    """The sum over each filter (index of the last axis), as the value of each of its entries."""
    axes = tuple(range(values.ndim - 1))
    return jnp.broadcast_to(jnp.sum(wide(values), axis=axes, keepdims=True), values.shape)


def gradient(loss: Loss, params: Params, batch: Batch, stacked: bool) -> Callable[[Params], Params]:
    """The gradient of the loss with respect to the prunable leaves, as a function of them.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      params: The parameters; leaves that are not prunable are constants.
      batch: The batch.
      stacked: Whether the batch holds several batches, over which gradients are summed.
    """

    def value(weights: Params, batch: Batch) -> Array:
        return check_loss_value(loss(trees.overlay(lambda _, new: new, params, weights), batch))

    def one(weights: Params, batch: Batch) -> Params:
        trees.check_floating(weights)
        return jax.grad(value)(weights, batch)

    if not stacked:
        return lambda weights: one(weights, batch)

    sweeps.case_count(batch, name="batch")
    return lambda weights: summed(
        lambda batch: one(weights, batch), batch, jax.tree.map(jnp.zeros_like, weights)
    )


def summed(function: Callable[[Any], Params], xs: Any, zeros: Params) -> Params:
    """The sum of a function over the leading axis of `xs`, from `zeros` on, one after the other."""

    def add(total: Params, x: Any) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, function(x)), None

    return jax.lax.scan(add, zeros, xs)[0]


def check(criterion: Criterion) -> None:
    """Checks that `criterion` is a criterion, and not a constructor that was not called.

    Raises:
      ValueError: If its signature does not accept (params, batch, *, masks, key).
    """
    form = "(params, batch, *, masks, key)"
    name = function_name(criterion)
    remedy = f"A constructor must be called: `{name}(...)`."
    if callable(criterion) and takes(criterion, "(params, batch)"):
        lacking = [f"`{n}`" for n in ("masks", "key") if not takes(criterion, f"(_, _, *, {n})")]
        remedy = f"It lacks {' and '.join(lacking)}: add `*, masks=None, key` to its arguments."
    elif not callable(criterion):
        remedy = "Make one with a constructor of `criteria`, such as `criteria.magnitude()`."
    check_form(criterion, form, name="criterion", remedy=remedy)
