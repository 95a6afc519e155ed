"""Criteria that score filters: the weights with one index on the last axis, as Flax orders it.

The scores have the shape of the weights, and all weights of a filter have its score, so that these
criteria serve every consumer of scores. To prune filters, give the pruner
`granularity=granularity.filters(outputs=...)` (or `units`), whose mean over a filter returns its
score to rounding. Transpose weights that are [out, in, ...], as in Equinox and PyTorch, first, or
give `axes`, as for attention and 1-D convolutions, whose shape does not show their filters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import trees
from nopr.criteria.shared import (
    as_matrix,
    filter_sums,
    from_matrix,
    living,
    of_filters,
    wide,
)
from nopr.typing import Axes, Batch, Criterion, Masks, Params, Scores, Where, shown


def filter_l1(*, where: Where = trees.is_prunable, axes: Axes = None) -> Criterion:
    r"""The sum of the magnitudes of a filter's weights, :math:`\sum_{s \in S} |w_s|`.

    It grows with the size of the filters, so the paper prunes each layer on its own
    (`scope="layer"`); over the network, `granularity.filters` with `magnitude` compares means.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
      axes: The axes that number a kernel's filters, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.

    Returns:
      A criterion whose scores are at least float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nopr import criteria, granularity, pruning
      >>> body = jnp.array([[3.0, 1.0, -2.0], [0.0, 1.0, 3.0]])
      >>> params = {"body": body, "head": jnp.ones((3, 2))}
      >>> criteria.filter_l1()(params, None)["body"]
      Array([[3., 2., 5.],
             [3., 2., 5.]], dtype=float32)
      >>> filters = granularity.filters(outputs=["head"])
      >>> prune = pruning.pruner(criteria.filter_l1(), granularity=filters)
      >>> prune(params, None, count=2, key=jax.random.key(0))["body"].astype(int)
      Array([[1, 0, 1],
             [1, 0, 1]], dtype=int32)

    Source: Li et al. 2017, arXiv:1608.08710.
    """
    return of_filters(lambda outs, w, _: filter_sums(outs, jnp.abs(wide(w))), where, axes)


def filter_l2(*, where: Where = trees.is_prunable, axes: Axes = None) -> Criterion:
    r"""The Euclidean norm of a filter, :math:`\big( \sum_{s \in S} w_s^2 \big)^{1/2}`.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
      axes: The axes that number a kernel's filters, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.

    Returns:
      A criterion whose scores are at least float32.

    Source: compared with the sum of magnitudes by Li et al. 2017, arXiv:1608.08710.
    """

    def norm(outs: tuple[int, ...], weights: Any, _: Any) -> Array:
        return jnp.sqrt(filter_sums(outs, jnp.square(wide(weights))))

    return of_filters(norm, where, axes)


def fpgm(*, where: Where = trees.is_prunable, axes: Axes = None) -> Criterion:
    r"""Distance of a filter from the others of its layer, :math:`\sum_j \|F_i - F_j\|_2`.

    The sum is smallest for the filter nearest to the geometric median of the layer, which the
    others can best replace; so it is removed first, whatever its norm. The sum is over the filters
    with any weight alive: filters that were removed whole no longer count, and pruned weights of
    the others are 0. Sums grow with the number and the size of filters; compare them within a layer
    (`scope="layer"`), as the paper does.

    The distances are differences, not inner products, so near duplicates are told apart; a layer of
    n filters takes n passes over its weights.

    Args:
      where: `where(path, leaf)`, true for a prunable leaf.
      axes: The axes that number a kernel's filters, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.

    Returns:
      A criterion whose scores are at least float32.

    Source: He et al. 2019, filter pruning via geometric median, arXiv:1811.00250.
    """
    return of_filters(_distances, where, axes)


def batch_norm_scale(scales: Mapping[str, str]) -> Criterion:
    r"""The magnitude :math:`|\gamma|` of the scale that a normalization layer gives to a filter.

    Networks trained with an L1 penalty on their scales drive those of needless filters to 0. Scales
    of different layers are comparable, so they compete over the network.

    Args:
      scales: For each kernel that is scored, by path, the path of the scale of the normalization
        layer after it, such as `{"params/Conv_0/kernel": "params/BatchNorm_0/scale"}`; a scale has
        one entry per filter. Other leaves get no scores and no masks, and stay whole.

    Returns:
      A criterion that raises a ValueError if the params lack one of the paths, or a scale has
      another shape; the message names the path.

    Raises:
      ValueError: If `scales` is not a mapping of paths to paths, or is empty.

    Source: Liu et al. 2017, network slimming, arXiv:1708.06519.
    """
    pairs = dict(scales) if isinstance(scales, Mapping) else {}
    if not pairs or not all(isinstance(path, str) for pair in pairs.items() for path in pair):
        raise ValueError(
            "`scales` must map paths of kernels to paths of scales, such as "
            f'{{"params/Conv_0/kernel": "params/BatchNorm_0/scale"}}, got {shown(scales)}.'
        )

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del batch, key
        leaves = trees.by_path(params, "params")
        for kernel, scale in pairs.items():
            _check_pair(kernel, scale, leaves)
        weights = living(params, masks, lambda path, leaf: path in pairs)
        found = [
            jnp.broadcast_to(jnp.abs(leaves[pairs[path]]), leaf.shape)
            for path, leaf in trees.by_path(weights, "params").items()
        ]
        return jax.tree.unflatten(jax.tree.structure(weights), found)

    return score


def _distances(outs: tuple[int, ...], weights: Any, alive: Any) -> Array:
    """The sum of a filter's distances to the others that are alive, for each of its weights."""
    filters = as_matrix(outs, wide(weights)).T
    there = jnp.any(as_matrix(outs, alive), axis=0)

    def to_others(one: Array) -> Array:
        distances = jnp.sqrt(jnp.sum(jnp.square(filters - one[None, :]), axis=1))
        return jnp.sum(jnp.where(there, distances, 0))

    scores = jax.lax.map(to_others, filters)
    return from_matrix(outs, jnp.broadcast_to(scores, filters.T.shape), weights.shape)


def _check_pair(kernel: str, scale: str, leaves: Mapping[str, Any]) -> None:
    for path in (kernel, scale):
        if path not in leaves:
            nearest = difflib.get_close_matches(path, leaves, n=1, cutoff=0)
            hint = (
                f"The nearest of its paths is {nearest[0]!r}." if nearest else "It has no leaves."
            )
            raise ValueError(f"`scales` names {path!r}, where `params` has no leaf. {hint}")
    shapes = [getattr(leaves[path], "shape", ()) for path in (kernel, scale)]
    if not shapes[0] or shapes[1] != shapes[0][-1:]:
        raise ValueError(
            f"`scales` must name a scale with one entry per filter, got shape {shapes[1]} at "
            f"{scale!r} for the kernel of shape {shapes[0]} at {kernel!r}."
        )
