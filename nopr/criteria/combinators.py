"""Criteria built from other criteria."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nopr.criteria.shared import check
from nopr.typing import Batch, Criterion, Masks, Params, Scores


def invert(criterion: Criterion) -> Criterion:
    """Negated scores: the control that keeps what `criterion` would prune.

    Args:
      criterion: Any criterion.

    Raises:
      ValueError: If `criterion` is a constructor that was not called.

    Source: Frankle et al. 2021, arXiv:2009.08576 (1 / score would misorder signed scores).
    """
    check(criterion)

    def score(params: Params, batch: Batch, *, masks: Masks | None = None, key: Any) -> Scores:
        return jax.tree.map(jnp.negative, criterion(params, batch, masks=masks, key=key))

    return score
