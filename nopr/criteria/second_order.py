"""Criteria based on second derivatives of a loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nopr import trees
from nopr.criteria.shared import gradient, living
from nopr.typing import Batch, Criterion, Loss, Masks, Params, Scores, Where, check_loss


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
