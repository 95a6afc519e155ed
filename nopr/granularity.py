"""The groups of weights that are kept or removed together: single weights, filters or units.

A `Granularity` pools the scores of weights into one score per granule, `masks.top` chooses among
granules, and `expand` spreads the choice over the weights. Masks are pooled like scores:
`pool(masks)` is the fraction of each granule that is alive. The outputs of a network are never
removed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, Bool, PyTree

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
    """

    pool: Callable[[Scores], Scores]
    expand: Callable[[Masks, Scores], Masks]
    name: str


def unstructured() -> Granularity:
    """Single weights: each is its own granule."""

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        masks_.check_bool(granule_masks, name="granule_masks")
        trees.check_same(granule_masks, like, name="granule_masks", other="like")
        return granule_masks

    return Granularity(pool=lambda scores: scores, expand=expand, name="unstructured")


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
    whole = _paths((outputs,) if isinstance(outputs, str) else outputs, argument="outputs")

    def cut(scores: Scores) -> dict[str, Any]:
        """The leaves that are pruned by filters."""
        known = [
            trees.path_string(path)
            for path, _ in tree_flatten_with_path(scores, is_leaf=lambda leaf: leaf is None)[0]
        ]
        for path in whole:
            _check_known(path, known, argument="outputs", name="scores")
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
            lambda path, leaf: _pooled(leaf) if trees.path_string(path) in chosen else None, scores
        )

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        chosen, found = cut(like), _masks_by_path(granule_masks)

        def spread(path: Any, leaf: Any) -> Array:
            name = trees.path_string(path)
            if name not in chosen:
                return jnp.ones(leaf.shape, bool)
            return jnp.broadcast_to(_granules(found, name, leaf), leaf.shape)

        return tree_map_with_path(spread, like)

    return Granularity(pool=pool, expand=expand, name="filters")


def units(layers: Sequence[str]) -> Granularity:
    """Whole hidden units (channels): a filter and the next layer's weights that read from it.

    A unit's score is the mean of its incoming weights' scores. The outputs of the last layer are
    never removed: the pooled scores have None there, and its kernel loses only input rows. A
    flatten between a convolution and a dense layer is channels-last, as in Flax. Kernels are
    [in, out] or [height, width, in, out].

    Args:
      layers: The paths of all prunable kernels in the order in which they are applied, such as
        `("layer_0/kernel", "layer_1/kernel")`.

    Returns:
      The granularity. A kernel's mask is (input kept) x (output kept). Its functions raise a
      ValueError that names the leaf if the layers do not fit the scores. A path through the
      network breaks only where a layer loses all its units; `masks.top` warns of that.

    Raises:
      ValueError: If `layers` has fewer than two paths, so that there are no hidden units.
    """
    layers = _paths(layers, argument="layers")
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
        found = _masks_by_path(granule_masks)
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


def chain(tree: PyTree, layers: Sequence[str], *, name: str = "masks") -> list[Any]:
    """The kernels of a sequential network in the order of `layers`, checked to fit together.

    Args:
      tree: Scores, masks or shapes: a leaf on each prunable kernel, None elsewhere.
      layers: The path of every kernel, from the input to the output.
      name: The name of the tree in errors.

    Returns:
      The leaves, in the order of `layers`.

    Raises:
      ValueError: If a path is missing or occurs twice, a leaf belongs to no layer, or the shape of
        a kernel does not fit the one before it.
    """
    found, layers = trees.by_path(tree, name), _paths(layers, argument="layers")
    if not layers:
        raise ValueError("`layers` must name at least one kernel, got none.")
    for path in layers:
        _check_known(path, found, argument="layers", name=name)
    if len(set(layers)) < len(layers):
        raise ValueError(f"`layers` must name each kernel once, got {list(layers)}.")
    for path in found:
        if path not in layers:
            raise ValueError(
                f"`{name}` has a leaf at {path!r} that is not in `layers`, {list(layers)}. Name "
                "every prunable kernel in order, or choose them with `where` when making masks."
            )
    kernels = [found[path] for path in layers]
    shapes = [np.shape(kernel) for kernel in kernels]
    for index, (path, shape) in enumerate(zip(layers, shapes, strict=True)):
        _check_fits(path, shape, shapes[index - 1] if index else None)
    return kernels


def inputs_from(outs: Bool[Array, " out"] | None, shape: tuple[int, ...]) -> Bool[Array, " in"]:
    """The inputs of a kernel that are present, given the outputs of the layer before it.

    Args:
      outs: The outputs that are present; None for the input of the network, which is whole.
      shape: The shape of the kernel. A dense kernel after a convolution has a multiple of its
        channels as inputs; in a channels-last flatten the channel is the fastest index.
    """
    if outs is None:
        return jnp.ones(shape[-2], bool)
    return jnp.tile(outs, shape[-2] // outs.shape[0])


def _paths(given: Any, *, argument: str) -> tuple[str, ...]:
    """The paths of an argument, checked to be a sequence of text."""
    if not isinstance(given, Sequence) or not all(isinstance(path, str) for path in given):
        raise ValueError(f"`{argument}` must be a sequence of paths, got {shown(given)}.")
    if isinstance(given, str):
        raise ValueError(f"`{argument}` must be a sequence of paths, got {given!r}. Put it in [].")
    return tuple(given)


def _masks_by_path(granule_masks: Masks) -> dict[str, Any]:
    masks_.check_bool(granule_masks, name="granule_masks")
    return trees.by_path(granule_masks, "granule_masks")


def _pooled(scores: Any) -> Array:
    return jnp.mean(scores, axis=tuple(range(scores.ndim - 1)))


def _check_known(path: str, known: Iterable[str], *, argument: str, name: str) -> None:
    known = list(known)
    if path not in known:
        nearest = difflib.get_close_matches(path, known, n=1, cutoff=0)
        hint = f"The nearest of its paths is {nearest[0]!r}." if nearest else "It has no leaves."
        raise ValueError(f"`{argument}` names {path!r}, where `{name}` has no leaf. {hint}")


def _granules(found: dict[str, Any], path: str, leaf: Any) -> Array:
    if path not in found or found[path].shape != leaf.shape[-1:]:
        got = "none" if path not in found else f"shape {found[path].shape}"
        raise ValueError(
            f"`granule_masks` must have shape {leaf.shape[-1:]} at {path!r}, one entry per filter, "
            f"got {got}."
        )
    return jnp.asarray(found[path])


def _check_fits(path: str, shape: tuple[int, ...], before: tuple[int, ...] | None) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"A layer must be a kernel of two or more dimensions, got {shape} at {path!r}."
        )
    if before is None or shape[-2] == before[-1]:
        return
    flattened = len(before) > 2 and len(shape) == 2
    if not flattened or shape[-2] % before[-1]:
        raise ValueError(
            f"`layers` must fit together, but the kernel at {path!r} has {shape[-2]} inputs, and "
            f"the layer before it has {before[-1]} outputs. Name every kernel, in order."
        )
