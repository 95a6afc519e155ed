"""How many weights are kept: from a user's count or density to validated whole numbers.

A budget is a `count` or a `density`: one number, or one per layer, as a sequence in leaf order or
as `{path: number}`. Concrete budgets are computed in Python integers and rejected when invalid;
traced budgets are clipped to their range before any cast, so that no dtype can wrap around.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array

from nopr import precision, trees
from nopr.typing import Scope, check_choice, shown, whole_number

MOST = 2**31 - 1
"""The most weights that can compete with each other: they are counted in int32."""


def whole(values: Any, *, must: str, remedy: str = "") -> np.ndarray:
    """Checks that concrete `values` are whole numbers from 0 up, and returns them as int64.

    Args:
      values: A number, or an array or nested sequence of numbers.
      must: The beginning of the error, such as `"`count` must be a whole number"`.
      remedy: The end of the error.

    Raises:
      ValueError: If a value is not a whole number from 0 up; the message has the first of them.
        Bools and strings are not numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # of rows of different lengths
        array = np.empty((), object)
    if array.dtype.kind not in "iuf" or isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{must}, got {shown(values)}. {remedy}".rstrip())
    bad = array[~((array == np.rint(array)) & (array >= 0) & (array < 2**63))]
    if bad.size:
        raise ValueError(f"{must}, got {bad.flat[0]}. {remedy}".rstrip())
    return array.astype(np.int64)


def check_density(density: Any, *, name: str = "density") -> float:
    """Checks that a concrete density is a number in [0, 1], and returns it as a float.

    Raises:
      ValueError: If it is not.
    """
    try:
        array = np.asarray(density)
        good = array.ndim == 0 and array.dtype.kind in "iuf" and 0 <= array <= 1
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"`{name}` must be in [0, 1], got {shown(density)}.")
    return float(density)


def falling(densities: Any) -> list[float]:
    """Checks that densities, one or a series, are in [0, 1] and fall; returns them as a list.

    Raises:
      ValueError: If they are not.
    """
    several = isinstance(densities, Iterable) and getattr(densities, "ndim", 1)
    values = list(densities) if several else [densities]
    if not values:
        raise ValueError("`densities` must have at least one entry, got none.")
    values = [check_density(value, name="densities") for value in values]
    if any(later > before for before, later in itertools.pairwise(values)):
        raise ValueError(f"`densities` must fall from level to level, got {shown(densities)}.")
    return values


