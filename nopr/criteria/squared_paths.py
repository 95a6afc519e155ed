"""The sum over all paths of a network of squared weights, under the gates of real inputs.

A network that is piecewise linear in its inputs is a sum over paths: of the product of the weights
on a path, the input it starts from, and the gates it passes. Squaring every factor gives another
network with the same gates, evaluated here beside the real one by walking its traced program. A
network without hooks or module classes can be walked, as long as it is made of the operations that
`_RULES` knows; any other is refused by name.

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

_MOST_PRODUCTS = 16  # without rescaling; each may change the magnitude by 1e19
_LEAST_EXPONENT = -500.0  # so that constants that are added stay in range


class Flow(NamedTuple):
    """A value that depends on weights or inputs, and the same sum over paths with squared factors.

    Attributes:
      real: The value itself, which sets the gates.
      squared: The sum over squared paths, divided by 2 to the power of `exponent`.
      exponent: A whole number that all entries share.
      reads: Whether it depends on the inputs.
      products: How many products of two such values are in it since it was rescaled.
    """

    real: Any
    squared: Any
    exponent: Any
    reads: bool
    products: int


def squared(real: Any, square: Any, *, reads: bool) -> Flow:
    """The value and the square of an argument."""
    return Flow(real, square, 0.0, reads, 0)


def walk(program: jaxprs.Program, values: Sequence[Any], *, within: str = "") -> list[Any]:
    """Evaluates a program with real and squared values.

    Args:
      program: The traced network.
      values: Its arguments, flattened: a `Flow` for weights and inputs, arrays for constants.
      within: The function that the program belongs to, for errors.

    Returns:
      Its results: a `Flow` each, or arrays where they depend on constants alone.

    Raises:
      ValueError: If an operation is not linear or piecewise linear; the message names it.
    """

    def step(eqn: jaxprs.Equation, operands: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if not any(isinstance(value, Flow) for value in operands):
            return jaxprs.bind(eqn, *operands)
        body = jaxprs.called(eqn)
        if body is not None:
            return walk(body, operands, within=eqn.params.get("name") or within)
        if not any(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars):
            return jaxprs.bind(eqn, *map(_real, operands))  # a gate, an index: constant nearby
        if name == jaxprs.SCAN:
            return _scanned(eqn, operands, within)
        if name not in _RULES:
            _refuse(name, within)
        found = _RULES[name](eqn, operands)
        if found is None:
            _refuse(name, within)
        real = jaxprs.bind(eqn, *map(_real, operands))
        flows = [value for value in operands if isinstance(value, Flow)]
        reads, products = any(flow.reads for flow in flows), max(flow.products for flow in flows)
        if name in _PRODUCTS and len(flows) == 2:
            products = sum(flow.products for flow in flows) + 1
        flows = [
            Flow(r, part, found.exponent, reads, products)
            for r, part in zip(real, found.parts, strict=True)
        ]
        return flows if products <= _MOST_PRODUCTS else [rescaled(flow) for flow in flows]

    return jaxprs.fold(program, values, step, constant=lambda value: value)


def total(results: Sequence[Any]) -> tuple[Array, Array]:
    """The sum over the squared results, as a mantissa and an exponent.

    It is NaN if a real result is not finite, since the gates are then unknown.
    """
    aligned, exponent = _aligned(results)
    value = sum((jnp.sum(part) for part in aligned), jnp.zeros(()))
    finite = [jnp.all(jnp.isfinite(_real(value))) for value in results]
    return jnp.where(jnp.all(jnp.stack(finite)), value, jnp.nan), jnp.asarray(exponent)


class Found(NamedTuple):
    """The squared results of an operation, and their exponent."""

    parts: Sequence[Any]
    exponent: Any


def _real(value: Any) -> Any:
    return value.real if isinstance(value, Flow) else value


def _as_flow(value: Any) -> Flow:
    if isinstance(value, Flow):
        return value
    return Flow(value, jnp.square(value), 0.0, reads=False, products=0)


def _refuse(name: str, within: str) -> NoReturn:
    place = f"{name!r} in {within!r}" if within else repr(name)
    raise ValueError(
        f"`px` needs a network that is piecewise linear in its inputs and weights, got {place}. "
        "Use ReLU or another piecewise linear activation, and norms in inference mode."
    )


def _aligned(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """The squared values under one exponent."""
    flows = [value for value in values if isinstance(value, Flow)]
    exponent = flows[0].exponent if flows else 0.0
    if any(flow.exponent is not exponent for flow in flows):
        for flow in flows[1:]:
            exponent = jnp.maximum(exponent, flow.exponent)
    return [_under(_as_flow(value), exponent) for value in values], exponent


def _under(flow: Flow, exponent: Any) -> Any:
    same = flow.exponent is exponent
    return flow.squared if same else _times(flow.squared, flow.exponent - exponent)


def rescaled(flow: Flow) -> Flow:
    """The same flow with mantissas of about 1."""
    largest = lax.stop_gradient(jnp.max(flow.squared, initial=0.0))
    shift = jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1.0)))
    shift = jnp.maximum(shift, _LEAST_EXPONENT - flow.exponent)
    exponent = lax.optimization_barrier(flow.exponent + shift)
    return flow._replace(squared=_times(flow.squared, -shift), exponent=exponent, products=0)


def _times(values: Any, exponent: Any) -> Any:
    """The values times 2 to the power of a whole number."""
    factor = lax.optimization_barrier(jnp.exp2(lax.stop_gradient(exponent)))
    return values * factor.astype(values.dtype)


def _scanned(eqn: jaxprs.Equation, operands: list[Any], within: str) -> list[Any]:
    """A loop over layers, which carries real and squared values."""
    fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, xs = operands[:fixed], operands[fixed : fixed + carried], operands[fixed:]
    xs = xs[carried:]
    plain = [(x.real, x.squared) if isinstance(x, Flow) else x for x in xs]

    def of(reads: list[bool]) -> tuple[list[Any], list[bool]]:
        """The results, and which of them read the inputs, if these parts of the carry do."""
        after: list[bool] = []

        def body(state: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            now = [_unpacked(value, read) for value, read in zip(state, reads, strict=True)]
            rows = [
                x._replace(real=row[0], squared=row[1]) if isinstance(x, Flow) else row
                for x, row in zip(xs, slices, strict=True)
            ]
            found = walk(eqn.params["jaxpr"], [*consts, *now, *rows], within=within)
            after[:] = [isinstance(value, Flow) and value.reads for value in found]
            packed = list(map(_packed, found))
            return packed[:carried], packed[carried:]

        length, reverse = eqn.params["length"], eqn.params["reverse"]
        last, ys = lax.scan(body, list(map(_packed, carry)), plain, length, reverse)
        return [*last, *map(_joined, ys)], after

    reads = [isinstance(value, Flow) and value.reads for value in carry]
    results, after = of(reads)
    while any(more and not had for had, more in zip(reads, after, strict=False)):
        reads = [had or more for had, more in zip(reads, after, strict=False)]
        results, after = of(reads)
    return [_unpacked(value, read) for value, read in zip(results, after, strict=True)]


def _packed(value: Any) -> Any:
    """A floating value as arrays that a loop can carry; whole numbers stay constants."""
    if not jnp.issubdtype(jnp.result_type(_real(value)), jnp.inexact):
        return value
    flow = rescaled(_as_flow(value))
    return flow.real, flow.squared, jnp.asarray(flow.exponent, float)


def _unpacked(value: Any, reads: bool) -> Any:
    if not isinstance(value, tuple):
        return value
    real, square, exponent = value
    return Flow(real, square, exponent, reads, 0)


def _joined(value: Any) -> Any:
    """The results of all rounds under one exponent."""
    if not isinstance(value, tuple):
        return value
    real, square, exponent = value
    most = jnp.max(exponent)
    factors = jnp.exp2(exponent - most).reshape(-1, *(1,) * (square.ndim - 1))
    return real, square * factors, most


def _same(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations whose factor is 1 or -1."""
    del eqn
    return Found([operands[0].squared], operands[0].exponent)


