"""Rules for operations on arrays with the cases along the last axis.

A rule is `rule(eqn, values, batched) -> results`. It takes the operands and whether each of them
has cases (along an extra last axis); all of its results have cases. Operations without a rule go
through `jax.vmap` with the cases last. That is correct for any operation, but JAX's own rules often
move the cases to the front, and XLA then copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nopr.jaxprs import bind

Values: TypeAlias = Sequence[Any]
"""Operands or results of one operation."""

Batched: TypeAlias = Sequence[bool]
"""For each value, whether it has cases."""

Rule: TypeAlias = Callable[[Any, Values, Batched], list[Any]]
"""`rule(eqn, values, batched) -> results`."""


def generic(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    """Evaluates any operation, by JAX's own batching rule."""
    axes = [-1 if has else None for has in batched]
    return jax.vmap(lambda *values: bind(eqn, *values), in_axes=axes, out_axes=-1)(*values)


def cases_of(values: Values, batched: Batched) -> int:
    """The number of cases."""
    return next(value.shape[-1] for value, has in zip(values, batched, strict=True) if has)


def spread(value: Any, batched: bool, cases: int) -> Any:
    """The value with cases; if it had none, it is repeated for all."""
    if batched:
        return value
    return lax.broadcast_in_dim(value, (*np.shape(value), cases), range(np.ndim(value)))


def spread_all(values: Values, batched: Batched) -> list[Any]:
    """All values with cases."""
    cases = cases_of(values, batched)
    return [spread(value, has, cases) for value, has in zip(values, batched, strict=True)]


def aligned(value: Any, batched: bool, ndim: int) -> Any:
    """A value or scalar with `ndim` axes and one for cases, of length 1 if it has none."""
    if not batched:
        value = lax.expand_dims(value, (np.ndim(value),))
    return value if np.ndim(value) > ndim else lax.expand_dims(value, range(ndim))


def _elementwise(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    ndim = len(eqn.outvars[0].aval.shape)
    pairs = zip(values, batched, strict=True)
    # Scalars without cases stay scalars, as integer powers and literals have to be.
    return bind(eqn, *(aligned(v, has, ndim) if has or np.ndim(v) else v for v, has in pairs))


def _along_axes(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    """Operations on named axes, which an extra last axis does not affect."""
    return bind(eqn, *spread_all(values, batched))


def _of_one_shape(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    """Operations on scalars or arrays of a common shape, without other broadcasting."""
    shape = (*eqn.outvars[0].aval.shape, cases_of(values, batched))
    pairs = zip(values, batched, strict=True)
    return bind(
        eqn, *(jnp.broadcast_to(aligned(v, has, len(shape) - 1), shape) for v, has in pairs)
    )


def _bitcast(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    if len(eqn.outvars[0].aval.shape) != len(eqn.invars[0].aval.shape):
        return generic(eqn, values, batched)  # bytes become an axis, or an axis bytes
    return bind(eqn, *values)


def _broadcast_in_dim(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    cases = cases_of(values, batched)
    return [lax.broadcast_in_dim(values[0], (*shape, cases), (*dims, len(shape)))]


def _reshape(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    if eqn.params["dimensions"] is not None:
        return generic(eqn, values, batched)
    return [lax.reshape(values[0], (*eqn.params["new_sizes"], cases_of(values, batched)))]


def _transpose(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    permutation = eqn.params["permutation"]
    return [lax.transpose(values[0], (*permutation, len(permutation)))]


def _slice(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    limit = (*limit, cases_of(values, batched))
    return [lax.slice(values[0], (*start, 0), limit, (*strides, 1))]


def _pad(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    if batched[1]:
        return generic(eqn, values, batched)
    return [lax.pad(values[0], values[1], (*eqn.params["padding_config"], (0, 0, 0)))]


def _reduce(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    """Reduces by any function; the second half of the operands are the initial scalars."""
    half = len(values) // 2
    if any(batched[half:]):
        return generic(eqn, values, batched)
    return bind(eqn, *spread_all(values[:half], batched[:half]), *values[half:])


def _dynamic_slice(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    array, *starts = values
    if any(batched[1:]):
        return generic(eqn, values, batched)
    sizes = (*eqn.params["slice_sizes"], array.shape[-1])
    return [lax.dynamic_slice(array, (*starts, jnp.zeros_like(starts[0])), sizes)]


def _dynamic_update_slice(eqn: Any, values: Values, batched: Batched) -> list[Any]:
    starts = values[2:]
    if any(batched[2:]):
        return generic(eqn, values, batched)
    array, update = spread_all(values[:2], batched[:2])
    return [lax.dynamic_update_slice(array, update, (*starts, jnp.zeros_like(starts[0])))]


_ELEMENTWISE = """
    abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clz
    complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max
    min mul ne neg nextafter not or polygamma population_count pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
    """

_ALONG_AXES = """
    argmax argmin concatenate cumlogsumexp cummax cummin cumprod cumsum reduce_and reduce_max
    reduce_min reduce_or reduce_prod reduce_sum reduce_xor rev split squeeze stack
    """

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_ALONG_AXES.split(), _along_axes),
    "add_any": _of_one_shape,
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": _of_one_shape,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "reduce": _reduce,
    "reshape": _reshape,
    "select_n": _of_one_shape,
    "slice": _slice,
    "transpose": _transpose,
}
"""By the name of the operation."""
