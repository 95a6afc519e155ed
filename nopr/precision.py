"""Double precision inside a program of single precision.

`jax.enable_x64` is a context of tracing: what vmap, scan, checkify or the compiler later make of
the traced program happens outside it, where their rules cut float64 to float32 or fail. `in_double`
is a primitive of its own whose every rule enters the context again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import batching, mlir
from jaxtyping import PyTree


def in_double(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Calls `function(*args)` with float64 and int64 enabled, whatever transforms the call.

    The result may hold float64 arrays; pass them on to another `in_double`, since other operations
    on them belong to the caller's precision. Works under jit, vmap, scan and checkify, nested in
    any way; it is not differentiable, and checks inside it are not seen by checkify.

    Args:
      function: Pure; it may close over traced values.
      *args: Pytrees of arrays.
    """
    with jax.enable_x64(True):
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, args))
        closed, shape = jax.make_jaxpr(
            lambda *leaves: function(*jax.tree.unflatten(treedef, leaves)), return_shape=True
        )(*leaves)
        results = _bind(closed, leaves)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _bind(closed: Any, leaves: list[Any]) -> list[Any]:
    # What is traced goes in as an argument; constants stay inside, as 64-bit as they are.
    traced = tuple(isinstance(const, jax.core.Tracer) for const in closed.consts)
    hoisted = [const for const, t in zip(closed.consts, traced, strict=True) if t]
    constants = tuple(const for const, t in zip(closed.consts, traced, strict=True) if not t)
    program = _Program(closed.jaxpr, traced, constants)
    return _in_double.bind(*hoisted, *leaves, program=program)


class _Program:
    """A traced function; equal only to itself, as the parameter of a primitive."""

    def __init__(self, jaxpr: Any, traced: tuple[bool, ...], constants: tuple[Any, ...]):
        self.jaxpr, self.traced, self.constants = jaxpr, traced, constants

    def __repr__(self) -> str:
        """What it computes, so that the text of a jaxpr says it, too; no addresses."""
        constants = [np.asarray(const) for const in self.constants]
        digests = [hashlib.sha256(const.tobytes()).hexdigest() for const in constants]
        return f"{self.jaxpr} {self.traced} {digests}"

    def __call__(self, *args: Any) -> list[Any]:
        given, fixed = iter(args), iter(self.constants)
        consts = [next(given) if t else next(fixed) for t in self.traced]
        with jax.enable_x64(True):
            return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, consts))(*given)


def _batch(args: Any, dims: Any, *, program: _Program) -> tuple[list[Any], list[int]]:
    axes = tuple(dim if isinstance(dim, int) else None for dim in dims)
    results = in_double(jax.vmap(program, in_axes=axes), *args)
    return results, [0] * len(results)


def _lower(ctx: Any, *args: Any, program: _Program) -> Any:
    with jax.enable_x64(True):
        return mlir.lower_fun(program, multiple_results=True)(ctx, *args)


_in_double = core.Primitive("in_double")
_in_double.multiple_results = True
_in_double.def_impl(lambda *args, program: program(*args))
_in_double.def_abstract_eval(lambda *args, program: [v.aval for v in program.jaxpr.outvars])
batching.primitive_batchers[_in_double] = _batch
mlir.register_lowering(_in_double, _lower)
