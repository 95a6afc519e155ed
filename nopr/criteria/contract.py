"""The contract of criteria, as a check for those of your own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr import trees
from nopr.criteria.shared import check
from nopr.typing import Batch, Criterion, Params, check_key


def check_contract(
    criterion: Criterion, params: Params, batch: Batch, *, key: Key[Array, ""]
) -> None:
    """Checks, by calling it, that a criterion keeps the promises pruners and sweeps rely on.

    The scores are floating and finite, one for each weight of the leaves that it scores. They work
    under jit, are the same under vmap, and the same without masks as with masks that keep every
    weight. Scores of kept weights do not depend on the values of pruned ones; this promise is easy
    to break, so apply the masks before anything else.

    Args:
      criterion: The criterion.
      params: Params of a small network; the check prunes every other weight of them.
      batch: A batch for it.
      key: Key for the criterion.

    Raises:
      ValueError: If a promise is broken; the message names it and the leaf.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nopr import criteria, trees
      >>> def careless(params, batch, *, masks=None, key):
      ...     return jax.tree.map(lambda w: jnp.abs(w) / jnp.sum(jnp.abs(w)), trees.select(params))
      >>> params = {"kernel": jnp.arange(1.0, 7.0).reshape(3, 2)}
      >>> criteria.check_contract(careless, params, None, key=jax.random.key(0))
      Traceback (most recent call last):
        ...
      ValueError: Pruned weights influence the scores of the others, at 'kernel'.
      Apply the masks before anything else: `masks.apply(params, masks)`.
    """
    check(criterion)
    check_key(key)
    trees.by_path(params, "params")
    alone = jax.jit(lambda params: criterion(params, batch, key=key))(params)
    trees.check_matches(alone, params, name="scores")
    for path, leaf in trees.by_path(alone, "scores").items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"The scores must be floating, got {leaf.dtype} at {path!r}. Cast them."
            )
        if not jnp.isfinite(leaf).all():
            raise ValueError(
                f"The scores must be finite, got NaN or infinity at {path!r}. Guard divisions, "
                "roots and logarithms of 0."
            )
    full = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), alone)
    half = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0, alone)
    other = trees.overlay(lambda w, kept: jnp.where(kept, w, 7 - 2 * w), params, half)

    @jax.jit
    def compiled(params: Params, masks: Any) -> Any:
        return jax.vmap(lambda key: criterion(params, batch, masks=masks, key=key))(key[None])

    broken = "The scores are not the same under vmap with masks that keep every weight"
    remedy = "Take all randomness from `key`; True in the masks means kept."
    _check(alone, compiled(params, full), full, f"{broken}, {{}}. {remedy}", tolerance=1e-3)
    broken = "Pruned weights influence the scores of the others"
    remedy = "Apply the masks before anything else: `masks.apply(params, masks)`."
    _check(compiled(params, half), compiled(other, half), half, f"{broken}, {{}}. {remedy}")


def _check(one: Any, two: Any, masks: Any, message: str, *, tolerance: float = 0.0) -> None:
    """Checks that two trees of scores agree on kept weights, to a fraction of the largest."""
    leaves = zip(trees.paths(masks), *map(jax.tree.leaves, (one, two, masks)), strict=True)
    for path, *scores, kept in leaves:
        a, b = (np.reshape(leaf, kept.shape)[kept] for leaf in scores)
        if not np.allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max(initial=0)):
            raise ValueError(message.format(f"at {path!r}"))
