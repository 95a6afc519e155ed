"""The record of a granularity, and the checks that all of them share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from nopr import masks as masks_
from nopr import trees
from nopr.typing import Masks, Scores, function_name, shown


class Granularity(NamedTuple):
    """How weights are grouped into granules that are kept or removed together.

    Attributes:
      pool: `pool(scores) -> granule scores`: a tree like the scores with one number per granule,
        None on leaves that have no granules to choose among.
      expand: `expand(granule_masks, like) -> masks` of the weights; `like` is the tree of scores,
        which gives the shapes.
      name: The name used in records.
    """

    pool: Callable[[Scores], Scores]
    expand: Callable[[Masks, Scores], Masks]
    name: str


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
        raise ValueError(
            f"`granularity` must be a Granularity, got {found}. Call a constructor: "
            "`granularity.filters(outputs=...)`."
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


def pooled(scores: Any) -> Array:
    """The mean score of each filter of a kernel."""
    return jnp.mean(scores, axis=tuple(range(scores.ndim - 1)))


def check_known(path: str, known: Iterable[str], *, argument: str, name: str) -> None:
    """Checks that a path that an argument names is one of a tree's.

    Raises:
      ValueError: If it is not; the message has the nearest path.
    """
    known = list(known)
    if path not in known:
        nearest = difflib.get_close_matches(path, known, n=1, cutoff=0)
        hint = f"The nearest of its paths is {nearest[0]!r}." if nearest else "It has no leaves."
        raise ValueError(f"`{argument}` names {path!r}, where `{name}` has no leaf. {hint}")


def granules(found: dict[str, Any], path: str, leaf: Any) -> Array:
    """The granule mask of a leaf, checked to have one entry per filter."""
    if path not in found or found[path].shape != leaf.shape[-1:]:
        got = "none" if path not in found else f"shape {found[path].shape}"
        raise ValueError(
            f"`granule_masks` must have shape {leaf.shape[-1:]} at {path!r}, one entry per filter, "
            f"got {got}."
        )
    return jnp.asarray(found[path])
