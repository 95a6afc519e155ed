"""Whole filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array

from nopr import trees
from nopr.granularity.shared import Granularity, check_known, granules, masks_by_path, paths, pooled
from nopr.typing import Masks, Scores, Where


def filters(*, outputs: Sequence[str] | None = None, where: Where | None = None) -> Granularity:
    """Whole filters: the weights that compute one output of a kernel, its last axis.

    A granule's score is the mean of its weights' scores. The weights of other layers that read
    from a removed filter stay in place; `units` removes them too. Kernels are [..., in, out], as in
    Flax and Haiku; transpose weights of Equinox or PyTorch, which are [out, in, ...], first.

    Args:
      outputs: The paths of the kernels that compute the network's outputs; an empty sequence if
        there are none. They are kept whole: to remove one of their filters is to remove a class.
      where: `where(path, leaf)`, true for the leaves that are pruned by filters; the other leaves
        of the scores are kept whole. By default, all but the outputs are pruned.

    Returns:
      The granularity; pooled scores are [out] on each leaf that is pruned. Its functions raise a
      ValueError if the scores lack a path of `outputs`; the message has the nearest path.

    Raises:
      ValueError: If `outputs` is not given.

    Example:
      >>> import numpy as np
      >>> from nopr import granularity
      >>> scores = {"body": np.array([[1.0, 3.0], [1.0, 4.0]]), "head": np.ones((2, 10))}
      >>> granularity.filters(outputs=["head"]).pool(scores)
      {'body': Array([1. , 3.5], dtype=float32), 'head': None}
    """
    if outputs is None:
        raise ValueError(
            "`outputs` must name the kernels that compute the network's outputs, which are kept "
            'whole, got None. Pass their paths, such as `outputs=["params/head/kernel"]`, or '
            "`outputs=[]` if there are none."
        )
    whole = paths((outputs,) if isinstance(outputs, str) else outputs, argument="outputs")

    def cut(scores: Scores) -> dict[str, Any]:
        """The leaves that are pruned by filters."""
        known = [
            trees.path_string(path)
            for path, _ in tree_flatten_with_path(scores, is_leaf=lambda leaf: leaf is None)[0]
        ]
        for path in whole:
            check_known(path, known, argument="outputs", name="scores")
        leaves = trees.by_path(scores, "scores")
        for path, leaf in leaves.items():
            if not hasattr(leaf, "shape"):
                found = type(leaf).__name__
                raise ValueError(f"`scores` must hold arrays, got a {found} at {path!r}.")
        return {
            path: leaf
            for path, leaf in leaves.items()
            if path not in whole and (where is None or where(path, leaf))
        }

    def pool(scores: Scores) -> Scores:
        chosen = cut(scores)
        return tree_map_with_path(
            lambda path, leaf: pooled(leaf) if trees.path_string(path) in chosen else None, scores
        )

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        chosen, found = cut(like), masks_by_path(granule_masks)

        def spread(path: Any, leaf: Any) -> Array:
            name = trees.path_string(path)
            if name not in chosen:
                return jnp.ones(leaf.shape, bool)
            return jnp.broadcast_to(granules(found, name, leaf), leaf.shape)

        return tree_map_with_path(spread, like)

    return Granularity(pool=pool, expand=expand, name="filters")