def _moved(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Operations that move or add up entries of the first operand; the rest are indices."""
    first, *rest = operands
    if not isinstance(first, Flow) or any(isinstance(value, Flow) for value in rest):
        return None
    return Found(jaxprs.bind(eqn, first.squared, *rest), first.exponent)


def _together(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations that put operands beside each other."""
    aligned, exponent = _aligned(operands)
    return Found(jaxprs.bind(eqn, *aligned), exponent)


def _added(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    del eqn
    (one, two), exponent = _aligned(operands)
    return Found([one + two], exponent)


def _product(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Products in which at most one factor depends on the inputs."""
    one, two = map(_as_flow, operands)
    if one.reads and two.reads:
        return None
    exponent = one.exponent if isinstance(two.exponent, float) else two.exponent
    if not isinstance(one.exponent, float) and not isinstance(two.exponent, float):
        exponent = one.exponent + two.exponent
    return Found(jaxprs.bind(eqn, one.squared, two.squared), exponent)


def _quotient(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    del eqn
    one, two = operands
    if isinstance(two, Flow):
        return None
    return Found([one.squared / jnp.square(two)], one.exponent)


def _chosen(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared value of the larger or smaller operand; of a constant only where it equals."""
    one, two = map(_as_flow, operands)
    larger = one.real > two.real if isinstance(operands[0], Flow) else one.real >= two.real
    if eqn.primitive.name == "min":
        larger = one.real < two.real if isinstance(operands[0], Flow) else one.real <= two.real
    aligned, exponent = _aligned(operands)
    return Found([jnp.where(larger, *aligned)], exponent)


def _selected(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    which, *cases = operands
    aligned, exponent = _aligned(cases)
    return Found(jaxprs.bind(eqn, which, *aligned), exponent)


def _pooled(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared values where the real ones are largest: a derivative along the squared ones."""
    (flow,) = operands
    _, found = jax.jvp(lambda real: jaxprs.bind(eqn, real)[0], (flow.real,), (flow.squared,))
    return Found([found], flow.exponent)


def _updated(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    array, update, *starts = operands
    aligned, exponent = _aligned([array, update])
    return Found(jaxprs.bind(eqn, *aligned, *starts), exponent)


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
