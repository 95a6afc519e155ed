"""Programs as JAX traces them: inspected, evaluated by other rules, or digested.

A program is a closed jaxpr: a list of equations, each of which applies one operation to variables
and literals. Some equations hold programs of their own: calls, loops, branches, custom derivatives.
This is the only module that touches these internals of JAX, so that nothing else has to change
when a release moves them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jax.extend.random import threefry_prng_impl
from jax.interpreters import batching, mlir
from jaxtyping import PyTree

from nopr.typing import is_key

T = TypeVar("T")

Program: TypeAlias = Any
"""A closed jaxpr: `program.jaxpr` has its equations, `program.consts` its constants."""

Equation: TypeAlias = Any
"""One operation: `primitive`, `params`, `invars` and `outvars`, each with its `aval`."""

COND = primitives.cond_p.name
CUSTOM_JVP = primitives.custom_jvp_call_p.name
CUSTOM_VMAP = "custom_vmap_call"  # of `jax.custom_batching`, which does not name it
JIT = primitives.jit_p.name
REMAT = primitives.remat_p.name
SCAN = primitives.scan_p.name
WHILE = primitives.while_p.name

_CALLS = {
    *(CUSTOM_JVP, CUSTOM_VMAP, JIT, REMAT, primitives.custom_vjp_call_p.name),
    *(primitives.call_p.name, primitives.closed_call_p.name),
}
_HELD = ("jaxpr", "call_jaxpr", "call")  # under which a call holds its program
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_Generator = type(threefry_prng_impl)  # a random number generator: functions and a tag
# Python code that a program holds for derivatives and printing, or next to its own jaxpr.
_IGNORED = {
    *("bwd", "computation", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "out_trees"),
    "policy",
}
_SEQUENTIAL = "sequential_vmap.<locals>.rule"  # runs the program that stands beside it
_UNHEARD = {"debug_callback", "debug_print"}  # results do not depend on these callbacks


class Traced(NamedTuple):
    """A traced function."""

    program: Program
    """From the flattened arguments to the flattened results."""
    out_shape: PyTree
    """Shapes and dtypes of the results, as the function returns them."""


def trace(function: Callable[..., PyTree], *args: PyTree) -> Traced:
    """Traces a function.

    Args:
      function: A pure function; arrays and traced values that it closes over become constants.
      *args: Pytrees of arrays, or of their shapes and dtypes.

    Returns:
      The program, and the shapes of its results.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import jaxprs
      >>> program, _ = jaxprs.trace(lambda x: jnp.tanh(x) + 1, 0.0)
      >>> [eqn.primitive.name for eqn in jaxprs.equations(program)]
      ['tanh', 'add']
      >>> jaxprs.evaluate(program, [0.0])
      [Array(1., dtype=float32, weak_type=True)]
    """
    return Traced(*jax.make_jaxpr(function, return_shape=True)(*args))


def called(eqn: Equation) -> Program | None:
    """The program that a call runs on its own operands; None for other operations.

    Calls come from `jax.jit`, `jax.checkpoint` and functions with custom derivatives or batching.
    """
    if eqn.primitive.name not in _CALLS:
        return None
    return _closed(next(eqn.params[name] for name in _HELD if name in eqn.params))


def inner(eqn: Equation) -> Iterator[Program]:
    """Every program that an operation holds: what it calls, loop bodies and branches."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if _is_program(item):
                yield _closed(item)


def equations(program: Program) -> Iterator[Equation]:
    """Every equation, each followed by those of the programs within it."""
    for eqn in program.jaxpr.eqns:
        yield eqn
        for held in inner(eqn):
            yield from equations(held)


def fold(
    program: Program,
    values: Sequence[T],
    step: Callable[[Equation, list[T]], Sequence[T]],
    *,
    constant: Callable[[Any], T],
) -> list[T]:
    """Carries a value for every variable through a program, from its arguments to its results.

    Args:
      program: The program whose own equations are visited in order; `step` may call `fold` on the
        programs that they hold.
      values: One value for each argument.
      step: `step(equation, operands) -> results`, from the values of the operands to those of the
        results. It runs in the context in which the equation was traced.
      constant: A function from a literal or constant to its value.

    Returns:
      The values of the results.
    """
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, map(constant, program.consts), strict=True))
    known |= zip(jaxpr.invars, values, strict=True)

    def read(atoms: Sequence[Any]) -> list[T]:
        return [
            constant(atom.val) if isinstance(atom, core.Literal) else known[atom] for atom in atoms
        ]

    for eqn in jaxpr.eqns:
        with eqn.ctx.manager:
            known |= zip(eqn.outvars, step(eqn, read(eqn.invars)), strict=True)
    return read(jaxpr.outvars)


def evaluate(
    program: Program,
    values: Sequence[Any],
    rules: Mapping[str, Callable[[Equation, list[Any]], Sequence[Any]]] | None = None,
) -> list[Any]:
    """Runs a program, with some of its operations replaced by rules.

    Args:
      program: The program to run. With rules, calls are entered unless they have a rule of their
        own; this drops custom derivatives.
      values: The arguments.
      rules: `rule(eqn, operands) -> results` by the name of an operation. Loops and branches run
        unchanged, without rules inside, unless they have a rule of their own.

    Returns:
      The results.
    """

    def step(eqn: Equation, operands: list[Any]) -> Sequence[Any]:
        if rules and eqn.primitive.name in rules:
            return rules[eqn.primitive.name](eqn, operands)
        call = called(eqn) if rules else None
        return bind(eqn, *operands) if call is None else evaluate(call, operands, rules)

    return fold(program, values, step, constant=lambda value: value)


