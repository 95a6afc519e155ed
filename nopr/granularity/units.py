"""Whole hidden units of a sequential network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Bool, PyTree

from nopr import axes as axes_
from nopr import trees
from nopr.granularity.shared import Granularity, granules, masks_by_path, paths
from nopr.typing import Masks, Scores


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
    layers = paths(layers, argument="layers")
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
        found = masks_by_path(granule_masks)
        masks, previous = {}, None
        for path, kernel in zip(layers, kernels, strict=True):
            last = path == layers[-1]
            outs = (
                jnp.ones(kernel.shape[-1], bool)
                if last
                else granules(found, path, kernel.shape[-1:])
            )
            ins = inputs_from(previous, kernel.shape)
            masks[path] = jnp.broadcast_to(ins[:, None] & outs, kernel.shape)
            previous = outs
        return tree_map_with_path(lambda path, _: masks[trees.path_string(path)], like)

    return Granularity(pool=pool, expand=expand, name="units")


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
    found, layers = trees.by_path(tree, name), paths(layers, argument="layers")
    if not layers:
        raise ValueError("`layers` must name at least one kernel, got none.")
    for path in layers:
        axes_.check_known(path, found, argument="layers", name=name)
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


def _pooled(scores: Any) -> Array:
    """The mean score of each filter of a kernel."""
    return jnp.mean(scores, axis=tuple(range(scores.ndim - 1)))


def _check_fits(path: str, shape: tuple[int, ...], before: tuple[int, ...] | None) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(
            f"A layer must be a kernel [in, out] or [height, width, in, out], got {shape} at "
            f"{path!r}. Attention and other layers cannot be followed from unit to unit."
        )
    if before is None or shape[-2] == before[-1]:
        return
    flattened = len(before) > 2 and len(shape) == 2
    if not flattened or shape[-2] % before[-1]:
        raise ValueError(
            f"`layers` must fit together, but the kernel at {path!r} has {shape[-2]} inputs, and "
            f"the layer before it has {before[-1]} outputs. Name every kernel, in order; grouped "
            "and depthwise convolutions and shortcuts cannot be followed."
        )
