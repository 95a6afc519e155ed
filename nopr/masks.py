"""Choosing masks by score with an exact count; applying, combining and counting masks.

A mask tree has a bool array on each prunable leaf (True = kept) and None elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Int, Key, UInt

from nopr import axes as axes_
from nopr import budgets, precision, ranking, trees
from nopr.typing import (
    LayerCount,
    Masks,
    Params,
    Scope,
    Scores,
    check_flags,
    check_key,
    function_name,
    shown,
)


def top(
    scores: Scores,
    *,
    density: Any = None,
    count: Any = None,
    masks: Masks | None = None,
    scope: Scope = "global",
    axes: axes_.Axes = None,
    warn: bool = True,
) -> Masks:
    r"""Keeps exactly the `count` highest scores, even when scores tie.

    The k-th highest score is found by passes of integer comparisons on the order-preserving
    integer view of the floats, without sorting. All scores above it are kept, then the first of
    those equal to it in leaf order, so that the count is exact and the choice deterministic. Works
    under jit and vmap; `density` and `count` may be traced.

    A layer that keeps no weight cuts the network. For concrete masks, a UserWarning names the
    layers that lose their last weight, unless a 0 in `density` or `count` asked for it; under a
    trace, use `emptied`.

    Args:
      scores: Float array on each prunable leaf, None elsewhere; higher = keep.
      density: Kept fraction of *all* prunable weights, in [0, 1]; round(density * n) are kept
        (half to even). A traced float32 density rounds in float32: 0.05 of 50 is then 3, not 2;
        give `count` where that matters. Give exactly one of `density` and `count`.
      count: Number of kept weights; of an integer dtype if traced.
      masks: The weights still alive; only these can be kept. A removed weight never returns by
        tying with one that is alive.
      scope: `"global"`, all scores compete; `"layer"`, scores compete within each leaf; or
        `"output"`, scores compete among the weights of each output of a leaf. With the last two,
        `density` and `count` may also be one number per layer, as a sequence in leaf order or as
        `{path: number}`. With `"layer"`, a single count is shared in proportion to size, by largest
        remainder. With `"output"`, a count is that of each output, and a density keeps
        round(density * fan_in) weights of each; an output with fewer alive keeps all of these.
      axes: With scope `"output"`, the axes that number a leaf's outputs, or `{path: axes}`, such as
        `capture.output_axes` finds; by default, the last. They must be given for kernels of three
        dimensions.
      warn: Whether to warn of layers that lose all their weights.

    Returns:
      Masks like `scores`.

    Raises:
      ValueError: If `density` or `count` is out of range or exceeds the weights alive, the trees
        do not match, or a concrete score is NaN or infinite (the message names the leaf). Under a
        trace, scores that are not finite and a density outside [0, 1] fail a
        `checkify.debug_check`; NaN of either sign ranks highest, and a count above the number of
        weights alive keeps all of them.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> scores = {"kernel": np.array([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]]), "bias": None}
      >>> masks.top(scores, count=3)["kernel"].astype(int)  # the first of the four that tie
      Array([[1, 1, 0],
             [0, 0, 1]], dtype=int32)
    """
    leaves, treedef = jax.tree.flatten(scores)
    _check_scores(scores)
    paths = trees.paths(scores)
    alive = _alive(masks, scores)
    check_flags(warn=warn)
    outs = ranking.output_axes(scores, axes, scope=scope)
    if outs is None:
        sizes = [leaf.size for leaf in leaves]
        counts = budgets.kept(paths, sizes, alive, density=density, count=count, scope=scope)
        choose = partial(ranking.highest, scope=scope)
    else:
        sizes = ranking.fan_ins(scores, outs)
        counts = budgets.kept(paths, sizes, None, density=density, count=count, scope=scope)
        choose = partial(ranking.highest_of_outputs, axes=outs)
    if any(leaf.dtype == np.float64 for leaf in leaves):
        # float64 stays float64, even if the caller's program is in single precision.
        kept, finite = precision.in_double(choose, leaves, alive, counts)
    else:
        kept, finite = choose(leaves, alive, counts)
    _check_finite(finite, paths)
    result = jax.tree.unflatten(treedef, kept)
    if warn:
        asked = budgets.zeros(density if count is None else count, paths)
        warn_emptied(result, before=masks, expected=asked)
    return result


def n_of_m(scores: Scores, *, n: Any, m: int, axis: int = -2, masks: Masks | None = None) -> Masks:
    """Keeps exactly the `n` highest of each `m` consecutive scores along an axis.

    The choice is that of `top` in each group: the first among equals, by integer comparisons. Works
    under jit and vmap; `n` may be traced.

    Args:
      scores: Float array on each prunable leaf, None elsewhere; higher = keep.
      n: Number of kept weights in each group, from 1 to m.
      m: Size of the groups; it divides the axis of every leaf.
      axis: The axis along which the groups lie; by default, the inputs of [..., in, out].
      masks: The weights still alive; a group with fewer than n of them keeps all of these.

    Returns:
      Masks like `scores`.

    Raises:
      ValueError: If `n` or `m` is out of range, `m` does not divide the axis of a leaf, the trees
        do not match, or a concrete score is NaN or infinite; the message names the leaf.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> scores = {"kernel": np.array([[3.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0, 1.0]])}
      >>> masks.n_of_m(scores, n=2, m=4, axis=1)["kernel"].astype(int)
      Array([[1, 0, 0, 1, 1, 0, 0, 1]], dtype=int32)
    """
    leaves, treedef = jax.tree.flatten(scores)
    _check_scores(scores)
    n, m = budgets.of_group(n, m)
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise ValueError(f"`axis` must be a whole number, got {shown(axis)}.")
    paths = trees.paths(scores)
    for path, leaf in zip(paths, leaves, strict=True):
        if not -leaf.ndim <= axis < leaf.ndim or leaf.shape[axis] % m:
            raise ValueError(
                f"`m` must divide axis {axis} of the scores at {path!r}, of shape {leaf.shape}, "
                f"got {m}. Choose another axis, or leave the leaf out."
            )
    alive = _alive(masks, scores)
    choose = partial(ranking.highest_in_groups, m=m, axis=axis)
    if any(leaf.dtype == np.float64 for leaf in leaves):
        kept, finite = precision.in_double(choose, leaves, alive, n)
    else:
        kept, finite = choose(leaves, alive, n)
    _check_finite(finite, paths)
    return jax.tree.unflatten(treedef, kept)


def apply(params: Params, masks: Masks) -> Params:
    """Sets every pruned weight of `params` to 0; leaves without a mask stay as they are.

    Raises:
      ValueError: If the trees do not match or a mask is not bool; the message names the leaf.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> params = {"kernel": np.array([[0.3, -2.0], [-1.0, 0.1]]), "bias": np.zeros(2)}
      >>> scores = {"kernel": abs(params["kernel"]), "bias": None}
      >>> kept = masks.top(scores, density=0.5)
      >>> masks.apply(params, kept)["kernel"]
      Array([[ 0., -2.],
             [-1.,  0.]], dtype=float32)
    """
    if _all_bool(params) and not _all_bool(masks):
        raise ValueError(
            "`params` must hold weights, got masks in their place. Params come first: "
            "`masks.apply(params, masks)`, `train(params, masks, data, key=key)`."
        )
    check_bool(masks)
    return trees.overlay(_kept_or_0, params, masks)


def combine(*masks: Masks, rule: Callable[[Array, Array], Array] = jnp.logical_and) -> Masks:
    """Combines masks leaf by leaf; by default a weight is kept if all of them keep it.

    Args:
      *masks: One or more mask trees of the same structure.
      rule: A function that joins two bool arrays, such as `jnp.logical_or`.

    Raises:
      ValueError: If there are no masks, they do not match, or one is not bool; the message names
        the leaf.
    """
    if not masks:
        raise ValueError("`combine` needs at least one mask tree, got none.")
    result = masks[0]
    check_bool(result)
    for other in masks[1:]:
        check_bool(other)
        trees.check_same(other, result, name="masks", other="the masks before it")
        result = trees.map_prunable(rule, result, other)
        check_bool(result, name="rule(masks, others)")
    return result


def count(masks: Masks) -> Int[Array, "..."]:
    """The number of kept weights.

    Raises:
      ValueError: If a mask is not bool, or the weights are too many to be counted in int32.
    """
    check_bool(masks)
    return _kept(*jax.tree.leaves(masks))


def size(masks: Masks) -> int:
    """The number of prunable weights, kept or not; also that of a tree of scores.

    Raises:
      ValueError: If a leaf is not an array; names it.
    """
    for path, leaf in trees.by_path(masks, "masks").items():
        if not hasattr(leaf, "size"):
            raise ValueError(f"`masks` must hold arrays, got {type(leaf).__name__} at {path!r}.")
    return sum(leaf.size for leaf in jax.tree.leaves(masks))


def density(masks: Masks) -> Array:
    """Kept over prunable weights, in [0, 1]; 0 if there are none."""
    return count(masks) / max(size(masks), 1)


def by_layer(masks: Masks) -> dict[str, LayerCount]:
    """Kept count, size and density of each prunable leaf, by its path, in leaf order.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> kept = {"a": {"kernel": np.eye(4, dtype=bool)}, "b": {"kernel": np.ones((4, 1), bool)}}
      >>> for path, layer in masks.by_layer(kept).items():
      ...     print(f"{path}: {layer.kept} of {layer.size}, density {layer.density}")
      a/kernel: 4 of 16, density 0.25
      b/kernel: 4 of 4, density 1.0
    """
    check_bool(masks)
    leaves = trees.by_path(masks, "masks")
    kept = {path: _kept(leaf) for path, leaf in leaves.items()}
    return {
        p: LayerCount(kept[p], leaf.size, kept[p] / max(leaf.size, 1)) for p, leaf in leaves.items()
    }


def emptied(masks: Masks) -> dict[str, Bool[Array, ""]]:
    """Whether each prunable leaf has lost all its weights, by its path, in leaf order.

    Works under jit and vmap, where no warning is possible; `jnp.stack(list(flags.values())).any()`
    flags a network that is cut.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> kept = {"a": {"kernel": np.eye(4, dtype=bool)}, "b": {"kernel": np.zeros((4, 1), bool)}}
      >>> [path for path, flag in masks.emptied(kept).items() if flag]
      ['b/kernel']
    """
    check_bool(masks)
    return {
        path: ~jnp.any(jnp.asarray(leaf)) & (leaf.size > 0)
        for path, leaf in trees.by_path(masks, "masks").items()
    }


def warn_emptied(
    masks: Masks, *, before: Masks | None = None, expected: Iterable[str] = ()
) -> None:
    """Warns by name of the layers that have lost all their weights; does nothing under a trace.

    Args:
      masks: The masks.
      before: The masks from which these were chosen; layers already empty in them are not reported.
      expected: Paths of layers that were meant to be emptied.
    """
    if any(map(_traced, jax.tree.leaves((masks, before)))):
        return
    with jax.ensure_compile_time_eval():  # the masks may be constants inside a trace
        lost = emptied(masks)
        known = {} if before is None else emptied(before)
    names = [
        repr(path)
        for path, flag in lost.items()
        if flag and not known.get(path) and path not in expected
    ]
    if names:
        warnings.warn(
            f"No weight is kept in {', '.join(names)}; a kernel without weights cuts the network. "
            "Keep more, leave such layers out by `where`, or give each layer a count.",
            stacklevel=3,
        )


def check_bool(masks: Masks, *, name: str = "masks") -> None:
    """Checks that every leaf of a mask tree is bool.

    Raises:
      ValueError: If a leaf is not bool, or two leaves have the same path; the message names it.
    """
    for path, leaf in trees.by_path(masks, name).items():
        if getattr(leaf, "dtype", None) != np.dtype(bool):
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"`{name}` must be bool, got {found} at {path!r}. Make masks with `masks.top`."
            )


def shuffle(masks: Masks, *, key: Key[Array, ""]) -> Masks:
    """Shuffles each mask within its layer: the control that preserves only the layers' densities.

    Source: Frankle et al. 2021, arXiv:2009.08576.
    """
    check_bool(masks)
    check_key(key)
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(k, leaf.reshape(-1)).reshape(leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


def pack(masks: Masks) -> UInt[Array, " words"]:
    """Packs masks into one vector of 32-bit words: weight i is bit i % 32 of word i // 32.

    Masks of the same structure are equal exactly if their words are, so many of them can be grouped
    cheaply.
    """
    check_bool(masks)
    bits, _ = trees.ravel(masks)
    padded = jnp.pad(bits, (0, -bits.size % 32)).reshape(-1, 32).astype(jnp.uint32)
    return jnp.sum(padded << jnp.arange(32, dtype=jnp.uint32)[None, :], axis=1, dtype=jnp.uint32)


def _kept_or_0(leaf: Any, kept: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return jnp.where(kept, leaf, jnp.zeros((), leaf.dtype))


def _kept(*leaves: Any) -> Int[Array, ""]:
    size = sum(leaf.size for leaf in leaves)
    if size > budgets.MOST:
        raise ValueError(
            f"At most {budgets.MOST} weights can be counted together, got {size}. Count layer by "
            "layer: `masks.by_layer`."
        )
    return sum((jnp.sum(leaf, dtype=jnp.int32) for leaf in leaves), jnp.int32(0))


def _all_bool(tree: Any) -> bool:
    kinds = {getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(tree)}
    return kinds == {np.dtype(bool)}


def _alive(masks: Masks | None, scores: Scores) -> list[Array] | None:
    """The leaves of masks that restrict a choice, checked against the scores."""
    if masks is None:
        return None
    trees.check_same(masks, scores, name="masks", other="scores")
    check_bool(masks)
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(masks)]


def _check_scores(scores: Scores) -> None:
    leaves = trees.by_path(scores, "scores")
    if not leaves:
        raise ValueError("`scores` has no leaf, so nothing is prunable. Check `where`.")
    for path, leaf in leaves.items():
        if callable(leaf):
            raise ValueError(
                f"`scores` must be a tree of arrays, got the function `{function_name(leaf)}`. "
                "Call the criterion: `criterion(params, batch, key=key)`."
            )
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            found = type(leaf).__name__ if dtype is None else dtype
            raise ValueError(f"`scores` must be floating, got {found} at {path!r}.")


def _check_finite(finite: Sequence[Array], paths: Sequence[str]) -> None:
    for path, flag in zip(paths, finite, strict=True):
        message = f"`scores` has NaN or infinite values at {path!r}"
        if _traced(flag):
            checkify.debug_check(flag, message + ".")
        elif not bool(flag):
            raise ValueError(f"{message}. Check the weights and the loss that were scored.")


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
