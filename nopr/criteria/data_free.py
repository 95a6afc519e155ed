"""Criteria that need no data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nopr import budgets, precision, trees
from nopr import masks as masks_
from nopr.criteria.shared import from_weights, living
from nopr.typing import (
    Apply,
    Batch,
    Criterion,
    Masks,
    Params,
    Scores,
    Where,
    check_apply,
    check_key,
    shown,
)


def random(*, where: Where = trees.is_prunable) -> Criterion:
    """Uniform noise in [0, 1): the baseline of every comparison.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Key[Array, ""]
    ) -> Scores:
        del batch
        check_key(key)
        leaves, treedef = jax.tree.flatten(living(params, masks, where))
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, noise)

    return score


def magnitude(*, where: Where = trees.is_prunable) -> Criterion:
    r"""Weight magnitude :math:`|w|`.

    Serves at initialization, after training, and in iterative magnitude pruning.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
    """
    return from_weights(jnp.abs, where=where)


def synflow(
    apply: Apply, *, input_shape: tuple[int, ...], where: Where = trees.is_prunable
) -> Criterion:
    r"""Synaptic flow :math:`|w \, \partial R / \partial w| / R`, :math:`R = 1^T f(|w|) 1`.

    Needs no data: the input is all ones, and every floating leaf, biases included, is replaced by
    its absolute value. R grows with the product of the layers' widths and overflows float32 in
    deep networks, so everything is computed in float64, at any precision of the caller; dividing by
    R changes no ranking. Meant for about 100 rounds of an exponential schedule (`pruning.pruner`).

    Args:
      apply: `apply(params, inputs) -> outputs`; it must follow the dtype of its arguments.
      input_shape: The shape of one input, without the batch axis.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A criterion whose scores are float64.

    Source: Tanaka et al. 2020, arXiv:2006.05467.
    """
    check_apply(apply)
    must = "`input_shape` must be a tuple of whole numbers"
    if budgets.whole(input_shape, must=must).ndim != 1:
        raise ValueError(f"{must}, got {shown(input_shape)}.")

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        trees.by_path(params, "params")
        if masks is not None:
            masks_.check_bool(masks)
        return precision.in_double(flow_scores, params, masks)

    def flow_scores(params: Params, masks: Masks | None) -> Scores:
        positive = jax.tree.map(_positive_double, params)
        weights = living(positive, masks, where)
        ones = jnp.ones((1, *input_shape), jnp.float64)

        def flow(weights: Params) -> Array:
            replaced = trees.overlay(lambda _, new: new, positive, weights)
            return jnp.sum(trees.numbers(apply(replaced, ones), "apply(params, inputs)"))

        total, gradient = jax.value_and_grad(flow)(weights)
        scale = jnp.where(total == 0, jnp.ones_like(total), total)
        return jax.tree.map(lambda w, g: jnp.abs(w * g) / scale, weights, gradient)

    return score


def _positive_double(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.abs(jnp.asarray(leaf).astype(jnp.float64))
