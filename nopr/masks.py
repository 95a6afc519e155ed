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
    floats: passes of integer compares, two bits each (16 for float32, 32 for float64), no sort.
    All above it are kept, then the first among its equals in leaf order, so that the count is
    exact and the choice deterministic. Works under jit and vmap; `density` and `count` may be
    traced.

    Args:
      scores: Float array on each prunable leaf, None elsewhere; higher = keep.
      density: Kept fraction of *all* prunable weights, in [0, 1]; round(density * n) are kept
        (half to even). A traced float32 density rounds as float32 does: 0.05 of 50 is then 3, not
        2; give `count` where that matters. Give this or `count`.
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

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> scores = {"kernel": np.array([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]]), "bias": None}
      >>> masks.top(scores, count=3)["kernel"].astype(int)  # the first of the four that tie
      Array([[1, 1, 0],
             [0, 0, 1]], dtype=int32)
    """
    leaves, treedef = jax.tree.flatten(scores)
    _check_floating(leaves, trees.paths(scores))
    if within is not None:
        trees.check_same(within, scores, name="within", other="scores")
        check_bool(within, name="within")
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
      ValueError: If the trees do not match or a mask is not bool; the message names the leaf.

    Example:
      >>> import numpy as np
      >>> from nopr import masks
      >>> params = {"kernel": np.array([[0.3, -2.0], [-1.0, 0.1]]), "bias": np.zeros(2)}
      >>> scores = {"kernel": abs(params["kernel"]), "bias": None}
      >>> kept = masks.top(scores, density=0.5)
      >>> masks.apply(kept, params)["kernel"]
      Array([[ 0., -2.],
             [-1.,  0.]], dtype=float32)
    """
    check_bool(masks)
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
    kept = [jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(masks)]
    return {
        path: LayerCount(k, leaf.size, k / leaf.size)
        for path, leaf, k in zip(trees.paths(masks), jax.tree.leaves(masks), kept, strict=True)
    }


def check_bool(masks: Masks, *, name: str = "masks") -> None:
    """Checks that every leaf of a mask tree is bool.

    Raises:
      ValueError: Naming the first leaf that is not.
    """
    for path, leaf in zip(trees.paths(masks), jax.tree.leaves(masks), strict=True):
        if getattr(leaf, "dtype", None) != np.dtype(bool):
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"`{name}` must be bool, got {found} at {path!r}. Were the arguments swapped?"
            )


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
    """The masks of the leaves, and for each whether its scores are finite.

    Only the parts are jitted: a `concatenate` that XLA's CPU fuses with what is around it takes
    longer than all the rest.
    """
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = np.float64 if any(leaf.dtype == np.float64 for leaf in leaves) else np.float32
    scores = [leaf.astype(dtype) for leaf in leaves]
    if scope == "global":
        joined, unravel = trees.ravel(scores)
        living = None if alive is None else trees.ravel(alive)[0]
        kept: list[Array] = unravel(_keep_highest(joined, living, counts[0]))
    else:
        living = [None] * len(scores) if alive is None else alive
        kept = [_keep_highest(*each) for each in zip(scores, living, counts, strict=True)]
    living = [None] * len(leaves) if alive is None else alive
    return kept, [_is_finite(*each) for each in zip(leaves, living, strict=True)]


@jax.jit
def _is_finite(scores: Array, alive: Array | None) -> Bool[Array, ""]:
    """Whether every score that can be chosen is finite; those of dead weights mean nothing."""
    finite = jnp.isfinite(scores)
    return jnp.all(finite if alive is None else finite | ~alive)


@jax.jit
def _keep_highest(scores: Array, alive: Array | None, k: Any) -> Array:
    """The k highest scores among those alive, the first among equals in flat order."""
    keys = _order_key(scores).reshape(-1)
    if alive is not None:
        keys = jnp.where(alive.reshape(-1), keys, jnp.zeros_like(keys))
    threshold = _kth_highest(keys, k, bits=keys.dtype.itemsize * 8)
    above = keys > threshold
    equal = (keys == threshold) & (threshold > 0)
    kept = above | _first(equal, k - jnp.sum(above, dtype=jnp.int32))
    return kept.reshape(scores.shape)


def _first(equal: Bool[Array, " n"], need: Int[Array, ""]) -> Bool[Array, " n"]:
    """The first `need` true places of `equal`: the highest, counted from the end."""
    n = equal.size
    from_end = np.uint32(n) - jax.lax.iota(np.uint32, n)
    places = jnp.where(equal, from_end, jnp.zeros_like(from_end))
    return equal & (places >= _kth_highest(places, need, bits=(n + 1).bit_length()))


