"""A traced program of one case, evaluated with all cases along the last axis.

Values that are the same for all cases have no axis of cases. `flow` determines which ones these are
before anything is evaluated, so that the carries of a loop keep their shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nopr import jaxprs, precision
from nopr.sweeps.lanes import lookups, rules, sums

RULES = {**rules.RULES, **sums.RULES, **lookups.RULES}


def interpret(
    program: jaxprs.Program, values: rules.Values, batched: rules.Batched
) -> tuple[list[Any], list[bool]]:
    """Evaluates a traced program on all cases.

    Args:
      program: The program of one case.
      values: Its arguments, with the cases, if any, along the last axis.
      batched: For each argument, whether it has cases.

    Returns:
      The results, and for each whether it has cases.

    Raises:
      NotImplementedError: If the program has mutable arrays.
    """

    def step(eqn: Any, operands: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        _check_immutable(eqn)
        values, have = [value for value, _ in operands], [has for _, has in operands]
        flags = _flow_of(eqn, have)
        if not any(have):
            results = jaxprs.bind(eqn, *values)
        elif eqn.primitive.name in CONTROL and not _is_left_to_jax(eqn, have):
            results = CONTROL[eqn.primitive.name](eqn, values, have)
        else:
            results = RULES.get(eqn.primitive.name, rules.generic)(eqn, values, have)
        return list(zip(results, flags, strict=True))

    given = list(zip(values, batched, strict=True))
    found = jaxprs.fold(program, given, step, constant=lambda value: (value, False))
    return [value for value, _ in found], [has for _, has in found]


def _check_immutable(eqn: Any) -> None:
    for var in eqn.outvars:
        if "Ref" in type(var.aval).__name__:
            raise NotImplementedError(
                f"`vmap_lanes` supports no mutable arrays, got {eqn.primitive.name!r}. "
                "Use `jax.vmap`, or arrays that are not mutable."
            )


def _interpret_as(program: Any, values: Any, batched: Any, wanted: Any, cases: int) -> list[Any]:
    """The results of `interpret`, with cases wherever `wanted`."""
    return _spread(*interpret(program, values, batched), wanted, cases)


def _spread(values: Any, batched: Any, wanted: Any, cases: int) -> list[Any]:
    """The values, with cases wherever `wanted`."""
    triples = zip(values, batched, wanted, strict=True)
    return [rules.spread(value, has or not want, cases) for value, has, want in triples]


def flow(program: jaxprs.Program, batched: rules.Batched) -> list[bool]:
    """Which results of a traced program have cases, given which arguments have."""
    return jaxprs.fold(program, batched, _flow_of, constant=lambda value: False)


def _flow_of(eqn: Any, batched: rules.Batched) -> list[bool]:
    if any(batched) and eqn.primitive.name in _FLOWS and not _is_left_to_jax(eqn, batched):
        return _FLOWS[eqn.primitive.name](eqn, batched)
    return [any(batched)] * len(eqn.outvars)


def _is_left_to_jax(eqn: Any, batched: rules.Batched) -> bool:
    """Whether an operation is left to JAX: branches by platform, and effects in a choice."""
    if eqn.primitive.name == jaxprs.COND:
        effects = any(branch.effects for branch in eqn.params["branches"])
        return "branches_platforms" in eqn.params or (batched[0] and bool(effects))
    return eqn.primitive.name == jaxprs.WHILE and bool(eqn.effects) and _while_flow(eqn, batched)[1]


def _call(eqn: Any, values: Any, batched: Any) -> list[Any]:
    return interpret(jaxprs.called(eqn), values, batched)[0]


def _call_flow(eqn: Any, batched: Any) -> list[bool]:
    return flow(jaxprs.called(eqn), batched)


def _remat(eqn: Any, values: Any, batched: Any) -> list[Any]:
    program, _ = jaxprs.trace(lambda *values: _call(eqn, values, batched), *values)
    constants, opened = jaxprs.hoisted(program)
    return jaxprs.bind(eqn, *constants, *values, jaxpr=opened.jaxpr)


def _in_double(eqn: Any, values: Any, batched: Any) -> list[Any]:
    wanted, cases = [True] * len(eqn.outvars), rules.cases_of(values, batched)
    return precision.in_double(
        lambda *values: _interpret_as(eqn.params["jaxpr"], values, batched, wanted, cases), *values
    )


def _custom_jvp(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Keeps the custom derivative, for differentiation of the whole."""
    wanted, count = [True] * len(eqn.outvars), len(values)
    cases = rules.cases_of(values, batched)

    @jax.custom_jvp
    def run(*values: Any) -> list[Any]:
        return _interpret_as(jaxprs.called(eqn), values, batched, wanted, cases)

    @run.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        moves = [_is_inexact(value) for value in primals]
        moving = [tangent for tangent, move in zip(tangents, moves, strict=True) if move]
        has = [b for b, move in zip(batched, moves, strict=True) if move]

        def push(*values: Any) -> tuple[Any, Any]:
            given = iter(values[count:])
            tangents = tuple(
                next(given) if move else np.zeros(np.shape(value), jax.dtypes.float0)
                for value, move in zip(values[:count], moves, strict=True)
            )
            results, out = jax.jvp(lambda *v: jaxprs.bind(eqn, *v), values[:count], tangents)
            return results, [t for r, t in zip(results, out, strict=True) if _is_inexact(r)]

        every, flags = (*primals, *moving), (*batched, *has)
        program, _ = jaxprs.trace(push, *_one_case(every, flags))
        everything = [True] * len(program.out_avals)
        found = _interpret_as(program, every, flags, everything, cases)
        results, pushed = found[: len(wanted)], iter(found[len(wanted) :])
        return results, [
            next(pushed) if _is_inexact(result) else np.zeros(result.shape, jax.dtypes.float0)
            for result in results
        ]

    return run(*values)


