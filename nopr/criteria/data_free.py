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
    explained,
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


def lamp(*, where: Where = trees.is_prunable) -> Criterion:
    r"""Layer-adaptive magnitude: a weight's share among the weights of its layer that outlast it.

    With the weights of a layer in ascending order of magnitude, the score of the one at place
    :math:`u` is :math:`w_u^2 / \sum_{v \ge u} w_v^2`. A layer's scores have the order of its
    magnitudes, and its largest weight scores 1: competing over the network (`scope="global"`), LAMP
    is magnitude pruning with densities of the layers chosen by the weights, and no layer loses its
    last weight while another has two. The paper leaves the order of equal magnitudes open; here the
    first of them ranks highest, as in `masks.top`. A weight of 0 scores 0.

    The sums are in float64, at any precision of the caller: neighbors in a large layer differ by
    less than float32 resolves.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A criterion whose scores are float64, in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> criteria.lamp()({"kernel": jnp.array([[1.0, 2.0], [-2.0, 4.0]])}, None)["kernel"]
      Array([[0.04      , 0.2       ],
             [0.16666667, 1.        ]], dtype=float64)

    Source: Lee et al. 2021, arXiv:2010.07611.
    """
    return from_weights(lambda weights: precision.in_double(_lamp, weights), where=where)


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
            what = f"`apply` failed on one input of `input_shape`, an array of shape {ones.shape}"
            with explained(what, "Give the shape of one input, without the batch axis."):
                outputs = apply(replaced, ones)
            return jnp.sum(trees.numbers(outputs, "apply(params, inputs)"))

        total, gradient = jax.value_and_grad(flow)(weights)
        scale = jnp.where(total == 0, jnp.ones_like(total), total)
        return jax.tree.map(lambda w, g: jnp.abs(w * g) / scale, weights, gradient)

    return score


def _lamp(weights: Array) -> Array:
    squares = jnp.square(weights.astype(jnp.float64)).reshape(-1)
    order = jnp.argsort(-squares, stable=True)
    sums = jnp.zeros_like(squares).at[order].set(jnp.cumsum(squares[order]))
    return (squares / jnp.where(squares == 0, 1, sums)).reshape(weights.shape)


def _positive_double(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.abs(jnp.asarray(leaf).astype(jnp.float64))
