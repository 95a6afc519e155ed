"""Criteria based on the gradient of a loss."""

from __future__ import annotations

import jax.numpy as jnp

from nopr import trees
from nopr.criteria.shared import from_gradients
from nopr.typing import Criterion, Loss, Where


def snip(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Connection sensitivity :math:`|w \, \partial L / \partial w|`.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches; their gradients are summed first.

    Source: Lee et al. 2019, arXiv:1810.02340.
    """
    return from_gradients(lambda w, g: jnp.abs(w * g), loss, where=where, stacked=stacked)
