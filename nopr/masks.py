"""Choosing masks by score with an exact count, applying, combining and counting them.

A mask tree has a bool array on each prunable leaf (True = kept) and None elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Int, Key, UInt

from nopr import precision, trees
from nopr.typing import LayerCount, Masks, Params, Scope, Scores

_ROW = 4096  # ties among more weights than this are counted in rows, which needs no long cumsum


def top(
    scores: Scores,
    *,
    density: Any = None,
    count: Any = None,
    within: Masks | None = None,
    scope: Scope = "global",
) -> Masks:
    r"""Keeps exactly the `count` highest scores, whatever the ties.

    The k-th highest score is found by bisection on the order-preserving integer view of the
    floats: 32 passes of integer compares (64 for float64), no sort. All above it are kept, then
    the first among its equals in leaf order, so that the count is exact and the choice
    deterministic. Works under jit and vmap; `density` and `count` may be traced.

    Args:
      scores: Float array on each prunable leaf, None elsewhere; higher = keep.
      density: Kept fraction of *all* prunable weights, in [0, 1]; round(density * n) are kept
        (half to even). Give this or `count`.
      count: How many weights are kept. With `scope="layer"` also a sequence of one count a leaf;
        a single count is then shared in proportion to size, by largest remainder.
      within: Masks of the weights still alive; only these can be kept. A removed weight never
        comes back by tying with a live one.
      scope: `"global"`: all scores compete; `"layer"`: those of one leaf.

    Returns:
      Masks like `scores`.

    Raises:
      ValueError: If `density` or `count` is out of range, more is asked for than is alive, the
        trees do not match, or a concrete score is NaN or infinite (the message names the leaf).
        Under a trace the last is a `checkify.debug_check`, and NaN of either sign ranks highest;
        a count that passes the living weights keeps just these.
    """
    leaves, treedef = jax.tree.flatten(scores)
    _check_floating(leaves, trees.paths(scores))
    if within is not None:
        trees.check_same(within, scores, name="within", other="scores")
    alive = None if within is None else [jnp.asarray(leaf) for leaf in jax.tree.leaves(within)]
    counts = _counts(leaves, alive, density=density, count=count, scope=scope)
    choose = partial(_choose, scope=scope)
    if any(leaf.dtype == np.float64 for leaf in leaves):
        # float64 stays float64, even where the caller's program is in single precision.
        kept, finite = precision.in_double(choose, leaves, alive, counts)
    else:
        kept, finite = choose(leaves, alive, counts)
    _check_finite(finite, trees.paths(scores))
    return jax.tree.unflatten(treedef, kept)


def apply(masks: Masks, params: Params) -> Params:
    """Sets every pruned weight of `params` to 0; leaves without a mask stay as they are.

    Raises:
      ValueError: If the trees do not match; the message names the leaf.
    """
    return trees.overlay(lambda leaf, kept: jnp.where(kept, leaf, 0), params, masks)


def combine(*masks: Masks, rule: Callable[[Array, Array], Array] = jnp.logical_and) -> Masks:
    """Joins masks leaf by leaf: by default a weight is kept where all of them keep it.

    Args:
      *masks: One mask tree or more, of the same structure.
      rule: Joins two bool arrays, such as `jnp.logical_or`.

    Raises:
      ValueError: If there is none, or they do not match; the message names the leaf.
    """
    if not masks:
        raise ValueError("`combine` needs at least one mask tree, got none.")
    result = masks[0]
    for other in masks[1:]:
        trees.check_same(other, result, name="masks", other="the masks before it")
        result = trees.map_prunable(rule, result, other)
    return result


def count(masks: Masks) -> Int[Array, "..."]:
    """The number of kept weights."""
    return sum((jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(masks)), jnp.int32(0))


def size(masks: Masks) -> int:
    """The number of prunable weights, kept or not."""
    return sum(leaf.size for leaf in jax.tree.leaves(masks))


def density(masks: Masks) -> Array:
    """Kept over prunable weights, in [0, 1]."""
    return count(masks) / size(masks)


def by_layer(masks: Masks) -> dict[str, LayerCount]:
    """Kept count, size and density of each prunable leaf, by its path, in leaf order."""
    kept = [jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(masks)]
    return {
        path: LayerCount(k, leaf.size, k / leaf.size)
        for path, leaf, k in zip(trees.paths(masks), jax.tree.leaves(masks), kept, strict=True)
    }


def shuffle(masks: Masks, *, key: Key[Array, ""]) -> Masks:
    """Shuffles each mask within its layer: the control that keeps only the layers' densities.

    Source: Frankle et al. 2021, arXiv:2009.08576.
    """
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(k, leaf.reshape(-1)).reshape(leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


def pack(masks: Masks) -> UInt[Array, " words"]:
    """The masks as one vector of 32-bit words: weight i is bit i % 32 of word i // 32.

    Two masks of one structure are equal exactly where their words are, which makes grouping many
    of them cheap.
    """
    bits, _ = trees.ravel(masks)
    padded = jnp.pad(bits, (0, -bits.size % 32)).reshape(-1, 32).astype(jnp.uint32)
    return jnp.sum(padded << jnp.arange(32, dtype=jnp.uint32)[None, :], axis=1, dtype=jnp.uint32)


def _choose(
    leaves: list[Any], alive: list[Any] | None, counts: list[Any], *, scope: Scope
) -> tuple[list[Array], list[Array]]:
    """The masks of the leaves, and for each whether its scores are finite."""
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = np.float64 if any(leaf.dtype == np.float64 for leaf in leaves) else np.float32
    keys = [_order_key(leaf, dtype) for leaf in leaves]
    if alive is not None:
        keys = [
            jnp.where(mask, key, jnp.zeros_like(key)) for key, mask in zip(keys, alive, strict=True)
        ]
    if scope == "global":
        joined, unravel = trees.ravel(keys)
        kept = unravel(_keep_highest(joined, counts[0]))
    else:
        kept = [
            _keep_highest(key.reshape(-1), k).reshape(key.shape)
            for key, k in zip(keys, counts, strict=True)
        ]
    return kept, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]


@jax.jit
def _keep_highest(keys: UInt[Array, " n"], k: Any) -> Bool[Array, " n"]:
    """The k highest keys, the first among equals; keys of 0 are dead and never kept."""
    threshold = _kth_highest(keys, k)
    above = keys > threshold
    equal = (keys == threshold) & (threshold > 0)
    return above | _first(equal, k - jnp.sum(above, dtype=jnp.int32))


def _kth_highest(keys: UInt[Array, " n"], k: Int[Array, ""]) -> UInt[Array, ""]:
    """The largest t that at least k keys reach, built from its highest bit down."""
    width = keys.dtype.itemsize * 8
    one = keys.dtype.type(1)

    def set_bit(i: Any, threshold: Array) -> Array:
        candidate = threshold | (one << (width - 1 - i).astype(keys.dtype))
        reached = jnp.sum(keys >= candidate, dtype=jnp.int32)
        return jnp.where(reached >= k, candidate, threshold)

    return jax.lax.fori_loop(0, width, set_bit, jnp.zeros((), keys.dtype))


def _first(equal: Bool[Array, " n"], need: Int[Array, ""]) -> Bool[Array, " n"]:
    """The first `need` true places of `equal`."""
    if equal.size <= _ROW:
        return equal & (jnp.cumsum(equal, dtype=jnp.int32) <= need)
    rows = jnp.pad(equal, (0, -equal.size % _ROW)).reshape(-1, _ROW)
    in_row = jnp.sum(rows, axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(in_row, dtype=jnp.int32)
    last = jax.lax.argmax(ends >= need, 0, jnp.int32)  # the row in which the need is met
    left = need - (ends[last] - in_row[last])
    partial_row = rows[last] & (jnp.cumsum(rows[last], dtype=jnp.int32) <= left)
    place = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None]
    chosen = jnp.where(place == last, partial_row[None, :], rows & (place < last))
    return chosen.reshape(-1)[: equal.size]


def _order_key(scores: Array, dtype: Any) -> Array:
    """An unsigned integer with the order of the float: -0.0 equals 0.0, any NaN is highest.

    Float compares would flush subnormals to zero, and `x + 0.0` is optimised away; so the zero is
    folded on the bits. No finite or infinite score has key 0, which marks a dead weight.
    """
    unsigned = np.dtype(f"uint{np.dtype(dtype).itemsize * 8}")
    top_bit = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    exponent = np.array(np.inf, dtype).view(unsigned)[()]
    ones = ~unsigned.type(0)
    bits = jax.lax.bitcast_convert_type(jnp.asarray(scores).astype(dtype), unsigned)
    bits = jnp.where(bits == top_bit, jnp.zeros_like(bits), bits)
    key = jnp.where(bits >= top_bit, ~bits, bits | top_bit)
    return jnp.where((bits & ~top_bit) > exponent, jnp.full_like(key, ones), key)


def _counts(
    leaves: Sequence[Any],
    alive: Sequence[Array] | None,
    *,
    density: Any,
    count: Any,
    scope: Scope,
) -> list[Any]:
    """Kept counts: one for the whole network, or one a leaf."""
    sizes = [leaf.size for leaf in leaves]
    if scope not in ("global", "layer"):
        raise ValueError(f"`scope` must be one of 'global', 'layer', got {scope!r}.")
    if (density is None) == (count is None):
        raise ValueError(
            f"Give exactly one of `density` and `count`, got density={density}, count={count}."
        )
    total = _total(density, sum(sizes)) if count is None else count
    if scope == "layer" and np.ndim(total) == 0:
        wanted = _share(total, sizes)
    else:
        wanted = list(total) if np.ndim(total) else [total]
    rooms = sizes if alive is None else [jnp.sum(mask, dtype=jnp.int32) for mask in alive]
    if scope == "global":
        rooms = [sum(rooms)]
    if len(wanted) != len(rooms):
        raise ValueError(
            f"`count` must be one number{f' or {len(rooms)}' if scope == 'layer' else ''} with "
            f"scope={scope!r}, got {len(wanted)}."
        )
    return [_checked_count(k, room) for k, room in zip(wanted, rooms, strict=True)]


def _total(density: Any, n: int) -> Any:
    if _traced(density):
        # float32 cannot hold a product past 2**24.
        return precision.in_double(
            lambda d: jnp.rint(d.astype(jnp.float64) * float(n)).astype(jnp.int32), density
        )
    if np.ndim(density) or not 0 <= float(density) <= 1:
        raise ValueError(f"`density` must be in [0, 1], got {density}.")
    return round(float(density) * n)


def _share(total: Any, sizes: Sequence[int]) -> list[Any]:
    """`total` shared in proportion to `sizes` by largest remainder; may be traced."""
    n = sum(sizes)
    if not _traced(total):
        share = max(0, min(int(total), n))  # out of range is refused by the caller
        counts = trees.largest_remainder([share * side / n for side in sizes], share)
        return list(counts) if share == int(total) else [total] * len(sizes)
    return precision.in_double(partial(_share_traced, sizes=np.asarray(sizes, np.int64)), total)


def _share_traced(total: Array, *, sizes: np.ndarray) -> list[Array]:
    total = total.astype(jnp.int64)
    products, n = total * sizes, sizes.sum()
    floors, remainders = products // n, products % n
    order = jnp.argsort(-remainders, stable=True)
    rank = jnp.zeros(len(sizes), jnp.int64).at[order].set(np.arange(len(sizes)))
    extra = rank < total - jnp.sum(floors)
    return [k.astype(jnp.int32) for k in floors + extra.astype(jnp.int64)]


def _checked_count(k: Any, room: Any) -> Any:
    if _traced(k) or _traced(room):
        return jnp.clip(k, 0, room).astype(jnp.int32)
    value = np.asarray(k)
    if value != np.rint(value) or not 0 <= value <= int(room):
        raise ValueError(
            f"`count` must be a whole number from 0 to {int(room)}, the weights alive, got {k}."
        )
    return np.int32(value)


def _check_floating(leaves: Sequence[Any], paths: Sequence[str]) -> None:
    if not leaves:
        raise ValueError("`scores` has no leaf: nothing is prunable.")
    for path, leaf in zip(paths, leaves, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"`scores` must be floating, got {leaf.dtype} at {path!r}.")


def _check_finite(finite: Sequence[Array], paths: Sequence[str]) -> None:
    for path, flag in zip(paths, finite, strict=True):
        message = f"`scores` has NaN or infinite values at {path!r}"
        if _traced(flag):
            checkify.debug_check(flag, message + ".")
        elif not bool(flag):
            raise ValueError(f"{message}. Check the weights and the loss that were scored.")


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