def from_density(density: Any, size: int) -> Any:
    """round(density * size), half to even; an int32 if the density is traced.

    A traced density outside [0, 1] fails a `checkify.debug_check`; NaN keeps nothing.
    """
    if not _traced(density):
        return round(check_density(density) * size)
    real = any(jnp.issubdtype(density.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if density.ndim or not real:
        raise ValueError(
            f"A traced `density` must be one real number, got {density.dtype} of shape "
            f"{density.shape}."
        )
    checkify.debug_check(jnp.all((density >= 0) & (density <= 1)), "`density` must be in [0, 1].")

    def product(density: Array) -> Array:  # float32 is not exact past 2**24
        wanted = jnp.rint(density.astype(jnp.float64) * float(size))
        return jnp.clip(jnp.nan_to_num(wanted, nan=0.0), 0, size).astype(jnp.int32)

    return precision.in_double(product, density)


def share(total: int, sizes: Sequence[int]) -> Sequence[int]:
    """Shares a whole number in proportion to `sizes`, exactly, by largest remainder."""
    everything = max(sum(sizes), 1)
    return trees.largest_remainder([Fraction(total * size, everything) for size in sizes], total)


def layers(value: Any, paths: Sequence[str], *, name: str) -> list[Any] | None:
    """The entries of a budget with one number per layer, in leaf order; None for a single number.

    Args:
      value: A number, a sequence or array with one number per layer, or `{path: number}`.
      paths: The path of every layer.
      name: The name of the budget in errors.

    Raises:
      ValueError: If the number of entries is not that of the layers, or a path does not match.
    """
    if isinstance(value, Mapping):
        for path in value:
            if path not in paths:
                raise ValueError(
                    f"`{name}` has {path!r}, which is not a layer; choose from {sorted(paths)}."
                )
        for path in paths:
            if path not in value:
                raise ValueError(f"`{name}` has no entry for {path!r}. Give one for every layer.")
        return [value[path] for path in paths]
    if not _one_a_layer(value):
        return None
    if len(value) != len(paths):
        raise ValueError(
            f"`{name}` must be one number or {len(paths)}, one per layer, got {len(value)}."
        )
    return list(value)


def kept(
    paths: Sequence[str],
    sizes: Sequence[int],
    alive: Sequence[Array] | None,
    *,
    density: Any,
    count: Any,
    scope: Scope,
) -> list[Any]:
    """Kept counts: one for the whole network, one per layer, or one for each output of a layer.

    Args:
      paths: The path of every leaf.
      sizes: The size of every leaf; with scope `"output"`, the weights of one output.
      alive: The weights that can be kept; all of them by default.
      density: The kept fraction of all weights, dead or alive; None if `count` is given.
      count: The number of kept weights; None if `density` is given.
      scope: `"global"`, `"layer"` or `"output"`.

    Returns:
      Counts as int32, concrete or traced, each from 0 to the number of weights alive.

    Raises:
      ValueError: If a concrete count or density is out of range, a traced one has the wrong dtype,
        the number of entries is not that of the layers, or the weights exceed int32.
    """
    check_choice("scope", scope, Scope)
    if (density is None) == (count is None):
        raise ValueError(
            f"Give exactly one of `density` and `count`, got density={shown(density)}, "
            f"count={shown(count)}."
        )
    _check_sizes(paths, sizes, scope)
    name, budget = ("density", density) if count is None else ("count", count)
    rooms = list(sizes) if alive is None else [_room(mask) for mask in alive]
    if scope == "global" and _one_a_layer(budget):
        raise ValueError(f"`{name}` must be one number with scope='global', got {shown(budget)}.")
    each = layers(budget, paths, name=name)
    if each is None and scope == "output":
        each = [budget] * len(paths)
    if each is None:
        if _traced(budget) and sum(sizes) > MOST:
            raise ValueError(
                f"A traced `{name}` can be shared by at most {MOST} weights, got {sum(sizes)}. "
                "Give one number per layer."
            )
        total = _limited(budget, name, sum(sizes), sum(rooms))
        if scope == "global":
            return [total]
        return _shares(total, sizes, None if alive is None else rooms)
    return [
        _limited(one, name, size, room, f" at {path!r}")
        for one, path, size, room in zip(each, paths, sizes, rooms, strict=True)
    ]


def of_group(n: Any, m: Any) -> tuple[Any, int]:
    """The n and m of N:M: n as an int32 from 1 to m, or a traced one clipped to 0 and m.

    Raises:
      ValueError: If one is out of range, or a traced n is not an integer.
    """
    m = whole_number("m", m, most=MOST)
    return _int32(n, "n", m) if _traced(n) else np.int32(whole_number("n", n, most=m)), m


def zeros(budget: Any, paths: Sequence[str]) -> tuple[str, ...]:
    """The layers whose count or density is a concrete 0."""
    each = layers(budget, paths, name="count") or [budget] * len(paths)
    return tuple(
        path for path, one in zip(paths, each, strict=True) if not _traced(one) and one == 0
    )


def _one_a_layer(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or bool(getattr(value, "ndim", 0))


def _check_sizes(paths: Sequence[str], sizes: Sequence[int], scope: Scope) -> None:
    for path, size in zip(paths, sizes, strict=True):
        if size > MOST:
            raise ValueError(f"A leaf can have at most {MOST} weights, got {size} at {path!r}.")
    if scope == "global" and sum(sizes) > MOST:
        raise ValueError(
            f"At most {MOST} weights can compete, got {sum(sizes)}. Use scope='layer'."
        )


def _room(mask: Any) -> Any:
    room = jnp.sum(jnp.asarray(mask), dtype=jnp.int32)
    return room if _traced(room) else int(room)


def _limited(budget: Any, name: str, size: int, room: Any, where: str = "") -> Any:
    """A single count or density as a count of at most `room`, which is at most `size`."""
    k = from_density(budget, size) if name == "density" else budget
    if _traced(k):
        return jnp.minimum(_int32(k, name, size), room)
    what = "`count`" if name == "count" else f"`density` {budget} of {size} weights"
    limit = size if _traced(room) else room
    must = f"{what} must be a whole number from 0 to {limit}, the weights alive{where}"
    number = whole(k, must=must)
    if number.ndim or number > limit:
        raise ValueError(f"{must}, got {shown(k)}.")
    value = int(number)
    return jnp.minimum(np.int32(value), room) if _traced(room) else np.int32(value)


def _int32(k: Array, name: str, size: int) -> Array:
    """A traced count from 0 to `size`, clipped in its own dtype where int32 is narrower."""
    if k.ndim or not jnp.issubdtype(k.dtype, jnp.integer):
        raise ValueError(
            f"A traced `{name}` must be one integer, got {k.dtype} of shape {k.shape}. Round it"
            + (", or give `density`." if name == "count" else ".")
        )
    if jnp.iinfo(k.dtype).max > MOST:
        k = jnp.minimum(k, jnp.asarray(size, k.dtype))
        k = jnp.maximum(k, jnp.zeros((), k.dtype))
    return jnp.clip(k.astype(jnp.int32), 0, size)


def _shares(total: Any, sizes: Sequence[int], rooms: Sequence[Any] | None) -> list[Any]:
    """Shares `total` in proportion to `sizes`, then moves any excess to layers with room."""
    if _traced(total):
        wide = np.asarray(sizes, np.int64)
        wanted = precision.in_double(partial(_share_traced, sizes=wide), total)
    else:
        wanted = share(int(total), sizes)
    counts = wanted if rooms is None else _fit(wanted, rooms)
    return [k if _traced(k) else np.int32(k) for k in counts]


def _share_traced(total: Array, *, sizes: np.ndarray) -> list[Array]:
    total = total.astype(jnp.int64)
    products, n = total * sizes, max(sizes.sum(), 1)
    floors, remainders = products // n, products % n
    order = jnp.argsort(-remainders, stable=True)
    rank = jnp.zeros(len(sizes), jnp.int64).at[order].set(np.arange(len(sizes)))
    extra = rank < total - jnp.sum(floors)
    return [k.astype(jnp.int32) for k in floors + extra.astype(jnp.int64)]


def _fit(wanted: Sequence[Any], rooms: Sequence[Any]) -> list[Any]:
    """Moves what exceeds a layer's room to the first layers that have some; keeps the sum."""
    least = jnp.minimum if any(map(_traced, (*wanted, *rooms))) else min
    counts = [least(k, room) for k, room in zip(wanted, rooms, strict=True)]
    left = sum(wanted) - sum(counts)
    for i, room in enumerate(rooms):
        extra = least(left, room - counts[i])
        counts[i], left = counts[i] + extra, left - extra
    return counts


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
