"""An exact number of highest scores: the bisection behind `masks.top`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from nopr import trees
from nopr.typing import Scope


def highest(
    leaves: list[Any], alive: list[Any] | None, counts: list[Any], *, scope: Scope
) -> tuple[list[Array], list[Array]]:
    """The highest scores of each leaf, the first among equals, and whether its scores are finite.

    The k-th highest score is found by bisection on the order-preserving integer view of the
    floats: passes of integer comparisons, two bits each (16 for float32, 32 for float64), without
    sorting. Only the parts are jitted: on a CPU, XLA would fuse the `concatenate` with its
    neighbors, and it would then take longer than all the rest.
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
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    living = [None] * len(leaves) if alive is None else alive
    choose = jax.vmap(_keep_highest, (0, 0, None))
    kept = []
    for leaf, mask in zip(leaves, living, strict=True):
        dtype = np.float64 if leaf.dtype == np.float64 else np.float32
        moved = jnp.moveaxis(leaf.astype(dtype), axis, -1)
        there = jnp.ones(leaf.shape, bool) if mask is None else jnp.asarray(mask)
        there = jnp.moveaxis(there, axis, -1).reshape(-1, m)
        chosen = choose(moved.reshape(-1, m), there, n)
        kept.append(jnp.moveaxis(chosen.reshape(moved.shape), -1, axis))
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
    threshold = _kth_highest(keys, k, bits=keys.dtype.itemsize * 8)
    above = keys > threshold
    equal = (keys == threshold) & (threshold > 0)
    kept = above | _first(equal, k - jnp.sum(above, dtype=jnp.int32))
    return kept.reshape(scores.shape)


def _first(equal: Bool[Array, " n"], need: Int[Array, ""]) -> Bool[Array, " n"]:
    """The first `need` true places of `equal`, which are the highest if counted from the end."""
    n = equal.size
    from_end = np.uint32(n) - jax.lax.iota(np.uint32, n)
    places = jnp.where(equal, from_end, jnp.zeros_like(from_end))
    return equal & (places >= _kth_highest(places, need, bits=(n + 1).bit_length()))


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
