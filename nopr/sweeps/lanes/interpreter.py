"""A traced program of one case, done for all cases with these along the last axis.

Values that are the same for all cases have no such axis. Which ones these are is known before
anything is done (`flow`), so that loops can be given carries that keep their shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from nopr import precision
from nopr.sweeps.lanes import lookups, rules, sums

RULES = {**rules.RULES, **sums.RULES, **lookups.RULES}


def interpret(
    program: Any, values: rules.Values, batched: rules.Batched
) -> tuple[list[Any], list[bool]]:
    """Does a traced program on all cases.

    Args:
      program: A closed jaxpr of one case.
      values: Its arguments, the cases along the last axis of those that have them.
      batched: Which ones do.

    Returns:
      The results, and which of them have cases.

    Raises:
      NotImplementedError: If the program has mutable arrays.
    """
    jaxpr = program.jaxpr
    env = {var: (const, False) for var, const in zip(jaxpr.constvars, program.consts, strict=True)}
    env |= _pairs(jaxpr.invars, values, batched)

    def read(atoms: Any) -> tuple[list[Any], list[bool]]:
        found = [
            (atom.val, False) if isinstance(atom, core.Literal) else env[atom] for atom in atoms
        ]
        return [value for value, _ in found], [has for _, has in found]

    for eqn in jaxpr.eqns:
        _check_immutable(eqn)
        operands, have = read(eqn.invars)
        with eqn.ctx.manager:
            if not any(have):
                results = rules.bind(eqn, *operands)
                env |= _pairs(eqn.outvars, results, [False] * len(results))
            elif eqn.primitive.name in CONTROL and not _is_left_to_jax(eqn, have):
                results = CONTROL[eqn.primitive.name](eqn, operands, have)
                env |= _pairs(eqn.outvars, results, _flow_of(eqn, have))
            else:
                rule = RULES.get(eqn.primitive.name, rules.generic)
                results = rule(eqn, operands, have)
                env |= _pairs(eqn.outvars, results, [True] * len(results))
    return read(jaxpr.outvars)


def _pairs(variables: Any, values: Any, batched: Any) -> dict[Any, tuple[Any, bool]]:
    return dict(zip(variables, zip(values, batched, strict=True), strict=True))


def _check_immutable(eqn: Any) -> None:
    for var in eqn.outvars:
        if "Ref" in type(var.aval).__name__:
            raise NotImplementedError(
                f"`lanes.vmap` knows no mutable arrays, got {eqn.primitive.name!r}. "
                "Use `jax.vmap`, or arrays that are not mutable."
            )


def _interpret_as(program: Any, values: Any, batched: Any, wanted: Any, cases: int) -> list[Any]:
    """The results of `interpret`, with cases where they are `wanted`."""
    results, have = interpret(program, values, batched)
    return [
        rules.spread(result, has or not want, cases)
        for result, has, want in zip(results, have, wanted, strict=True)
    ]


def flow(program: Any, batched: rules.Batched) -> list[bool]:
    """Which results of a traced program have cases, by which arguments have."""
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.invars, batched, strict=True))

    def read(atoms: Any) -> list[bool]:
        return [not isinstance(atom, core.Literal) and env.get(atom, False) for atom in atoms]

    for eqn in jaxpr.eqns:
        have = read(eqn.invars)
        if any(have):
            env |= dict(zip(eqn.outvars, _flow_of(eqn, have), strict=True))
    return read(jaxpr.outvars)


def _flow_of(eqn: Any, batched: rules.Batched) -> list[bool]:
    if eqn.primitive.name in _FLOWS and not _is_left_to_jax(eqn, batched):
        return _FLOWS[eqn.primitive.name](eqn, batched)
    return [True] * len(eqn.outvars)


def _is_left_to_jax(eqn: Any, batched: rules.Batched) -> bool:
    """Branches chosen by the platform; and what JAX refuses, or does, with effects in a choice."""
    if eqn.primitive is primitives.cond_p:
        effects = any(branch.effects for branch in eqn.params["branches"])
        return "branches_platforms" in eqn.params or (batched[0] and bool(effects))
    return (
        eqn.primitive is primitives.while_p and bool(eqn.effects) and _while_flow(eqn, batched)[1]
    )


def _call(eqn: Any, values: Any, batched: Any) -> list[Any]:
    return interpret(_called(eqn), values, batched)[0]


def _call_flow(eqn: Any, batched: Any) -> list[bool]:
    return flow(_called(eqn), batched)


def _called(eqn: Any) -> Any:
    """The program that an operation calls; an open one has no constants."""
    found = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return found if isinstance(found, core.ClosedJaxpr) else core.ClosedJaxpr(found, ())


def _remat(eqn: Any, values: Any, batched: Any) -> list[Any]:
    called = jax.make_jaxpr(lambda *values: interpret(_called(eqn), values, batched)[0])(*values)
    jaxpr = called.jaxpr
    opened = jaxpr.replace(constvars=(), invars=(*jaxpr.constvars, *jaxpr.invars))
    return rules.bind(eqn, *called.consts, *values, jaxpr=opened)


def _in_double(eqn: Any, values: Any, batched: Any) -> list[Any]:
    with jax.enable_x64(True):
        program = jax.make_jaxpr(eqn.params["program"])(*_one_case(values, batched))
    wanted, cases = [True] * len(eqn.outvars), rules.cases_of(values, batched)
    return precision.in_double(
        lambda *values: _interpret_as(program, values, batched, wanted, cases), *values
    )


def _custom_jvp(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Keeps the derivative that was given, for whoever differentiates the whole."""
    wanted, count = [True] * len(eqn.outvars), len(values)
    cases = rules.cases_of(values, batched)

    @jax.custom_jvp
    def run(*values: Any) -> list[Any]:
        return _interpret_as(_called(eqn), values, batched, wanted, cases)

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
            results, out = jax.jvp(lambda *v: rules.bind(eqn, *v), values[:count], tangents)
            return results, [t for r, t in zip(results, out, strict=True) if _is_inexact(r)]

        every, flags = (*primals, *moving), (*batched, *has)
        program = jax.make_jaxpr(push)(*_one_case(every, flags))
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
    init = [
        rules.spread(value, has or not will, cases)
        for value, has, will in zip(
            values[first:last], batched[first:last], have[:carries], strict=True
        )
    ]

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
    carry = list(batched[first:last])
    while True:
        have = flow(eqn.params["jaxpr"], [*batched[:first], *carry, *batched[last:]])
        wider = [a or b for a, b in zip(carry, have[: len(carry)], strict=True)]
        if wider == carry:
            return [*carry, *have[len(carry) :]]
        carry = wider


