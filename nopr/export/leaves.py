"""Trees as arrays by path, and arrays by path as trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from nopr import masks as masks_module
from nopr import trees
from nopr.typing import Masks, Params, shown

MOST_PARTS = 100  # of a path, as dicts that are nested deeper end the recursion of others

Arrays = dict[str, np.ndarray]
"""Arrays by the path of their leaf, in leaf order."""


class Pruned(NamedTuple):
    """Pruned params as they are read from a file.

    Attributes:
      params: Every leaf, 0 where pruned.
      masks: Masks of the leaves that have one; None elsewhere, or left out without `like`.
    """

    params: Params
    masks: Masks


def mask_arrays(masks: Masks) -> Arrays:
    """The masks by path.

    Raises:
      ValueError: If a leaf is not bool or traced, two have the same path, or there is none.
    """
    masks_module.check_bool(masks)
    found = _arrays(masks, "masks")
    if not found:
        raise ValueError("`masks` must have a leaf, got none. Make masks with `masks.top`.")
    return found


def pruned_arrays(params: Params, masks: Masks) -> tuple[Arrays, Arrays]:
    """The params and the masks by path.

    Raises:
      ValueError: If the trees do not match, a leaf is no array of numbers or traced, a mask is not
        bool, two leaves have the same path, or there is no mask.
    """
    kept = mask_arrays(masks)
    trees.check_matches(masks, params)
    return _arrays(params, "params"), kept


def check_like(shapes: Mapping[str, tuple[int, ...]], like: PyTree) -> dict[str, Any]:
    """Checks that a tree has every leaf of a file, with the same shape, and returns it by path.

    Raises:
      ValueError: If it does not, or two of its leaves have the same path.
    """
    there = trees.by_path(like, "like")
    for path, shape in shapes.items():
        if path not in there:
            raise ValueError(f"`like` must have every leaf of the file, got none at {path!r}.")
        if np.shape(there[path]) != shape:
            found = np.shape(there[path])
            raise ValueError(
                f"`like` must match the file, got shape {found} at {path!r}, where the file has "
                f"{shape}."
            )
    return there


def check_params(found: Mapping[str, Any], like: PyTree) -> None:
    """Checks that a tree has the leaves of a file, with the same shapes and dtypes.

    Args:
      found: The leaves of the file by path, as arrays or shapes.
      like: The tree; leaves that have no dtype fit each.

    Raises:
      ValueError: If it does not; the message names the first leaf.
    """
    there = check_like({path: leaf.shape for path, leaf in found.items()}, like)
    for path, leaf in there.items():
        if path not in found:
            raise ValueError(
                f"`like` must have no other leaves than the file, got one at {path!r}."
            )
        dtype, expected = getattr(leaf, "dtype", None), np.dtype(found[path].dtype).name
        if dtype is not None and dtype.name != expected:
            raise ValueError(
                f"`like` must match the file, got {dtype.name} at {path!r}, where the file has "
                f"{expected}. Convert the params once they are loaded."
            )


def as_tree(found: Mapping[str, Any], like: PyTree) -> PyTree:
    """Leaves by path as a tree like another, with None where there is none; nested without `like`.

    Raises:
      ValueError: If there is no `like`, and a leaf is at the path of another's folder or a path
        has more than 100 parts.
    """
    if like is None:
        return _nested(found)
    return jax.tree.unflatten(
        jax.tree.structure(like), [found.get(path) for path in trees.paths(like)]
    )


def _nested(found: Mapping[str, Any]) -> PyTree:
    """Nested dicts by the parts of the paths; the array itself where its path is empty."""
    if list(found) == [""]:
        return found[""]
    root: dict[str, Any] = {}
    for path, leaf in found.items():
        *folders, name = path.split("/", MOST_PARTS - 1)
        if "/" in name:
            raise ValueError(
                f"`like` must be given for a path of more than {MOST_PARTS} parts, got None for "
                f"{shown(path)}. Give a tree with the leaves of the file."
            )
        place = root
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or name in place:
            raise ValueError(
                f"`like` must be given for a file with a leaf at {path!r} and one above or below "
                "it, got None. Give a tree with its leaves."
            )
        place[name] = leaf
    return root


def _arrays(tree: PyTree, name: str) -> Arrays:
    """The leaves of a tree by path, as arrays of NumPy."""
    found = {}
    for path, leaf in trees.by_path(tree, name).items():
        if isinstance(leaf, jax.core.Tracer):
            raise ValueError(
                f"`{name}` must hold values to be saved, got a traced array at {path!r}. Save "
                "outside of `jit`, `vmap` and `grad`."
            )
        if not _is_text(path):
            raise ValueError(f"`{name}` must have paths of text, got {path!r}. Rename this leaf.")
        try:
            found[path] = np.asarray(trees.numbers(leaf, name))
        except ValueError as error:
            raise ValueError(f"{error} It is at {path!r}.") from None
    return found


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
