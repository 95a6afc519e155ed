"""The sum over all paths of a network of squared weights, under the gates of real inputs.

A network that is piecewise linear in its inputs is a sum over paths: of the product of the weights
on a path, the input it starts from, and the gates it passes. Squaring every factor gives another
network with the same gates, evaluated here beside the real one by walking its traced program. A
network without hooks or module classes can be walked, as long as it is made of the operations that
`_RULES` knows; any other is refused by name.

Sums of products of squares leave the range of float64 in deep networks, so each value is a mantissa
and a power of two that its entries share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from nopr import jaxprs


class Flow(NamedTuple):
    """A value that depends on weights or inputs, and the same sum over paths with squared factors.

    Attributes:
      real: The value itself, which sets the gates.
      squared: The sum over squared paths, divided by 2 to the power of `exponent`.
      exponent: A whole number that all entries share.
      reads: Whether it depends on the inputs.
    """

    real: Any
    squared: Any
    exponent: Any
    reads: bool


def squared(real: Any, square: Any, *, reads: bool) -> Flow:
    """The value and the square of an argument."""
    return Flow(real, square, 0.0, reads)


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
        if name not in _RULES:
            _refuse(name, within)
        found = _RULES[name](eqn, operands)
        if found is None:
            _refuse(name, within)
        real = jaxprs.bind(eqn, *map(_real, operands))
        reads = any(isinstance(value, Flow) and value.reads for value in operands)
        parts, exponent = found
        return [Flow(r, s, exponent, reads) for r, s in zip(real, parts, strict=True)]

    return jaxprs.fold(program, values, step, constant=lambda value: value)


def total(results: Sequence[Any]) -> tuple[Array, Array]:
    """The sum over the squared results, as a mantissa and an exponent."""
    aligned, exponent = _aligned([_as_flow(value) for value in results])
    return sum((jnp.sum(part) for part in aligned), jnp.zeros(())), jnp.asarray(exponent)


Found = tuple[Sequence[Any], Any]
"""The squared results of an operation, and their exponent."""


def _real(value: Any) -> Any:
    return value.real if isinstance(value, Flow) else value


def _as_flow(value: Any) -> Flow:
    if isinstance(value, Flow):
        return value
    return Flow(value, jnp.square(value), 0.0, reads=False)


def _refuse(name: str, within: str) -> NoReturn:
    place = f"{name!r} in {within!r}" if within else repr(name)
    raise ValueError(
        f"`px` needs a network that is piecewise linear in its inputs and weights, got {place}. "
        "Use ReLU or another piecewise linear activation, and norms in inference mode."
    )


def _aligned(flows: Sequence[Flow]) -> tuple[list[Any], Any]:
    """The squared values with the largest of their exponents."""
    exponents = [flow.exponent for flow in flows]
    largest = exponents[0]
    for exponent in exponents[1:]:
        largest = jnp.maximum(largest, exponent)
    if all(isinstance(exponent, float) for exponent in exponents):
        return [flow.squared for flow in flows], 0.0
    return [_scaled(flow.squared, flow.exponent - largest) for flow in flows], largest


def _rescaled(values: Any, exponent: Any) -> Found:
    """The same values with mantissas of at most 2."""
    largest = lax.stop_gradient(jnp.max(values, initial=0.0))
    shift = jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1.0)))
    return [_scaled(values, -shift)], exponent + shift


def _scaled(values: Any, exponent: Any) -> Any:
    """The values times 2 to the power of a whole number."""
    return values * jnp.exp2(lax.stop_gradient(exponent)).astype(values.dtype)


def _same(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations whose factor is 1 or -1."""
    del eqn
    return [operands[0].squared], operands[0].exponent


def _moved(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Operations that move or add up entries of the first operand; the rest are indices."""
    first, *rest = operands
    if not isinstance(first, Flow) or any(isinstance(value, Flow) for value in rest):
        return None
    return jaxprs.bind(eqn, first.squared, *rest), first.exponent


def _together(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """Operations that put operands beside each other."""
    aligned, exponent = _aligned(list(map(_as_flow, operands)))
    return jaxprs.bind(eqn, *aligned), exponent


def _added(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    del eqn
    (one, two), exponent = _aligned(list(map(_as_flow, operands)))
    return [one + two], exponent


def _product(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    """Products in which at most one factor depends on the inputs."""
    one, two = map(_as_flow, operands)
    if one.reads and two.reads:
        return None
    found, exponent = jaxprs.bind(eqn, one.squared, two.squared), one.exponent + two.exponent
    constant = eqn.primitive.name == "mul" and not all(isinstance(v, Flow) for v in operands)
    return (found, exponent) if constant else _rescaled(found[0], exponent)


def _quotient(eqn: jaxprs.Equation, operands: list[Any]) -> Found | None:
    del eqn
    one, two = operands
    if isinstance(two, Flow):
        return None
    return [one.squared / jnp.square(two)], one.exponent


def _chosen(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared value of the larger or smaller operand; of a constant only where it equals."""
    one, two = map(_as_flow, operands)
    larger = one.real > two.real if isinstance(operands[0], Flow) else one.real >= two.real
    if eqn.primitive.name == "min":
        larger = one.real < two.real if isinstance(operands[0], Flow) else one.real <= two.real
    aligned, exponent = _aligned([one, two])
    return [jnp.where(larger, *aligned)], exponent


def _selected(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    which, *cases = operands
    aligned, exponent = _aligned(list(map(_as_flow, cases)))
    return jaxprs.bind(eqn, which, *aligned), exponent


def _pooled(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    """The squared values where the real ones are largest: a derivative along the squared ones."""
    (flow,) = operands
    _, found = jax.jvp(lambda real: jaxprs.bind(eqn, real)[0], (flow.real,), (flow.squared,))
    return [found], flow.exponent


def _updated(eqn: jaxprs.Equation, operands: list[Any]) -> Found:
    array, update, *starts = operands
    aligned, exponent = _aligned([_as_flow(array), _as_flow(update)])
    return jaxprs.bind(eqn, *aligned, *starts), exponent


Rule = Callable[[jaxprs.Equation, list[Any]], "Found | None"]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("abs", "neg"), _same),
    **dict.fromkeys(
        """
        broadcast_in_dim convert_element_type copy copy_p cumsum dynamic_slice expand_dims gather
        reduce_sum reduce_window_sum reshape rev slice split squeeze transpose
        """.split(),
        _moved,
    ),
    **dict.fromkeys(("concatenate", "pad"), _together),
    **dict.fromkeys(("add", "add_any", "sub"), _added),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), _product),
    **dict.fromkeys(("max", "min"), _chosen),
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_window_max"), _pooled),
    "div": _quotient,
    "dynamic_update_slice": _updated,
    "select_n": _selected,
}
"""By the name of the operation: None where these operands make it nonlinear."""
