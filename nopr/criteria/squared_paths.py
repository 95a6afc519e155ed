"""Sums over all paths of a network of squared factors, under real gates or with all gates open.

A network that is piecewise linear in its inputs is a sum over paths: of the product of the weights
on a path, the input it starts from, and the gates it passes. Squaring every factor gives another
network, evaluated here beside the real one, whose gates it has, by walking its traced program; or
alone, with all gates open. A network without hooks or module classes can be walked, as long as it
is made of the operations that `_RULES` knows; any other is refused by name.

Sums of products of squares leave the range of float64 in deep networks, so each value is a mantissa
and a power of two that its entries share, brought up to date every `_MOST_PRODUCTS` layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from nopr import jaxprs

CONSTANT, WEIGHT, INPUT = range(3)
"""What a value depends on, the last of these that holds."""

_MOST_PRODUCTS = 8  # without rescaling; each may change the magnitude by 1e19
_LEAST_EXPONENT = -500.0  # so that constants that are added stay in range

Square = Callable[[Any], Any]


class Scale(NamedTuple):
    """A power of two, which values share as long as they hold the same object."""

    exponent: Any
    inverse: Any
    """2 to the power of minus the exponent."""


_ONE = Scale(0.0, 1.0)


class Flow(NamedTuple):
    """A value of the network, and the same sum over paths with squared factors.

    Attributes:
      real: The value itself, which sets the gates; None where all gates are open.
      squared: The sum over squared paths, divided by `scale`.
      scale: A power of two that all entries share.
      kind: What it depends on: `CONSTANT`, `WEIGHT` or `INPUT`.
      products: How many products of two such values are in it since it was rescaled.
    """

    real: Any
    squared: Any
    scale: Scale = _ONE
    kind: int = CONSTANT
    products: int = 0


def walk(
    program: jaxprs.Program, values: Sequence[Any], square: Square, *, within: str = ""
) -> list[Any]:
    """Evaluates a program with real and squared values.

    Args:
      program: The traced network.
      values: Its arguments, flattened: a `Flow` for weights and inputs, arrays for constants. All
        have a real value or none has.
      square: `square(constant)`, what the constant counts as among squares.
      within: The function that the program belongs to, for errors.

    Returns:
      Its results: a `Flow` each, or arrays where they depend on constants alone.

    Raises:
      ValueError: If an operation is not linear or piecewise linear; the message names it.
    """

    def step(eqn: jaxprs.Equation, operands: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        given = [value for value in operands if isinstance(value, Flow)]
        if not given:
            return jaxprs.bind(eqn, *operands)
        body = jaxprs.called(eqn)
        if body is not None:
            return walk(body, operands, square, within=eqn.params.get("name") or within)
        if not any(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars):
            return jaxprs.bind(eqn, *map(_real, operands))  # a gate, an index: constant nearby
        isopen = given[0].real is None
        operands = [_as_flow(value, square, isopen) for value in operands]
        if name == jaxprs.SCAN:
            return _scanned(eqn, operands, square, within)
        found = _RULES[name](eqn, operands) if name in _RULES else None
        if found is None:
            _refuse(name, within)
        flows = [value for value in operands if isinstance(value, Flow)]
        real = [None] * len(found.parts)
        if not isopen:
            real = jaxprs.bind(eqn, *map(_real, operands))
        kind, products = max(f.kind for f in flows), max(f.products for f in flows)
        if name in _PRODUCTS and min(f.kind for f in flows) > CONSTANT:
            products = sum(f.products for f in flows) + 1
        results = [
            Flow(value, part, found.scale, kind, products)
            for value, part in zip(real, found.parts, strict=True)
        ]
        kept = name in _PRODUCTS or any(found.scale is f.scale for f in flows)
        return results if kept and products <= _MOST_PRODUCTS else list(map(rescaled, results))

    return jaxprs.fold(program, values, step, constant=lambda value: value)


def outcome(value: Any, square: Square) -> tuple[Array, Array]:
    """The squared result of a network, as mantissas and an exponent.

    It is NaN if a real result is not finite, since the gates are then unknown.
    """
    flow = rescaled(_as_flow(value, square, False))
    finite = True if flow.real is None else jnp.all(jnp.isfinite(flow.real))
    return jnp.where(finite, flow.squared, jnp.nan), flow.scale.exponent


class Found(NamedTuple):
    """The squared results of an operation, and their scale."""

    parts: Sequence[Any]
    scale: Scale


def _real(value: Any) -> Any:
    if not isinstance(value, Flow):
        return value
    if value.real is not None:
        return value.real
    if value.scale is _ONE:
        return value.squared
    return _times(value.squared, _power(jnp.minimum(value.scale.exponent, 1000.0)))


def _as_flow(value: Any, square: Square, isopen: bool) -> Any:
    """A floating constant as a flow; whole numbers stay as they are."""
    if isinstance(value, Flow) or not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return value
    return Flow(None if isopen else value, square(value))


def _refuse(name: str, within: str) -> NoReturn:
    place = f"{name!r} in {within!r}" if within else repr(name)
    raise ValueError(
        f"`px` needs a network that is piecewise linear in its inputs and weights, got {place}. "
        "Use ReLU or another piecewise linear activation, norms in inference mode, and no products "
        "of two values that depend on the inputs, as in attention."
    )


def _aligned(flows: Sequence[Flow]) -> tuple[list[Any], Scale]:
    """The squared values under one scale: that of the others for what has none, or the largest."""
    scales = [flow.scale for flow in flows if flow.scale is not _ONE or flow.kind == INPUT]
    scale = scales[0] if scales else _ONE
    if any(other is not scale for other in scales):
        exponent = scale.exponent
        for other in scales[1:]:
            exponent = jnp.maximum(exponent, other.exponent)
        scale = Scale(exponent, _power(-exponent))
    return [
        flow.squared if flow.scale is scale else _times(flow.squared, _between(flow.scale, scale))
        for flow in flows
    ], scale


def _between(one: Scale, two: Scale) -> Any:
    return two.inverse if one is _ONE else _power(one.exponent - two.exponent)


def rescaled(flow: Flow) -> Flow:
    """The same flow with mantissas of about 1."""
    largest = lax.stop_gradient(jnp.max(flow.squared, initial=0.0))
    shift = jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1.0)))
    shift = jnp.maximum(shift, _LEAST_EXPONENT - flow.scale.exponent)
    exponent = flow.scale.exponent + shift
    scale = Scale(*lax.optimization_barrier((exponent, _power(-exponent))))
    squared = _times(flow.squared, lax.optimization_barrier(_power(-shift)))
    return flow._replace(squared=squared, scale=scale, products=0)


def _times(values: Any, factor: Any) -> Any:
    return values * jnp.asarray(factor, jnp.result_type(values))


def _power(exponent: Any) -> Any:
    return jnp.exp2(lax.stop_gradient(exponent))


def _scanned(eqn: jaxprs.Equation, operands: list[Any], square: Square, within: str) -> list[Any]:
    """A loop over layers, which carries real and squared values."""
    fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, xs = operands[:fixed], operands[fixed : fixed + carried], operands[fixed:]
    xs = xs[carried:]
    plain = [(x.real, x.squared) if isinstance(x, Flow) else x for x in xs]

    def of(kinds: list[int]) -> tuple[list[Any], list[int]]:
        """The results, and what they depend on, if the parts of the carry depend on `kinds`."""
        after: list[int] = []

        def body(state: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            now = [_unpacked(value, kind) for value, kind in zip(state, kinds, strict=True)]
            rows = [
                x._replace(real=row[0], squared=row[1]) if isinstance(x, Flow) else row
                for x, row in zip(xs, slices, strict=True)
            ]
            found = walk(eqn.params["jaxpr"], [*consts, *now, *rows], square, within=within)
            found = [_as_flow(value, square, isopen) for value in found]
            after[:] = map(_kind, found)
            packed = list(map(_packed, found))
            return packed[:carried], packed[carried:]

        length, reverse = eqn.params["length"], eqn.params["reverse"]
        last, ys = lax.scan(body, list(map(_packed, carry)), plain, length, reverse)
        return [*last, *map(_joined, ys)], after

    isopen = any(isinstance(value, Flow) and value.real is None for value in operands)
    kinds = list(map(_kind, carry))
    results, after = of(kinds)
    while any(more > had for had, more in zip(kinds, after, strict=False)):
        kinds = list(map(max, kinds, after))
        results, after = of(kinds)
    return [_unpacked(value, kind) for value, kind in zip(results, after, strict=True)]


def _kind(value: Any) -> int:
    return value.kind if isinstance(value, Flow) else CONSTANT


def _packed(value: Any) -> Any:
    """A floating value as arrays that a loop can carry; whole numbers stay constants."""
    if not isinstance(value, Flow):
        return value
    flow = rescaled(value)
    return flow.real, flow.squared, jnp.asarray(flow.scale.exponent, float)


def _unpacked(value: Any, kind: int) -> Any:
    if not isinstance(value, tuple):
        return value
    real, squared, exponent = value
    return Flow(real, squared, Scale(exponent, _power(-exponent)), kind)


def _joined(value: Any) -> Any:
    """The results of all rounds under one exponent."""
    if not isinstance(value, tuple):
        return value
    real, squared, exponent = value
    most = jnp.max(exponent)
    factors = jnp.exp2(exponent - most).reshape(-1, *(1,) * (squared.ndim - 1))
    return real, squared * factors, most


def _same(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations whose factor is 1 or -1."""
    del eqn
    return Found([operands[0].squared], operands[0].scale)


