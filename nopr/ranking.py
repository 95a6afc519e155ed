"""An exact number of highest scores: the search behind `masks.top`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from nopr import axes as axes_
from nopr import trees
from nopr.typing import Scope, Scores, check_choice, shown

_MANY = 1 << 15  # scores from which on the search by interpolation is faster than bisection
_SAMPLE = 512


def highest(
    leaves: list[Any], alive: list[Any] | None, counts: list[Any], *, scope: Scope
) -> tuple[list[Array], list[Array]]:
    """The highest scores of each leaf, the first among equals, and whether its scores are finite.

    The k-th highest score is found without sorting, by passes of integer comparisons on the
    order-preserving integer view of the floats: by bisection, two bits a pass (16 for float32, 32
    for float64), and among many scores by interpolation, which usually takes 4 to 8 passes. Only
    the parts are jitted: on a CPU, XLA would fuse the `concatenate` with its neighbors, and it
    would then take longer than all the rest.
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


def highest_in_groups(
    leaves: list[Any], alive: list[Any] | None, n: Any, *, m: int, axis: int
) -> tuple[list[Array], list[Array]]:
    """The n highest of each m consecutive scores along an axis, and whether they are finite."""
    orders = [[*(a for a in range(x.ndim) if a != axis % x.ndim), axis % x.ndim] for x in leaves]
    return _in_rows(leaves, alive, [n] * len(leaves), orders, [m] * len(leaves))


def highest_of_outputs(
    leaves: list[Any], alive: list[Any] | None, counts: list[Any], *, axes: Sequence[tuple]
) -> tuple[list[Array], list[Array]]:
    """The highest scores of each output, numbered by `axes` of a leaf, and whether all are finite.

    A leaf has one count for all its outputs; an output with fewer weights alive keeps all of them.
    """
    pairs = zip(leaves, axes, strict=True)
    orders = [[*outs, *others(np.ndim(leaf), outs)] for leaf, outs in pairs]
    return _in_rows(leaves, alive, counts, orders, fan_ins(leaves, axes))


def output_axes(scores: Scores, axes: Any, *, scope: Scope) -> list[tuple[int, ...]] | None:
    """The axes that number each leaf's outputs, in leaf order; None with other scopes.

    Args:
      scores: Scores, or their shapes.
      axes: The option: an axis or several, `{path: axes}`, or None for the last.
      scope: Where scores compete.

    Raises:
      ValueError: If axes are given with another scope, are no axes of a leaf, name a path that is
        not there, or are not given for a leaf of three dimensions.
    """
    check_choice("scope", scope, Scope)
    named = axes_.check(axes, argument="axes")
    if scope != "output":
        if axes is not None:
            raise ValueError(f"`axes` must be None with scope={scope!r}, got {shown(axes)}.")
        return None
    leaves = trees.by_path(scores, "scores")
    for path in named:
        if path not in leaves:
            raise ValueError(f"`axes` names {path!r}, where `scores` has no leaf.")
    role = "the axes that number its outputs"
    return [
        axes_.of_leaf(axes, path, tuple(leaf.shape), default=-1, role=role, argument="axes")
        for path, leaf in leaves.items()
    ]


def fan_ins(scores: Scores, axes: Sequence[tuple[int, ...]]) -> list[int]:
    """The number of weights of each output of a leaf, in leaf order.

    Args:
      scores: Scores, or their shapes.
      axes: The axes that number each leaf's outputs, from `output_axes`.
    """
    leaves = zip(trees.shapes(scores), axes, strict=True)
    return [math.prod(shape[axis] for axis in others(len(shape), outs)) for shape, outs in leaves]


def others(ndim: int, axes: Sequence[int]) -> list[int]:
    """The axes that are not among these."""
    return [axis for axis in range(ndim) if axis not in axes]


def _in_rows(
    leaves: list[Any],
    alive: list[Any] | None,
    counts: list[Any],
    orders: list[list[int]],
    sizes: list[int],
) -> tuple[list[Array], list[Array]]:
    """The highest of each `size` consecutive scores of a leaf whose axes are put in an order."""
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    living = [None] * len(leaves) if alive is None else alive
    choose = jax.vmap(_keep_highest, (0, 0, None))
    kept = []
    for leaf, mask, count, order, size in zip(leaves, living, counts, orders, sizes, strict=True):
        dtype = np.float64 if leaf.dtype == np.float64 else np.float32
        moved = jnp.transpose(leaf.astype(dtype), order)
        there = jnp.ones(leaf.shape, bool) if mask is None else jnp.asarray(mask)
        there = jnp.transpose(there, order).reshape(-1, size)
        chosen = choose(moved.reshape(-1, size), there, count)
        kept.append(jnp.transpose(chosen.reshape(moved.shape), np.argsort(order).tolist()))
    return kept, [_is_finite(*each) for each in zip(leaves, living, strict=True)]


