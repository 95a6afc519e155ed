"""What is kept or removed as a whole: single weights, or whole filters and units.

A `Granularity` pools the scores of weights to one score a granule, `masks.top` chooses among
granules, and `expand` spreads the choice over the weights. Scores and masks are pooled alike:
`pool(masks)` is the share of each granule that is alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, Bool, PyTree

from nopr import trees
from nopr.typing import Masks, Scores, Where


class Granularity(NamedTuple):
    """How weights are grouped into granules that live and die together.

    Attributes:
      pool: `pool(scores) -> granule scores`: a tree like the scores with one number a granule,
        None on leaves that have no granules to choose among.
      expand: `expand(granule_masks, like) -> masks` of the weights; `like` is the tree of scores,
        which says the shapes.
      name: For records.
    """

    pool: Callable[[Scores], Scores]
    expand: Callable[[Masks, Scores], Masks]
    name: str


def unstructured() -> Granularity:
    """Every weight is a granule of its own."""

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        trees.check_same(granule_masks, like, name="granule_masks", other="like")
        return granule_masks

    return Granularity(pool=lambda scores: scores, expand=expand, name="unstructured")


def filters(where: Where | None = None) -> Granularity:
    """Whole filters: the weights that make one output of a kernel, which is its last axis.

    A granule's score is the mean of its weights' scores. What other layers read from a removed
    filter stays in place; `units` removes that too.

    Args:
      where: `where(path, leaf)`, true for the leaves that are cut by filters; the other leaves
        of the scores are kept whole. All of them by default.

    Returns:
      The granularity; pooled scores are [out] on each chosen leaf.
    """

    def pool(scores: Scores) -> Scores:
        return tree_map_with_path(
            lambda path, leaf: _pooled(leaf) if _chosen(where, path, leaf) else None, scores
        )

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        found = _by_path(granule_masks)

        def spread(path: Any, leaf: Any) -> Array:
            name = trees.path_string(path)
            if not _chosen(where, path, leaf):
                return jnp.ones(leaf.shape, bool)
            return jnp.broadcast_to(_granules(found, name, leaf), leaf.shape)

        return tree_map_with_path(spread, like)

    return Granularity(pool=pool, expand=expand, name="filters")


def units(layers: Sequence[str]) -> Granularity:
    """Whole hidden units (channels): a filter together with what the next layer reads from it.

    A unit's score is the mean of its incoming weights' scores. The outputs of the last layer are
    never removed, so the pooled scores have None there, and of its kernel only input rows go.
    From a convolution to a dense layer the flatten is channels last, as Flax does it.

    Args:
      layers: The paths of all prunable kernels in the order in which they are applied, such as
        `("layer_0/kernel", "layer_1/kernel")`. Kernels are [in, out] or [height, width, in, out].

    Returns:
      The granularity. A kernel's mask is (input kept) x (output kept); calling its functions
      raises a ValueError where the layers do not fit the scores, naming the leaf.

    Raises:
      ValueError: If `layers` has fewer than two paths: then there is no hidden unit.
    """
    layers = tuple(layers)
    if len(layers) < 2:
        raise ValueError(f"`layers` must name at least two kernels, got {list(layers)}.")

    def pool(scores: Scores) -> Scores:
        chain(scores, layers, name="scores")
        return tree_map_with_path(
            lambda path, leaf: None if trees.path_string(path) == layers[-1] else _pooled(leaf),
            scores,
        )

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        kernels = chain(like, layers, name="like")
        found = _by_path(granule_masks)
        masks, previous = {}, None
        for path, kernel in zip(layers, kernels, strict=True):
            last = path == layers[-1]
            outs = jnp.ones(kernel.shape[-1], bool) if last else _granules(found, path, kernel)
            ins = inputs_from(previous, kernel.shape)
            masks[path] = jnp.broadcast_to(ins[:, None] & outs, kernel.shape)
            previous = outs
        return tree_map_with_path(lambda path, _: masks[trees.path_string(path)], like)

    return Granularity(pool=pool, expand=expand, name="units")


def sizes(granularity: Granularity, like: PyTree) -> dict[str, int]:
    """How many granules each leaf has, by its path, in leaf order.

    Args:
      granularity: What groups the weights.
      like: Scores or masks (arrays or their shapes); leaves without granules are left out.
    """
    pooled = jax.eval_shape(granularity.pool, like)
    return {
        path: math.prod(shape)
        for path, shape in zip(trees.paths(pooled), trees.shapes(pooled), strict=True)
    }


def chain(tree: PyTree, layers: Sequence[str], *, name: str = "masks") -> list[Any]:
    """The kernels of a sequential network in the order of `layers`, after checking that they fit.

    Args:
      tree: Scores, masks or shapes: a leaf on each prunable kernel, None elsewhere.
      layers: The path of every kernel, from the input to the output.
      name: What errors call the tree.

    Returns:
      The leaves, in the order of `layers`.

    Raises:
      ValueError: If a path is not there or is there twice, a leaf is in no layer, or the shape of
        a kernel does not fit the one before it.
    """
    found = _by_path(tree)
    for path in layers:
        if path not in found:
            raise ValueError(
                f"`layers` names {path!r}, where `{name}` has no leaf; choose from {sorted(found)}."
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"`layers` must name each kernel once, got {list(layers)}.")
    for path in found:
        if path not in layers:
            raise ValueError(
                f"`{name}` has a leaf at {path!r} that is not in `layers`, {list(layers)}. Name "
                "every prunable kernel in order, or choose them by `where` when masks are made."
            )
    kernels = [found[path] for path in layers]
    for index, (path, kernel) in enumerate(zip(layers, kernels, strict=True)):
        _check_fits(path, kernel.shape, kernels[index - 1].shape if index else None)
    return kernels


def inputs_from(outs: Bool[Array, " out"] | None, shape: tuple[int, ...]) -> Bool[Array, " in"]:
    """Which inputs of a kernel are there, given the outputs of the layer before it.

    Args:
      outs: The outputs that are there; None for the input of the network: all of them.
      shape: The shape of the kernel. A dense one after a convolution has a multiple of its
        channels as inputs, and in a channels-last flatten the channel is the fastest index.
    """
    if outs is None:
        return jnp.ones(shape[-2], bool)
    return jnp.tile(outs, shape[-2] // outs.shape[0])


def _pooled(scores: Array) -> Array:
    return jnp.mean(scores, axis=tuple(range(scores.ndim - 1)))


def _chosen(where: Where | None, path: Any, leaf: Any) -> bool:
    return where is None or where(trees.path_string(path), leaf)


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {trees.path_string(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _granules(found: dict[str, Any], path: str, leaf: Any) -> Array:
    if path not in found or found[path].shape != leaf.shape[-1:]:
        got = "none" if path not in found else f"shape {found[path].shape}"
        raise ValueError(
            f"`granule_masks` must have shape {leaf.shape[-1:]} at {path!r}, one entry a filter, "
            f"got {got}."
        )
    return jnp.asarray(found[path])


def _check_fits(path: str, shape: tuple[int, ...], before: tuple[int, ...] | None) -> None:
    if len(shape) < 2:
        raise ValueError(f"A layer must be a kernel of two or more sides, got {shape} at {path!r}.")
    if before is None or shape[-2] == before[-1]:
        return
    flattened = len(before) > 2 and len(shape) == 2
    if not flattened or shape[-2] % before[-1]:
        raise ValueError(
            f"`layers` does not chain: the kernel at {path!r} has {shape[-2]} inputs, and the "
            f"layer before it has {before[-1]} outputs."
        )
