"""Leaf paths, prunable selection, structure checks, and raveling over prunable leaves.

`None` stands on every leaf that is not prunable, so `jax.tree.leaves(masks)` is exactly the
prunable set under jit, vmap, scan and `nnx.State` alike. Two maps are all that is needed:
`map_prunable`, masks first, for trees that already have the `None`s; and `overlay`, params first,
for laying such a tree over one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, PyTree

from nopr.typing import Counts, Masks, Params, Shapes, Where

_POSITION_EMBEDDINGS = ("pos_embed", "position_embed", "positional_embed", "posembed")


def path_string(path: Sequence[Any]) -> str:
    """The key path of a leaf as text, such as `"params/Dense_0/kernel"`.

    A last attribute `value` is left out: it is how `nnx.Variable` and `nn.Partitioned` box an
    array, and the same leaf has one path in `nnx.state`, its pure form and `nnx.to_pure_dict`.
    """
    path = tuple(path)
    boxed = len(path) > 1 and path[-1] == GetAttrKey("value")
    return keystr(path[:-1] if boxed else path, simple=True, separator="/")


def paths(tree: PyTree) -> tuple[str, ...]:
    """The path of every leaf of `tree`, in leaf order."""
    return tuple(path_string(path) for path, _ in tree_flatten_with_path(tree)[0])


def by_path(tree: PyTree, name: str) -> dict[str, Any]:
    """The leaves of `tree` by their paths, in leaf order.

    Args:
      tree: Any pytree.
      name: What the error calls the tree.

    Raises:
      ValueError: If two leaves have one path.
    """
    found = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        where = path_string(path)
        if where in found:
            raise ValueError(f"`{name}` has two leaves at {where!r}. Rename one of them.")
        found[where] = leaf
    return found


def shapes(tree: PyTree) -> Shapes:
    """The shape of every leaf of `tree`, in leaf order."""
    return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def is_prunable(path: str, leaf: Any) -> bool:
    """The default `where`: floating leaves of two or more sides, position embeddings excepted."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or leaf.ndim < 2:
        return False
    return not any(name in path.lower() for name in _POSITION_EMBEDDINGS)


def everything(path: str, leaf: Any) -> bool:
    """A `where` that takes every floating leaf, biases and norms too."""
    del path
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


def select(params: Params, where: Where = is_prunable) -> Params:
    """Keeps the prunable leaves of `params` and puts None on all others.

    Choose before anything is stacked over seeds: a stacked bias has two sides.

    Args:
      params: The parameters.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A tree like `params`, None on each leaf that is not prunable.

    Raises:
      ValueError: If nothing is prunable.
    """
    chosen = tree_map_with_path(
        lambda path, leaf: leaf if where(path_string(path), leaf) else None, params
    )
    if not jax.tree.leaves(chosen):
        raise ValueError(
            f"No leaf of `params` is prunable, of {len(jax.tree.leaves(params))} "
            f"({_listing(paths(params))}). Pass a `where(path, leaf)` that chooses some."
        )
    return chosen


