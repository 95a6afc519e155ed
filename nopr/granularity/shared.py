"""The record of a granularity, and the checks that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, PyTree

from nopr import axes as axes_
from nopr import masks as masks_
from nopr import trees
from nopr.typing import Masks, Scores, Where, function_name, shown


class Granularity(NamedTuple):
    """How weights are grouped into granules that are kept or removed together.

    Attributes:
      pool: `pool(scores) -> granule scores`: a tree like the scores with one number per granule,
        None on leaves that have no granules to choose among.
      expand: `expand(granule_masks, like) -> masks` of the weights; `like` is the tree of scores,
        which gives the shapes.
      name: The name used in records.
      n_of_m: (n, m) where the choice is not by a count in all, but of n of each m granules along
        the last axis of the pooled scores.
    """

    pool: Callable[[Scores], Scores]
    expand: Callable[[Masks, Scores], Masks]
    name: str
    n_of_m: tuple[int, int] | None = None


class Layout(NamedTuple):
    """How the weights of one leaf form granules.

    Attributes:
      split: The shape of the leaf, with some axes split in two.
      axes: The axes of `split` that number the granules, in the order of the pooled shape. The
        weights along the other axes form a granule.
    """

    split: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the pooled scores."""
        return tuple(self.split[axis] for axis in self.axes)

    @property
    def within(self) -> tuple[int, ...]:
        """The axes along which the weights of a granule lie."""
        return tuple(axis for axis in range(len(self.split)) if axis not in self.axes)

    def pool(self, leaf: Any) -> Array:
        """The mean of each granule."""
        array = jnp.reshape(leaf, self.split)
        means = jnp.mean(array, axis=self.within) if self.within else array
        return jnp.transpose(means, [sorted(self.axes).index(axis) for axis in self.axes])

    def expand(self, granules: Any, shape: tuple[int, ...]) -> Array:
        """Spreads one entry per granule over its weights."""
        ordered = jnp.transpose(granules, np.argsort(self.axes).tolist())
        spread = jnp.broadcast_to(jnp.expand_dims(ordered, self.within), self.split)
        return jnp.reshape(spread, shape)


def grouped(
    layout: Callable[[str, tuple[int, ...]], Layout],
    *,
    name: str,
    granule: str,
    where: Where | None,
    whole: Sequence[str] = (),
    named: Mapping[str, Iterable[str]] | None = None,
    n_of_m: tuple[int, int] | None = None,
) -> Granularity:
    """A granularity in which the granules of each leaf are given by its layout.

    Args:
      layout: `layout(path, shape)`; raises a ValueError that names the path if a leaf does not fit.
      name: The name used in records.
      granule: What a granule is called in errors.
      where: `where(path, leaf)`, true for the leaves that are pruned; None for all.
      whole: The paths of leaves that are kept whole.
      named: The paths that each argument names, which the scores must have.
      n_of_m: (n, m) of N:M.
    """

    def cut(scores: Scores) -> dict[str, Layout]:
        """The layouts of the leaves that are pruned."""
        known = [
            trees.path_string(path)
            for path, _ in tree_flatten_with_path(scores, is_leaf=lambda leaf: leaf is None)[0]
        ]
        for argument, wanted in (named or {}).items():
            for path in wanted:
                axes_.check_known(path, known, argument=argument, name="scores")
        leaves = trees.by_path(scores, "scores")
        for path, leaf in leaves.items():
            if not hasattr(leaf, "shape"):
                found = type(leaf).__name__
                raise ValueError(f"`scores` must hold arrays, got a {found} at {path!r}.")
        return {
            path: layout(path, tuple(leaf.shape))
            for path, leaf in leaves.items()
            if path not in whole and (where is None or where(path, leaf))
        }

    def pool(scores: Scores) -> Scores:
        chosen = cut(scores)

        def pooled(path: Any, leaf: Any) -> Array | None:
            found = chosen.get(trees.path_string(path))
            return None if found is None else found.pool(leaf)

        return tree_map_with_path(pooled, scores)

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        chosen, masks = cut(like), masks_by_path(granule_masks)

        def spread(path: Any, leaf: Any) -> Array:
            place = trees.path_string(path)
            if place not in chosen:
                return jnp.ones(leaf.shape, bool)
            shape = chosen[place].shape
            one = granules(masks, place, shape, granule=granule)
            return chosen[place].expand(one, tuple(leaf.shape))

        return tree_map_with_path(spread, like)

    return Granularity(pool=pool, expand=expand, name=name, n_of_m=n_of_m)


def sizes(granularity: Granularity, like: PyTree) -> dict[str, int]:
    """The number of granules of each leaf, by its path, in leaf order.

    Args:
      granularity: The grouping of the weights.
      like: Scores or masks (arrays or their shapes); leaves without granules are left out.
    """
    check(granularity)
    trees.by_path(like, "like")
    pooled = trees.by_path(jax.eval_shape(granularity.pool, like), "like")
    return {path: math.prod(leaf.shape) for path, leaf in pooled.items()}


def check(granularity: Granularity) -> None:
    """Checks that an argument is a granularity, and not a constructor that was not called.

    Raises:
      ValueError: If it is something else.
    """
    if not isinstance(granularity, Granularity):
        found = function_name(granularity) if callable(granularity) else shown(granularity)
        made = found if callable(granularity) else "filters"
        raise ValueError(
            f"`granularity` must be a Granularity, got {found}. Call a constructor: "
            f"`granularity.{made}(...)`."
        )


def paths(given: Any, *, argument: str) -> tuple[str, ...]:
    """The paths of an argument, checked to be a sequence of text."""
    if not isinstance(given, Sequence) or not all(isinstance(path, str) for path in given):
        raise ValueError(f"`{argument}` must be a sequence of paths, got {shown(given)}.")
    if isinstance(given, str):
        raise ValueError(f"`{argument}` must be a sequence of paths, got {given!r}. Put it in [].")
    return tuple(given)


def masks_by_path(granule_masks: Masks) -> dict[str, Any]:
    """Granule masks by path, checked to be bool."""
    masks_.check_bool(granule_masks, name="granule_masks")
    return trees.by_path(granule_masks, "granule_masks")


def granules(
    found: dict[str, Any], path: str, shape: tuple[int, ...], *, granule: str = "filter"
) -> Array:
    """The granule mask of a leaf, checked to have one entry per granule."""
    if path not in found or found[path].shape != shape:
        got = "none" if path not in found else f"shape {found[path].shape}"
        raise ValueError(
            f"`granule_masks` must have shape {shape} at {path!r}, one entry per {granule}, got "
            f"{got}."
        )
    return jnp.asarray(found[path])