@jax.jit
def _is_finite(scores: Array, alive: Array | None) -> Bool[Array, ""]:
    """Whether every score that can be chosen is finite; scores of dead weights have no meaning."""
    finite = jnp.isfinite(scores)
    return jnp.all(finite if alive is None else finite | ~alive)


@jax.jit
def _keep_highest(scores: Array, alive: Array | None, k: Any) -> Array:
    """The k highest scores among those alive, the first among equals in flat order."""
    keys = _order_key(scores).reshape(-1)
    if alive is not None:
        keys = jnp.where(alive.reshape(-1), keys, jnp.zeros_like(keys))
    k = jnp.asarray(k, jnp.int32)
    if keys.size < _MANY:
        threshold = _kth_highest(keys, k, bits=keys.dtype.itemsize * 8)
        above = keys > threshold
        equal = (keys == threshold) & (threshold > 0)
        kept = above | _first(equal, k - jnp.sum(above, dtype=jnp.int32))
    elif keys.dtype == np.uint32:
        kept = _highest_words(keys, keys > 0, k, otherwise=_first)
    else:
        # Passes over 32 bits take a third of the time, and only equal upper halves need the lower.
        upper = (keys >> np.uint64(32)).astype(np.uint32)
        by_lower = partial(_highest_words, keys.astype(np.uint32), otherwise=_first)
        kept = _highest_words(upper, keys > 0, k, otherwise=by_lower)
    return kept.reshape(scores.shape)


def _highest_words(
    words: UInt[Array, " n"],
    among: Bool[Array, " n"],
    k: Int[Array, ""],
    *,
    otherwise: Callable[..., Array],
) -> Bool[Array, " n"]:
    """The k highest of some 32-bit words, or all if there are fewer.

    Args:
      words: The words.
      among: Which of them can be chosen.
      k: How many are wanted.
      otherwise: `otherwise(equal, need)` chooses from equal words, of which some are wanted.
    """
    there = jnp.where(among, words, np.uint32(0))
    threshold, count = _separate(there, k, most=np.iinfo(np.uint32).max)
    above = there > threshold

    def with_equals() -> Array:
        return above | otherwise((there == threshold) & among, k - count)

    return jax.lax.cond(count < k, with_equals, lambda: above)


def _first(equal: Bool[Array, " n"], need: Int[Array, ""]) -> Bool[Array, " n"]:
    """The first `need` true places of `equal`, which are the highest if counted from the end."""
    n = equal.size
    from_end = np.uint32(n) - jax.lax.iota(np.uint32, n)
    places = jnp.where(equal, from_end, jnp.zeros_like(from_end))
    if n < _MANY:
        return equal & (places >= _kth_highest(places, need, bits=(n + 1).bit_length()))
    return equal & (places > _separate(places, need, most=n)[0])  # no two are equal