def full_masks(params: Params, where: Where = is_prunable) -> Masks:
    """Masks that keep every prunable weight of `params`."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), select(params, where))


def map_prunable(f: Callable[..., Any], masks: PyTree, *rest: PyTree) -> PyTree:
    """Maps `f` over the prunable leaves: those on which `masks` is not None.

    Args:
      f: Called with a leaf of `masks` and the leaves of `rest` at the same path.
      masks: Masks or scores; the result has its structure.
      rest: Trees like `masks`, or like the params.

    Returns:
      A tree like `masks`, None where that is None.

    Raises:
      ValueError: If a tree of `rest` lacks a prunable leaf, or has one of another shape; the
        message names it. Scalars go with every shape.
    """
    leaves, treedef = tree_flatten_with_path(masks)
    columns = [_prunable_leaves(masks, tree) for tree in rest]
    return jax.tree.unflatten(
        treedef, [f(leaf, *row) for (_, leaf), *row in zip(leaves, *columns, strict=True)]
    )


def overlay(f: Callable[[Any, Any], Any], params: Params, masks: PyTree) -> Params:
    """Maps `f(param, mask)` over the prunable leaves and keeps every other leaf of `params`.

    Raises:
      ValueError: If the trees do not match, or two leaves have one path; the message names the
        leaf.
    """
    check_matches(masks, params)
    leaves, treedef = tree_flatten_with_path(params)
    found = by_path(masks, "masks")
    values = [
        f(leaf, found[path_string(path)]) if path_string(path) in found else leaf
        for path, leaf in leaves
    ]
    return jax.tree.unflatten(treedef, values)


def check_matches(
    masks: PyTree, params: PyTree, *, name: str = "masks", other: str = "params"
) -> None:
    """Checks that every leaf of `masks` is one of `params`, of the same shape.

    Raises:
      ValueError: Naming the first leaf that is missing or of another shape, or the path that two
        leaves of one tree have.
    """
    there = by_path(params, other)
    for where, leaf in by_path(masks, name).items():
        if where not in there:
            raise ValueError(
                f"`{name}` has a leaf at {where!r} that `{other}` lacks; "
                f"`{other}` has {_listing(tuple(there))}."
            )
        if jnp.shape(leaf) != jnp.shape(there[where]):
            raise ValueError(
                f"`{name}` has shape {jnp.shape(leaf)} at {where!r}, where `{other}` has "
                f"{jnp.shape(there[where])}."
            )


def check_same(tree: PyTree, like: PyTree, *, name: str, other: str) -> None:
    """Checks that two trees have exactly the same leaves, paths and shapes.

    Raises:
      ValueError: Naming the first leaf that is missing on either side or of another shape.
    """
    check_matches(tree, like, name=name, other=other)
    check_matches(like, tree, name=other, other=name)


def ravel(tree: PyTree) -> tuple[Array, Callable[[Any], PyTree]]:
    """Joins the leaves of `tree` into one vector, in leaf order, and gives the way back.

    Unlike `jax.flatten_util.ravel_pytree` it works on bool leaves with None between, and the way
    back keeps whatever dtype the vector has.
    """
    leaves, treedef = jax.tree.flatten(tree)
    sides = [leaf.shape for leaf in leaves]
    ends = np.cumsum([math.prod(side) for side in sides])[:-1]

    def unravel(vector: Any) -> PyTree:
        pieces = jnp.split(vector, ends)
        return jax.tree.unflatten(
            treedef, [piece.reshape(side) for piece, side in zip(pieces, sides, strict=True)]
        )

    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), unravel


def largest_remainder(quotas: Sequence[float], total: int) -> Counts:
    """Rounds `quotas` to whole numbers that sum to `total`, by largest remainder.

    The floors are taken first; what is left goes to the largest fractional parts, the earlier
    first among equals.

    Raises:
      ValueError: If the quotas do not sum to `total` within half of their number.
    """
    values = np.asarray(quotas, np.float64)
    floors = np.floor(values + 1e-9).astype(np.int64)
    left = int(total) - int(floors.sum())
    if not 0 <= left <= len(values):
        raise ValueError(f"`quotas` must sum to `total` = {total}, got {values.sum()}.")
    order = np.argsort(-(values - floors), kind="stable")
    floors[order[:left]] += 1
    return tuple(int(value) for value in floors)


def _prunable_leaves(masks: PyTree, tree: PyTree) -> list[Any]:
    wanted = paths(masks)
    if jax.tree.structure(tree) == jax.tree.structure(masks):
        found = jax.tree.leaves(tree)
    else:
        there = by_path(tree, "rest")
        for path in wanted:
            if path not in there:
                raise ValueError(
                    f"The trees do not match: there is no leaf at {path!r} among "
                    f"{_listing(tuple(there))}."
                )
        found = [there[path] for path in wanted]
    for path, leaf, other in zip(wanted, jax.tree.leaves(masks), found, strict=True):
        _check_shapes(path, leaf, other)
    return found


def _check_shapes(path: str, leaf: Any, other: Any) -> None:
    one, two = (getattr(value, "shape", None) for value in (leaf, other))
    if one and two and one != two:  # neither is a scalar, nor something without a shape
        raise ValueError(
            f"The trees do not match: shape {tuple(two)} at {path!r}, where the first tree has "
            f"{tuple(one)}."
        )


def _listing(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