def _while(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Where cases end at different times, those that have ended stand still."""
    params = eqn.params
    have, differ = _while_flow(eqn, batched)
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    cases = rules.cases_of(values, batched)
    init = [
        rules.spread(value, has or not will, cases)
        for value, has, will in zip(values[last:], batched[last:], have, strict=True)
    ]

    def goes_on(carry: Any) -> Any:
        return interpret(
            params["cond_jaxpr"], [*values[:first], *carry], [*batched[:first], *have]
        )[0][0]

    def body(carry: Any) -> Any:
        given, flags = [*values[first:last], *carry], [*batched[first:last], *have]
        new = _interpret_as(params["body_jaxpr"], given, flags, have, cases)
        if not differ:
            return new
        on = goes_on(carry)
        return [jnp.where(on, mine, old) for mine, old in zip(new, carry, strict=True)]

    return lax.while_loop(lambda carry: jnp.any(goes_on(carry)), body, init)


def _while_flow(eqn: Any, batched: Any) -> tuple[list[bool], bool]:
    """Which carries have cases, and whether these end at different times."""
    params = eqn.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carry = list(batched[last:])
    while True:
        have = flow(params["body_jaxpr"], [*batched[first:last], *carry])
        wider = [a or b for a, b in zip(carry, have, strict=True)]
        if wider == carry:
            break
        carry = wider
    (differ,) = flow(params["cond_jaxpr"], [*batched[:first], *carry])
    return ([True] * len(carry) if differ else carry), differ


def _cond(eqn: Any, values: Any, batched: Any) -> list[Any]:
    """Where cases differ in their branch, all branches are done and each case takes its own."""
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
        # A branch not taken passes no derivative on, which may be NaN (as in JAX).
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
    "in_double": _in_double,
    primitives.cond_p.name: _cond,
    primitives.custom_jvp_call_p.name: _custom_jvp,
    primitives.jit_p.name: _call,
    primitives.remat_p.name: _remat,
    primitives.scan_p.name: _scan,
    primitives.while_p.name: _while,
}

_FLOWS: dict[str, Callable[..., list[bool]]] = {
    primitives.cond_p.name: _cond_flow,
    primitives.jit_p.name: _call_flow,
    primitives.remat_p.name: _call_flow,
    primitives.scan_p.name: _scan_flow,
    primitives.while_p.name: lambda eqn, batched: _while_flow(eqn, batched)[0],
}