def _is_inexact(value: Any) -> bool:
    return jnp.issubdtype(jax.typeof(value).dtype, jnp.inexact)


def _one_case(values: Any, batched: Any) -> list[jax.ShapeDtypeStruct]:
    types = [(jax.typeof(value), has) for value, has in zip(values, batched, strict=True)]
    return [
        jax.ShapeDtypeStruct(t.shape[:-1] if has else t.shape, t.dtype, weak_type=t.weak_type)
        for t, has in types
    ]


def _scan(eqn: Any, values: Any, batched: Any) -> list[Any]:
    params, have = eqn.params, _scan_flow(eqn, batched)
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    carries = last - first
    inner = [*batched[:first], *have[:carries], *batched[last:]]
    cases = rules.cases_of(values, batched)
    init = _spread(values[first:last], batched[first:last], have[:carries], cases)

    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        given = [*values[:first], *carry, *xs]
        results = _interpret_as(params["jaxpr"], given, inner, have, cases)
        return results[:carries], results[carries:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, init, list(values[last:]), **options)
    return [*carry, *ys]


def _scan_flow(eqn: Any, batched: Any) -> list[bool]:
    first = eqn.params["num_consts"]
    last = first + eqn.params["num_carry"]

    def after(carry: list[bool]) -> list[bool]:
        return flow(eqn.params["jaxpr"], [*batched[:first], *carry, *batched[last:]])

    carry = _settled(list(batched[first:last]), after)
    return [*carry, *after(carry)[len(carry) :]]


def _settled(carry: list[bool], after: Callable[[list[bool]], list[bool]]) -> list[bool]:
    """Which carries of a loop have cases in any round; `after` gives those after one more round."""
    while True:
        wider = [a or b for a, b in zip(carry, after(carry), strict=False)]
        if wider == carry:
            return carry
        carry = wider


def _while(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Evaluates a while loop; cases that have ended keep their values while others run."""
    params = eqn.params
    have, differ = _while_flow(eqn, batched)
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    cases = rules.cases_of(values, batched)
    init = _spread(values[last:], batched[last:], have, cases)

    def running(carry: Any) -> Any:
        return interpret(
            params["cond_jaxpr"], [*values[:first], *carry], [*batched[:first], *have]
        )[0][0]

    def body(carry: Any) -> Any:
        given, flags = [*values[first:last], *carry], [*batched[first:last], *have]
        new = _interpret_as(params["body_jaxpr"], given, flags, have, cases)
        if not differ:
            return new
        on = running(carry)
        return [jnp.where(on, mine, old) for mine, old in zip(new, carry, strict=True)]

    return lax.while_loop(lambda carry: jnp.any(running(carry)), body, init)


def _while_flow(eqn: Any, batched: Any) -> tuple[list[bool], bool]:
    """Which carries have cases, and whether cases can end at different times."""
    params = eqn.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    consts = batched[first:last]
    carry = _settled(
        list(batched[last:]), lambda carry: flow(params["body_jaxpr"], [*consts, *carry])
    )
    (differ,) = flow(params["cond_jaxpr"], [*batched[:first], *carry])
    return ([True] * len(carry) if differ else carry), differ


def _cond(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Evaluates branches; if cases differ in theirs, runs all branches and selects per case."""
    (index, *operands), flags = values, batched[1:]
    branches, have = eqn.params["branches"], _cond_flow(eqn, batched)
    cases = rules.cases_of(values, batched)
    if not batched[0]:

        def option(branch: Any) -> Callable[..., list[Any]]:
            return lambda *operands: _interpret_as(branch, operands, flags, have, cases)

        return lax.switch(index, [option(branch) for branch in branches], *operands)
    operands, flags = rules.spread_all(values, batched)[1:], [True] * len(flags)
    results = []
    for number, branch in enumerate(branches):
        # As in JAX, a branch not taken passes on no derivative, which may be NaN.
        mine = [jnp.where(index == number, x, lax.stop_gradient(x)) for x in operands]
        results.append(_interpret_as(branch, mine, flags, have, cases))
    return [
        lax.select_n(jnp.broadcast_to(index, options[0].shape), *options)
        for options in zip(*results, strict=True)
    ]


def _cond_flow(eqn: Any, batched: Any) -> list[bool]:
    if batched[0]:
        return [True] * len(eqn.outvars)
    flows = [flow(branch, batched[1:]) for branch in eqn.params["branches"]]
    return [any(each) for each in zip(*flows, strict=True)]


CONTROL: dict[str, Callable[..., list[Any]]] = {
    precision.IN_DOUBLE: _in_double,
    jaxprs.COND: _cond,
    jaxprs.CUSTOM_JVP: _custom_jvp,
    jaxprs.CUSTOM_VMAP: _call,
    jaxprs.JIT: _call,
    jaxprs.REMAT: _remat,
    jaxprs.SCAN: _scan,
    jaxprs.WHILE: _while,
}

_FLOWS: dict[str, Callable[..., list[bool]]] = {
    jaxprs.COND: _cond_flow,
    jaxprs.CUSTOM_VMAP: _call_flow,
    jaxprs.JIT: _call_flow,
    jaxprs.REMAT: _call_flow,
    jaxprs.SCAN: _scan_flow,
    jaxprs.WHILE: lambda eqn, batched: _while_flow(eqn, batched)[0],
}
