"""Criteria built from other criteria; scores in float64 stay in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr import precision, sweeps, trees
from nopr.criteria.shared import alive, check, filter_sums, map_filters, summed, wide
from nopr.typing import (
    Axes,
    Batch,
    Criterion,
    Masks,
    Params,
    Scores,
    check_axes,
    check_flags,
    check_key,
    whole_number,
)


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
        scores = _scores(criterion, params, batch, masks, key)
        return jax.tree.map(jnp.negative, scores)

    return score


def shuffle(criterion: Criterion) -> Criterion:
    """Scores permuted at random within each layer: the control that keeps only their distribution.

    With `scope="global"`, each layer keeps as many weights as with `criterion`, and `key` decides
    which. Only the scores of living weights are permuted, among themselves. Over several rounds,
    each shuffles anew; `masks.shuffle` shuffles final masks.

    Args:
      criterion: Any criterion.

    Raises:
      ValueError: If `criterion` is a constructor that was not called.

    Source: Frankle et al. 2021, arXiv:2009.08576.
    """
    check(criterion)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Key[Array, ""]
    ) -> Scores:
        check_key(key)
        score_key, shuffle_key = jax.random.split(key)
        scores = _scores(criterion, params, batch, masks, score_key)
        living, treedef = jax.tree.flatten(alive(masks, scores))
        keys = jax.random.split(shuffle_key, len(living))
        permutations = [_permutation(*pair) for pair in zip(living, keys, strict=True)]
        return jax.tree.map(_permuted, scores, jax.tree.unflatten(treedef, permutations))

    return score


def normalize(criterion: Criterion) -> Criterion:
    r"""Scores relative to their layer, :math:`s_i / \sum_j |s_j|` over its living weights.

    Layers then compete by shares of their own total, whatever the scale of their scores. Scores of
    a layer in which all are 0 stay 0.

    Args:
      criterion: Any criterion.

    Returns:
      A criterion whose scores are at least float32, and 0 for weights that are not alive.

    Raises:
      ValueError: If `criterion` is a constructor that was not called.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> params = {"a": jnp.array([[3.0, -1.0]]), "b": jnp.array([[300.0, 500.0]])}
      >>> criteria.normalize(criteria.magnitude())(params, None, key=None)
      {'a': Array([[0.75, 0.25]], dtype=float32), 'b': Array([[0.375, 0.625]], dtype=float32)}
    """
    check(criterion)

    def score(params: Params, batch: Batch, *, masks: Masks | None = None, key: Any) -> Scores:
        scores = _scores(criterion, params, batch, masks, key)
        return jax.tree.map(_own_precision(_share), scores, alive(masks, scores))

    return score


def by_filter(criterion: Criterion, *, axes: Axes = None) -> Criterion:
    """Scores of filters: the sum over a filter's living weights, given to each of its weights.

    `granularity.filters` takes the mean of scores over a filter, which is this sum over its size;
    through `by_filter`, filters compete by their sums, so that a
    large filter counts for more. `by_filter(taylor(loss))` is the estimate of Molchanov et al.
    2019, arXiv:1906.10771; `by_filter(magnitude())` is `filter_l1()`.

    Args:
      criterion: Any criterion.
      axes: The axes that number a kernel's filters, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.

    Returns:
      A criterion whose scores are at least float32.

    Raises:
      ValueError: If `criterion` is a constructor that was not called.
    """
    check(criterion)
    check_axes(axes, argument="axes")

    def score(params: Params, batch: Batch, *, masks: Masks | None = None, key: Any) -> Scores:
        scores = _scores(criterion, params, batch, masks, key)

        def sums(outs: tuple[int, ...], leaf: Any, living: Any) -> Array:
            def total(leaf: Any, living: Any) -> Array:
                return filter_sums(outs, jnp.where(living, leaf, 0))

            return _own_precision(total)(leaf, living)

        return map_filters(sums, axes, scores, alive(masks, scores))

    return score


def average(criterion: Criterion, *, keys: int | None = None, stacked: bool = False) -> Criterion:
    """The mean of the scores over several keys, or over several batches.

    Give one of `keys` and `stacked`; `average(average(c, keys=5), stacked=True)` does both. With
    `stacked=True`, scores are computed from single batches and then averaged, whereas
    `snip(loss, stacked=True)` and the like sum the gradients before scoring.

    Args:
      criterion: Any criterion; one that does not itself expect `stacked` batches.
      keys: The number of keys, split from the key of the call.
      stacked: Whether the batch holds several batches, along an extra leading axis, over which the
        scores are averaged; each is scored with a key of its own, unless the key is None.

    Returns:
      A criterion whose scores are at least float32. It raises a ValueError if the batch does not
      have the leading axis.

    Raises:
      ValueError: If `criterion` is a constructor that was not called, `keys` is not a whole number
        from 1 up, or not exactly one of `keys` and `stacked` is given.
    """
    check(criterion)
    check_flags(stacked=stacked)
    if (keys is None) != bool(stacked):
        given = "both" if stacked else "neither"
        raise ValueError(
            f"`average` needs one of `keys` and `stacked=True`, got {given}. For both, average an "
            "average."
        )
    count = None if keys is None else whole_number("keys", keys)

    def score(params: Params, batch: Batch, *, masks: Masks | None = None, key: Any) -> Scores:
        n = sweeps.case_count(batch, name="batch") if count is None else count
        if key is not None or not stacked:
            check_key(key)
        each = None if key is None else jax.random.split(key, n)

        def one(x: tuple[Any, Any]) -> Scores:
            key, part = x
            scores = _scores(criterion, params, part if stacked else batch, masks, key)
            return jax.tree.map(wide, scores)

        xs = (each, batch if stacked else None)
        like = jax.eval_shape(lambda xs: one(jax.tree.map(lambda leaf: leaf[0], xs)), xs)
        zeros = precision.in_double(
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        )
        total = summed(one, xs, zeros)
        return jax.tree.map(_own_precision(lambda leaf: leaf / n), total)

    return score


def _scores(
    criterion: Criterion, params: Params, batch: Batch, masks: Masks | None, key: Any
) -> Scores:
    """The scores of a criterion, checked to be floating arrays."""
    scores = criterion(params, batch, masks=masks, key=key)
    for path, leaf in trees.by_path(scores, "scores").items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            found = type(leaf).__name__ if dtype is None else dtype
            raise ValueError(f"`scores` must be floating, got {found} at {path!r}. Cast them.")
    return scores


def _own_precision(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of scores and other arrays, in double precision where the scores are.

    Moving, negating and adding up float64 needs no such care; arithmetic with float32 truncates it.
    """

    def of_leaf(leaf: Any, *others: Any) -> Array:
        if leaf.dtype != np.float64:
            return function(leaf, *others)
        return precision.in_double(function, leaf, *others)

    return of_leaf


def _share(scores: Any, living: Any) -> Array:
    there = jnp.where(living, wide(scores), 0)
    _, exponent = jnp.frexp(jnp.max(jnp.abs(there), initial=0))
    there = jnp.ldexp(there, -exponent)  # exact, and the sum cannot overflow
    total = jnp.sum(jnp.abs(there))
    return there / jnp.where(total == 0, 1, total)


def _permutation(living: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
    """The places of a layer, living ones first, and the places at random, living ones first."""
    dead = ~jnp.asarray(living).reshape(-1)
    order = jax.random.permutation(key, dead.size)
    return jnp.argsort(dead, stable=True), order[jnp.argsort(dead[order], stable=True)]


def _permuted(scores: Any, permutation: tuple[Array, Array]) -> Array:
    to, source = permutation
    flat = jnp.asarray(scores).reshape(-1)
    return flat.at[to].set(flat[source]).reshape(scores.shape)