def _kth_highest(keys: UInt[Array, " n"], k: Int[Array, ""], *, bits: int) -> UInt[Array, ""]:
    """The largest number of `bits` bits that at least k keys reach, from its highest digit down.

    The digits are in base 4. One reduction counts for all three candidates in a single pass over
    the keys, which takes XLA's CPU less time than one for a single candidate.
    """
    unsigned = keys.dtype.type
    digits = -(-bits // 2)

    def set_digit(i: Any, threshold: Array) -> Array:
        shift = (2 * (digits - 1 - i)).astype(keys.dtype)
        candidates = [threshold | (unsigned(digit) << shift) for digit in (1, 2, 3)]
        reached = _sums([keys >= candidate for candidate in candidates])
        digit = sum(((count >= k).astype(keys.dtype) for count in reached), unsigned(0))
        return threshold | (digit << shift)

    return jax.lax.fori_loop(0, digits, set_digit, jnp.zeros((), keys.dtype))


def _sums(flags: Sequence[Bool[Array, " n"]]) -> Sequence[Int[Array, ""]]:
    """How many of each are true, in one reduction."""
    numbers = [flag.astype(jnp.int32) for flag in flags]
    zeros = [np.int32(0)] * len(numbers)
    return jax.lax.reduce(numbers, zeros, _add, (0,))


def _add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _order_key(scores: Array) -> Array:
    """An unsigned integer with the order of the float: -0.0 equals 0.0, any NaN is highest.

    Float compares would flush subnormals to zero, and `x + 0.0` is optimised away; so the zero is
    folded on the bits. No finite or infinite score has key 0, which marks a dead weight.
    """
    unsigned = np.dtype(f"uint{scores.dtype.itemsize * 8}")
    top_bit = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    exponent = np.array(np.inf, scores.dtype).view(unsigned)[()]
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    bits = jnp.where(bits == top_bit, jnp.zeros_like(bits), bits)
    key = jnp.where(bits >= top_bit, ~bits, bits | top_bit)
    return jnp.where((bits & ~top_bit) > exponent, jnp.full_like(key, ~unsigned.type(0)), key)


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
    elif alive is not None and np.ndim(total) == 0:
        wanted = _fit(wanted, rooms)
    if len(wanted) != len(rooms):
        raise ValueError(
            f"`count` must be one number{f' or {len(rooms)}' if scope == 'layer' else ''} with "
            f"scope={scope!r}, got {len(wanted)}."
        )
    asked = "`count`" if density is None else f"`density` {density} of {sum(sizes)} weights"
    return [_checked_count(k, room, asked) for k, room in zip(wanted, rooms, strict=True)]


def _total(density: Any, n: int) -> Any:
    if _traced(density):
        # float32 cannot hold a product past 2**24.
        return precision.in_double(
            lambda d: jnp.rint(d.astype(jnp.float64) * float(n)).astype(jnp.int32), density
        )
    number = isinstance(density, int | float | np.number | Array | np.ndarray)
    if not number or isinstance(density, bool) or np.ndim(density) or not 0 <= density <= 1:
        raise ValueError(f"`density` must be in [0, 1], got {density!r}.")
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


def _fit(wanted: Sequence[Any], rooms: Sequence[Any]) -> list[Any]:
    """Moves what a layer has no room for to the first layers that have; the sum stays."""
    rooms = [room if _traced(room) else int(room) for room in rooms]
    least = jnp.minimum if any(map(_traced, (*wanted, *rooms))) else min
    counts = [least(k, room) for k, room in zip(wanted, rooms, strict=True)]
    left = sum(wanted) - sum(counts)
    for i, room in enumerate(rooms):
        extra = least(left, room - counts[i])
        counts[i], left = counts[i] + extra, left - extra
    counts[0] = counts[0] + left  # more than is alive: refused, or clipped under a trace
    return counts


def _checked_count(k: Any, room: Any, asked: str) -> Any:
    if _traced(k) or _traced(room):
        return jnp.clip(k, 0, room).astype(jnp.int32)
    value = np.asarray(k)
    if value != np.rint(value) or not 0 <= value <= int(room):
        raise ValueError(
            f"{asked} must be a whole number from 0 to {int(room)}, the weights alive, got {k}."
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
