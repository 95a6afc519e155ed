"""Building blocks of criteria: the remaining weights, the summed gradient, and common kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array

from nopr import masks as masks_
from nopr import sweeps, trees
from nopr.granularity.shared import check_known
from nopr.typing import (
    Axes,
    Batch,
    Criterion,
    Loss,
    Masks,
    Params,
    Scores,
    Where,
    axes_of,
    check_axes,
    check_flags,
    check_form,
    check_loss,
    check_loss_value,
    explained,
    function_name,
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
    check_flags(stacked=stacked)

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


def of_filters(function: Callable[..., Array], where: Where, axes: Axes) -> Criterion:
    """A criterion `function(outs, weights, masks)` of kernels, by the axes of their filters."""
    check_axes(axes, argument="axes")

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        weights = living(params, masks, where)
        return map_filters(function, axes, weights, alive(masks, weights))

    return score


def map_filters(
    function: Callable[..., Array], axes: Axes, tree: Params | Scores, *rest: Any
) -> Scores:
    """Maps `function(outs, leaf, *others)`, with the axes that number the filters of each leaf.

    Args:
      function: A function of those axes, counted from 0, of a leaf and of those of `rest`.
      axes: The axes that number a kernel's outputs, or `{path: axes}`; None for the last.
      tree: The params or scores.
      rest: Trees like it.

    Raises:
      ValueError: If `axes` names a path that the tree lacks, a leaf lacks an axis, or none is given
        for a leaf of three dimensions, whose shape does not show which numbers its filters.
    """
    known = [
        trees.path_string(path)
        for path, _ in tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]
    ]
    for path in check_axes(axes, argument="axes"):
        check_known(path, known, argument="axes", name="params")

    def of_leaf(path: Any, leaf: Any, *others: Any) -> Array:
        place, shape = trees.path_string(path), tuple(leaf.shape)
        role = "the axes that number its outputs"
        outs = axes_of(axes, place, shape, default=-1, role=role, argument="axes") if shape else ()
        return function(outs, leaf, *others)

    return tree_map_with_path(of_leaf, tree, *rest)


def filter_sums(outs: tuple[int, ...], values: Any) -> Array:
    """The sum over each filter, the values at one index of `outs`, as that of all its entries."""
    within = tuple(axis for axis in range(values.ndim) if axis not in outs)
    return jnp.broadcast_to(jnp.sum(wide(values), axis=within, keepdims=True), values.shape)


def as_matrix(outs: tuple[int, ...], values: Any) -> Array:
    """A kernel as [inputs, filters]: `outs` are the columns, all other axes the rows."""
    within = [axis for axis in range(values.ndim) if axis not in outs]
    sides = [math.prod(values.shape[axis] for axis in part) for part in (within, outs)]
    return jnp.transpose(values, [*within, *outs]).reshape(sides)


def from_matrix(outs: tuple[int, ...], matrix: Array, shape: tuple[int, ...]) -> Array:
    """The kernel of some shape of which `as_matrix` made a matrix."""
    order = [*(axis for axis in range(len(shape)) if axis not in outs), *outs]
    return jnp.transpose(
        matrix.reshape([shape[axis] for axis in order]), np.argsort(order).tolist()
    )


def gradient(loss: Loss, params: Params, batch: Batch, stacked: bool) -> Callable[[Params], Params]:
    """The gradient of the loss with respect to the prunable leaves, as a function of them.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      params: The parameters; leaves that are not prunable are constants.
      batch: The batch.
      stacked: Whether the batch holds several batches, over which gradients are summed.
    """

    def value(weights: Params, batch: Batch) -> Array:
        whole = trees.overlay(lambda _, new: new, params, weights)
        if not stacked:
            return check_loss_value(loss(whole, batch))
        with explained(
            "`stacked=True` gives the loss one batch at a time, here with arrays of shape "
            f"{', '.join(map(str, trees.shapes(batch)))}, and it failed",
            "Leave `stacked` out if the batch is a single one.",
        ):
            return check_loss_value(loss(whole, batch))

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