def _kth_highest(keys: UInt[Array, " n"], k: Int[Array, ""], *, bits: int) -> UInt[Array, ""]:
    """The largest number of `bits` bits that at least k keys reach, from its highest digit down.

    Digits are in base 4. One reduction counts all three candidates in a single pass over the keys,
    which on a CPU takes XLA less time than a pass for one candidate.
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


class _Bracket(NamedTuple):
    """Where the k-th highest key is: `low <= key <= high`."""

    low: Array
    high: Array
    reach_low: Array
    """The number of keys that reach `low`: at least k, if there are as many keys."""
    above_high: Array
    """The number of keys above `high`: less than k, or 0."""


def _separate(
    keys: UInt[Array, " n"], k: Int[Array, ""], *, most: int
) -> tuple[UInt[Array, ""], Int[Array, ""]]:
    """`_separator`, one case after another under `vmap`: together, all would wait for the slowest.

    `checkify` takes no `vmap` of a while loop either.
    """
    return jax.custom_batching.sequential_vmap(partial(_separator, most=most))(keys, k)


def _separator(
    keys: UInt[Array, " n"], k: Int[Array, ""], *, most: int
) -> tuple[UInt[Array, ""], Int[Array, ""]]:
    """A threshold below which no key is among the k highest, and the number of keys above it.

    Those above it are the k highest, or the k highest but for some that equal it. Each pass counts
    the keys that reach seven or eight candidates. The first takes quantiles of a sample, and the
    numbers after them in case many keys are equal. The others interpolate in the bracket, as if its
    keys were spread evenly, and also take its quarters, so that a bracket at least halves.

    Args:
      keys: At least `_SAMPLE` keys, none above `most`.
      k: How many are wanted.
      most: The largest possible key.
    """
    unsigned, real = keys.dtype.type, np.dtype(f"float{keys.dtype.itemsize * 8}")
    start = _Bracket(
        low=jnp.zeros((), keys.dtype),
        high=jnp.asarray(unsigned(most)),
        reach_low=jnp.int32(keys.size),
        above_high=jnp.int32(0),
    )
    sample = jnp.sort(keys[:: keys.size // _SAMPLE])
    rank = (1 - k.astype(real) / keys.size) * sample.size
    spread = math.sqrt(sample.size) / 2
    near = [
        sample[jnp.clip((rank + deviations * spread).astype(jnp.int32), 0, sample.size - 1)]
        for deviations in (-3, -1, 0, 1, 3)
    ]
    successors = [jnp.where(key == unsigned(most), key, key + unsigned(1)) for key in near[1:-1]]

    def narrow(bracket: _Bracket) -> _Bracket:
        length = bracket.high - bracket.low
        inside = jnp.maximum(bracket.reach_low - bracket.above_high, 1).astype(real)
        place = (bracket.reach_low - k).astype(real) / inside
        deviation = jnp.sqrt(place * (1 - place) / inside)
        places = [place + each * deviation for each in (-1.5, -0.5, 0.5, 1.5)]
        shares = jnp.clip(jnp.stack([*places, *map(real.type, (0.25, 0.5, 0.75))]), 0, 0.999)
        steps = (shares * length.astype(real)).astype(keys.dtype)
        candidates = bracket.low + jnp.minimum(steps, length - unsigned(1)) + unsigned(1)
        return _narrowed(bracket, keys, k, list(candidates))

    found = jax.lax.while_loop(
        lambda bracket: (bracket.low < bracket.high) & (bracket.reach_low > k),
        narrow,
        _narrowed(start, keys, k, [*near, *successors]),
    )
    below = jnp.maximum(found.low, unsigned(1)) - unsigned(1)
    exact = found.reach_low <= k  # the keys from `low` on are all that are wanted
    return (
        jnp.where(exact, below, found.low),
        jnp.where(exact, found.reach_low, found.above_high),
    )


def _narrowed(
    bracket: _Bracket, keys: UInt[Array, " n"], k: Int[Array, ""], candidates: Sequence[Array]
) -> _Bracket:
    """The part of a bracket that the counts at some candidates leave."""
    low, high, reach_low, above_high = bracket
    one = keys.dtype.type(1)
    counts = _sums([keys >= candidate for candidate in candidates])
    for candidate, count in zip(candidates, counts, strict=True):
        higher = (count >= k) & (candidate > low)
        low, reach_low = jnp.where(higher, candidate, low), jnp.where(higher, count, reach_low)
        lower = (count < k) & (low < candidate) & (candidate <= high)
        high = jnp.where(lower, candidate - one, high)
        above_high = jnp.where(lower, count, above_high)
    return _Bracket(low, high, reach_low, above_high)


def _sums(flags: Sequence[Bool[Array, " n"]]) -> Sequence[Int[Array, ""]]:
    """The number of true entries of each array, in one reduction."""
    numbers = [flag.astype(jnp.int32) for flag in flags]
    zeros = [np.int32(0)] * len(numbers)
    return jax.lax.reduce(numbers, zeros, _add, (0,))


def _add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _order_key(scores: Array) -> Array:
    """An unsigned integer with the order of the float: -0.0 equals 0.0, any NaN is highest.

    Float comparisons would flush subnormals to zero, and `x + 0.0` is optimized away, so -0.0 is
    replaced by its bits. No finite or infinite score has key 0, which marks a dead weight.
    """
    unsigned = np.dtype(f"uint{scores.dtype.itemsize * 8}")
    top_bit = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    exponent = np.array(np.inf, scores.dtype).view(unsigned)[()]
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    bits = jnp.where(bits == top_bit, jnp.zeros_like(bits), bits)
    key = jnp.where(bits >= top_bit, ~bits, bits | top_bit)
    return jnp.where((bits & ~top_bit) > exponent, jnp.full_like(key, ~unsigned.type(0)), key)
