"""Criteria based on second derivatives of a loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nopr import trees
from nopr.criteria.fisher import check_stacked, over_examples
from nopr.criteria.shared import gradient, living, summed, wide
from nopr.typing import (
    Batch,
    Criterion,
    Loss,
    Masks,
    Params,
    Scores,
    Where,
    check_flags,
    check_loss,
    whole_number,
)


def grasp(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Gradient signal preservation :math:`w \, (H g)`: keeps what preserves the gradient norm.

    Removing :math:`w` changes the squared gradient norm by about :math:`-2 w (Hg)`, so the largest
    :math:`w (Hg)` are kept. The gradient :math:`g` and the Hessian :math:`H` are those of the loss
    summed over the batches, with respect to the prunable leaves alone. The paper divides the logits
    by 200, which `loss` must do itself.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches.

    Source: Wang et al. 2020, arXiv:2002.07376.
    """
    check_loss(loss)
    check_flags(stacked=stacked)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = living(params, masks, where)
        slope = gradient(loss, params, batch, stacked)
        # Pruned weights are constants: only the gradient of the remaining ones must flow.
        direction = slope(weights)
        if masks is not None:
            direction = trees.overlay(lambda g, m: jnp.where(m, g, 0), direction, masks)
        _, curvature = jax.jvp(slope, (weights,), (direction,))
        return jax.tree.map(lambda w, hg: w * hg, weights, curvature)

    return score


def obd(
    loss: Loss,
    *,
    examples: int = 32,
    where: Where = trees.is_prunable,
    stacked: bool = False,
) -> Criterion:
    r"""Optimal brain damage :math:`w^2 F / 2` with the diagonal Fisher information.

    Removing :math:`w` at a minimum of the loss raises it by about :math:`w^2 H / 2`, and the second
    derivative :math:`H` is approximated by the mean squared gradient of single examples,

    .. math:: F_i = \frac{1}{n} \sum_{j=1}^n \Big(
        \frac{\partial L(x_j, y_j)}{\partial w_i} \Big)^2 ,

    the empirical Fisher information where the loss is a negative log-likelihood. A network whose
    loss mixes examples, such as batch norm in training mode, has no gradient of single examples.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch; called with single examples.
      examples: Number of examples differentiated at once.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches, over which the scores are summed.

    Returns:
      A criterion whose scores are at least float32.

    Raises:
      ValueError: If `examples` is not a whole number from 1 up. From the criterion, if the leaves
        of the batch share no leading axis.

    Source: LeCun et al. 1990, Optimal Brain Damage; with the Fisher information, Theis et al. 2018,
    arXiv:1801.05787.
    """
    check_loss(loss)
    check_flags(stacked=stacked)
    examples = whole_number("examples", examples)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = living(params, masks, where)
        trees.check_floating(weights)
        zeros = jax.tree.map(lambda w: jnp.zeros_like(wide(w)), weights)

        def fisher(batch: Batch) -> Params:
            def slope(example: Batch) -> Params:
                return gradient(loss, params, example, stacked=False)(weights)

            n, total = over_examples(_sum_of_squares, slope, batch, examples, zeros)
            return jax.tree.map(lambda leaf: leaf / n, total)

        if stacked:
            check_stacked(batch)
        information = summed(fisher, batch, zeros) if stacked else fisher(batch)
        return jax.tree.map(lambda w, f: jnp.square(wide(w)) * f / 2, weights, information)

    return score


def _sum_of_squares(slopes: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.sum(jnp.square(wide(leaf)), axis=0), slopes)