def bind(eqn: Equation, *values: Any, **changed: Any) -> list[Any]:
    """Applies the operation of `eqn` to these operands, with some of its parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    results = eqn.primitive.bind(*values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def replaced(eqn: Equation, change: Callable[[Program], Program]) -> dict[str, Any]:
    """The parameters of an operation, with `change` applied to each program among them."""

    def new(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(new, value))
        return change(value) if isinstance(value, core.ClosedJaxpr) else value

    return {name: new(value) for name, value in eqn.params.items()}


def run(program: Program) -> Callable[..., list[Any]]:
    """The program as a function of its flattened arguments."""
    return core.jaxpr_as_fun(program)


def replace_constants(program: Program, constants: Sequence[Any]) -> Program:
    """The program with its constants replaced."""
    return core.ClosedJaxpr(program.jaxpr, list(constants))


def hoisted(
    program: Program, which: Callable[[Any], bool] = lambda constant: True
) -> tuple[list[Any], Program]:
    """The constants that `which` picks, and the program that takes them as first arguments."""
    jaxpr = program.jaxpr
    picked = [which(const) for const in program.consts]
    pairs = list(zip(jaxpr.constvars, program.consts, picked, strict=True))
    arguments = [var for var, _, pick in pairs if pick]
    kept = [var for var, _, pick in pairs if not pick]
    opened = jaxpr.replace(constvars=kept, invars=[*arguments, *jaxpr.invars])
    constants = [const for _, const, pick in pairs if not pick]
    return [const for _, const, pick in pairs if pick], core.ClosedJaxpr(opened, constants)


def primitive(
    name: str,
    function: Callable[..., list[Any]],
    *,
    shapes: Callable[..., list[Any]],
    batch: Callable[..., tuple[list[Any], list[int]]],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[..., list[Any]]:
    """Makes an operation that JAX does not look inside, as it would with a function.

    It has no derivative.

    Args:
      name: The name of the operation in jaxprs.
      function: `function(*arrays, **params) -> results`, which computes the results.
      shapes: `shapes(*avals, **params)`, from the abstract values of the operands to those of the
        results.
      batch: `batch(arrays, axes, **params)`, the results and their axes under `vmap`.
      context: The context in which `function` is lowered.

    Returns:
      A function that binds the operation.
    """

    def lower(ctx: Any, *args: Any, **params: Any) -> Any:
        with context():
            return mlir.lower_fun(function, multiple_results=True)(ctx, *args, **params)

    made = core.Primitive(name)
    made.multiple_results = True
    made.def_impl(function)
    made.def_abstract_eval(shapes)
    batching.primitive_batchers[made] = batch
    mlir.register_lowering(made, lower)
    return made.bind


def digest(program: Program) -> str:
    """The SHA-256 of what a program computes: operations, shapes, parameters and constants.

    It is the same in every process. Python code that a program calls back enters by its type only:
    see `opaque`.
    """
    return _digest(program, {})


def opaque(program: Program) -> list[str]:
    """The operations whose results depend on Python code, which a digest cannot distinguish.

    Callbacks of `jax.debug` and custom derivatives are not included.

    Returns:
      The names of the operations, sorted.
    """
    return sorted(
        {
            eqn.primitive.name
            for eqn in equations(program)
            for name, value in eqn.params.items()
            if eqn.primitive.name not in _UNHEARD and name not in _IGNORED and _is_opaque(value)
        }
    )


def _digest(program: Program, known: dict[int, str]) -> str:
    total = hashlib.sha256()
    names: dict[Any, str] = {}

    def say(*words: str) -> None:
        total.update(" ".join((*words, "\n")).encode())

    def named(atoms: Sequence[Any]) -> list[str]:
        return [
            _written(atom.val, known)
            if isinstance(atom, core.Literal)
            else f"{names.setdefault(atom, str(len(names)))}:{atom.aval}"
            for atom in atoms
        ]

    jaxpr = program.jaxpr
    say("constants", *named(jaxpr.constvars), *(_written(const, known) for const in program.consts))
    say("arguments", *named(jaxpr.invars))
    for eqn in jaxpr.eqns:
        params = [
            f"{name}={_written(value, known)}"
            for name, value in sorted(eqn.params.items())
            if name not in _IGNORED
        ]
        inputs, context = named(eqn.invars), _written(eqn.ctx, known)
        say(eqn.primitive.name, *inputs, "->", *named(eqn.outvars), *params, context)
    say("results", *named(jaxpr.outvars))
    return total.hexdigest()


def _written(value: Any, known: dict[int, str]) -> str:
    """A parameter or constant as text: the same in every process, different for other values."""
    if _is_program(value):  # each is digested once
        if id(value) not in known:
            known[id(value)] = _digest(_closed(value), known)
        return known[id(value)]
    if isinstance(value, _Generator):
        return f"{value.name} {value.tag}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_written(item, known) for item in value)})"
    if is_key(value):
        return f"{value.dtype} {_written(jax.random.key_data(value), known)}"
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return _ADDRESS.sub("", str(value))


def _is_opaque(value: Any) -> bool:
    if isinstance(value, _Generator) or getattr(value, "__qualname__", "") == _SEQUENTIAL:
        return False
    if isinstance(value, tuple | list):
        return any(map(_is_opaque, value))
    if _is_program(value) or isinstance(value, type | jax.sharding.Mesh | jax.tree_util.PyTreeDef):
        return False
    arrays = np.ndarray | np.generic | jax.Array
    return callable(value) or not (isinstance(value, arrays) or not _ADDRESS.search(str(value)))


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _closed(program: Any) -> Program:
    """An open or closed jaxpr as a closed one; open ones have no constants."""
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())
