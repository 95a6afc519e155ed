"""Sums over the axes of tiny arrays, unrolled into operations on whole vectors of cases.

On a CPU, XLA would fuse an unrolled sum into everything that reads it, and compute it again for
each reader: for two layers of 8 units this is already slower than `jax.vmap`. So each sum is a call
that XLA may not inline, and its result is written to memory. A call adds only a few terms to the
result of the one before: its loop reads them side by side, and if the number of cases is a power of
two, many terms evict each other from the cache (64 terms at once were 5 times slower).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from nopr.sweeps.lanes import rules

TERMS = 64
"""Contractions with more terms are not unrolled."""

MULTIPLIES = 1 << 16
"""Contractions with more multiplications per case are left to XLA's matrix product."""

_TINY = 256  # most terms x results per case for a contraction in a single call
_PRODUCTS = 4  # terms per call of a larger contraction
_ADDED = 256  # most terms x results per case for an unrolled reduction: XLA's own is slow there
_TERMS = 16  # terms per call of an unrolled reduction


def own_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a call that XLA does not inline on a CPU, so that nothing fuses across it."""

    def inside(*args: Any) -> Any:
        with set_xla_metadata(inlineable=None):  # this call only, not those within
            return function(*args)

    def call(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args)
        with set_xla_metadata(inlineable="false"):
            return jax.jit(inside)(*args)

    return call


def _dot_general(eqn: Any, values: rules.Values, batched: rules.Batched) -> list[Any]:
    """Adds products, broadcast over the free axes, over the contracted axes in order."""
    contracted, batch = eqn.params["dimension_numbers"]
    shapes, out = [var.aval.shape for var in eqn.invars], eqn.outvars[0].aval
    dims = [shapes[0][axis] for axis in contracted[0]]
    if not _is_small(eqn, terms=math.prod(dims)):
        return rules.generic(eqn, values, batched)
    narrow = out.dtype in (jnp.bfloat16, jnp.float16)  # these are summed in float32, as XLA does
    dtype = np.dtype(np.float32) if narrow else out.dtype
    kept = len(batch[0])
    free = [len(s) - len(c) - kept for s, c in zip(shapes, contracted, strict=True)]

    def split(place: int, value: Any) -> Any:
        order = [*contracted[place], *batch[place]]
        order += [axis for axis in range(len(shapes[place])) if axis not in order]
        return lax.transpose(_cases_last(value, batched[place]), (*order, len(order)))

    def add(total: Any, indices: Sequence[Any], left: Any, right: Any) -> Any:
        left, right = split(0, left.astype(dtype)), split(1, right.astype(dtype))
        for index in indices:
            # Left is [batch, left free, 1, cases] and right [batch, 1, right free, cases].
            mine = lax.expand_dims(left[index], range(kept + free[0], kept + sum(free)))
            other = lax.expand_dims(right[index], range(kept, kept + free[0]))
            total = mine * other if total is None else total + mine * other
        return total

    step = math.prod(dims) if math.prod(dims) * out.size <= _TINY else _PRODUCTS
    return [_in_calls(add, dims, step, *values).astype(out.dtype)]


def _is_small(eqn: Any, *, terms: int) -> bool:
    out, precision = eqn.outvars[0].aval, eqn.params["precision"]
    asked = isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)
    return 0 < terms <= TERMS and terms * out.size <= MULTIPLIES and out.dtype != bool and not asked


def _cases_last(value: Any, batched: bool) -> Any:
    return value if batched else lax.expand_dims(value, (value.ndim,))


def _reduction(join: Callable[[Any, Any], Any]) -> rules.Rule:
    def rule(eqn: Any, values: rules.Values, batched: rules.Batched) -> list[Any]:
        axes, shape = eqn.params["axes"], eqn.invars[0].aval.shape
        dims = [shape[axis] for axis in axes]
        if not 0 < math.prod(dims) * eqn.outvars[0].aval.size <= _ADDED:
            return rules.RULES[eqn.primitive.name](eqn, values, batched)
        order = (*axes, *(axis for axis in range(len(shape) + 1) if axis not in axes))

        def add(total: Any, indices: Sequence[Any], value: Any) -> Any:
            value = lax.transpose(value, order)
            for index in indices:
                total = value[index] if total is None else join(total, value[index])
            return total

        return [_in_calls(add, dims, _TERMS, values[0])]

    return rule


def _in_calls(add: Callable[..., Any], dims: Sequence[int], step: int, *values: Any) -> Any:
    """The total of `add(total, indices, *values)` over all indices, `step` of them per call."""
    indices = list(itertools.product(*map(range, dims)))
    if len(indices) == 1:
        return add(None, indices, *values)
    total = None
    for start in range(0, len(indices), step):
        some = indices[start : start + step]
        total = own_call(lambda total, *values, some=some: add(total, some, *values))(
            total, *values
        )
    return total


RULES: dict[str, rules.Rule] = {
    "dot_general": _dot_general,
    "reduce_and": _reduction(lax.bitwise_and),
    "reduce_max": _reduction(lax.max),
    "reduce_min": _reduction(lax.min),
    "reduce_or": _reduction(lax.bitwise_or),
    "reduce_prod": _reduction(lax.mul),
    "reduce_sum": _reduction(lax.add),
}
"""By the name of the operation."""
