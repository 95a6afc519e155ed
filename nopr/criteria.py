"""Criteria: a constructor takes configuration and gives `(params, batch, *, masks, key) -> scores`.

Scores are turned so that higher = keep. Given the original params, a criterion applies the masks
itself and differentiates at the masked weights. With `stacked=True` the batch has one more leading
axis, several batches, and gradients are *summed* over it before any absolute value is taken.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nopr import masks as masks_
from nopr import precision, trees
from nopr.typing import Apply, Batch, Criterion, Loss, Masks, Params, Scores, Where


def random(*, where: Where = trees.is_prunable) -> Criterion:
    """Uniform noise in [0, 1): the floor of every comparison.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Key[Array, ""]
    ) -> Scores:
        del batch
        if masks is not None:
            masks_.check_bool(masks)
        leaves, treedef = jax.tree.flatten(trees.select(params, where))
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, noise)

    return score


def magnitude(*, where: Where = trees.is_prunable) -> Criterion:
    r""":math:`|w|`, at initialisation, after training, or in iterative magnitude pruning.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        return jax.tree.map(jnp.abs, _living(params, masks, where))

    return score


def snip(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Connection sensitivity :math:`|w \, \partial L / \partial w|`.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches; their gradients are summed first.

    Source: Lee et al. 2019, arXiv:1810.02340.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = _living(params, masks, where)
        gradient = _gradient(loss, params, batch, stacked)(weights)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, gradient)

    return score


def grasp(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Gradient signal preservation :math:`w \, (H g)`: keep what the gradient's norm needs.

    Removing :math:`w` changes the squared gradient norm by about :math:`-2 w (Hg)`, so the largest
    :math:`w (Hg)` are kept. :math:`g` and :math:`H` belong to the loss summed over the batches and
    to the prunable leaves alone. The paper divides the logits by 200: build that into `loss`.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches.

    Source: Wang et al. 2020, arXiv:2002.07376.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = _living(params, masks, where)
        gradient = _gradient(loss, params, batch, stacked)
        # Pruned weights are constants: the gradient that is to flow is that of the living ones.
        direction = gradient(weights)
        if masks is not None:
            direction = trees.overlay(lambda g, m: jnp.where(m, g, 0), direction, masks)
        _, curvature = jax.jvp(gradient, (weights,), (direction,))
        return jax.tree.map(lambda w, hg: w * hg, weights, curvature)

    return score


def synflow(
    apply: Apply, *, input_shape: tuple[int, ...], where: Where = trees.is_prunable
) -> Criterion:
    r"""Synaptic flow :math:`|w \, \partial R / \partial w| / R`, :math:`R = 1^T f(|w|) 1`.

    No data: the input is all ones and every floating leaf is replaced by its absolute value, the
    biases too. R grows with the product of the layers' widths and passes float32 in deep networks,
    so all of it is computed in float64, whatever the caller's precision; the division by R changes
    no ranking. Meant for about 100 rounds of an exponential schedule (`pruning.pruner`).

    Args:
      apply: `apply(params, inputs) -> outputs`; it must follow the dtype of its arguments.
      input_shape: Shape of one input, without the batch axis.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A criterion whose scores are float64.

    Source: Tanaka et al. 2020, arXiv:2006.05467.
    """

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        return precision.in_double(flow_scores, params, masks)

    def flow_scores(params: Params, masks: Masks | None) -> Scores:
        positive = jax.tree.map(_positive_double, params)
        weights = _living(positive, masks, where)
        ones = jnp.ones((1, *input_shape), jnp.float64)

        def flow(weights: Params) -> Array:
            replaced = trees.overlay(lambda _, new: new, positive, weights)
            return jnp.sum(apply(replaced, ones))

        total, gradient = jax.value_and_grad(flow)(weights)
        scale = jnp.where(total == 0, jnp.ones_like(total), total)
        return jax.tree.map(lambda w, g: jnp.abs(w * g) / scale, weights, gradient)

    return score


def invert(criterion: Criterion) -> Criterion:
    """The opposite order, by negation: the control that keeps what `criterion` would prune.

    Source: Frankle et al. 2021, arXiv:2009.08576 (1 / score would misorder signed scores).
    """

    def score(params: Params, batch: Batch, *, masks: Masks | None = None, key: Any) -> Scores:
        return jax.tree.map(jnp.negative, criterion(params, batch, masks=masks, key=key))

    return score


def _living(params: Params, masks: Masks | None, where: Where) -> Params:
    """The prunable leaves, pruned weights set to 0."""
    weights = trees.select(params, where)
    if masks is None:
        return weights
    trees.check_same(masks, weights, name="masks", other="params")
    masks_.check_bool(masks)
    return trees.map_prunable(lambda m, w: jnp.where(m, w, 0), masks, weights)


def _gradient(loss: Loss, params: Params, batch: Batch, stacked: bool) -> Any:
    """The gradient of the loss in the prunable leaves, summed over stacked batches."""

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


def _positive_double(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.abs(jnp.asarray(leaf).astype(jnp.float64))