def _moved(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Operations that move or add up entries of the first operand; the rest are indices."""
    first, *rest = operands
    if not isinstance(first, Flow) or any(isinstance(value, Flow) for value in rest):
        return None
    return Found(jaxprs.bind(eqn, first.squared, *rest), first.scale)


def _together(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations that put operands beside each other."""
    aligned, scale = _aligned(operands)
    return Found(jaxprs.bind(eqn, *aligned), scale)


def _added(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    del eqn
    (one, two), scale = _aligned(operands)
    return Found([one + two], scale)


def _product(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Products in which at most one factor depends on the inputs."""
    one, two = operands
    if one.kind == two.kind == INPUT:
        return None
    scale = one.scale if two.scale is _ONE else two.scale
    if one.scale is not _ONE and two.scale is not _ONE:
        exponent = one.scale.exponent + two.scale.exponent
        scale = Scale(exponent, _power(-exponent))
    return Found(jaxprs.bind(eqn, one.squared, two.squared), scale)


def _quotient(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    del eqn
    one, two = operands
    if two.kind != CONSTANT:
        return None
    return Found([one.squared / two.squared], one.scale)


def _chosen(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared value of the larger or smaller operand; of a constant only where it equals."""
    one, two = operands
    aligned, scale = _aligned(operands)
    left, right = aligned if one.real is None else (one.real, two.real)
    if eqn.primitive.name == "min":
        left, right = -left, -right
    first = left > right if one.kind > CONSTANT else left >= right
    if one.real is None and CONSTANT in (one.kind, two.kind):
        first = one.kind > two.kind  # an open gate
    return Found([jnp.where(first, *aligned)], scale)


def _selected(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    which, *cases = operands
    aligned, scale = _aligned(cases)
    return Found(jaxprs.bind(eqn, which, *aligned), scale)


def _pooled(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared values where the real ones are largest: a derivative along the squared ones."""
    (flow,) = operands
    real = flow.squared if flow.real is None else flow.real
    _, found = jax.jvp(lambda real: jaxprs.bind(eqn, real)[0], (real,), (flow.squared,))
    return Found([found], flow.scale)


def _updated(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    array, update, *starts = operands
    aligned, scale = _aligned([array, update])
    return Found(jaxprs.bind(eqn, *aligned, *starts), scale)


_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}

Rule = Callable[[jaxprs.Equation, list[Any]], Found | None]

_MOVES = """
    broadcast_in_dim convert_element_type copy copy_p cumsum dynamic_slice gather reduce_sum
    reduce_window_sum reshape rev slice split squeeze stop_gradient transpose
    """

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("abs", "neg"), _same),
    **dict.fromkeys(_MOVES.split(), _moved),
    **dict.fromkeys(("concatenate", "pad"), _together),
    **dict.fromkeys(("add", "add_any", "sub"), _added),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(("max", "min"), _chosen),
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_window_max"), _pooled),
    "div": _quotient,
    "dynamic_update_slice": _updated,
    "select_n": _selected,
}
"""By the name of the operation: None where these operands make it nonlinear."""
