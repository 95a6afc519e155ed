"""Double precision inside a program of single precision.

`jax.enable_x64` is a context of tracing: what vmap, scan, checkify or the compiler later make of
the traced program happens outside it, where their rules cut float64 to float32 or fail. `in_double`
is an operation of its own whose every rule enters the context again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from nopr import jaxprs

IN_DOUBLE = "in_double"
"""The operation in a jaxpr; its parameter `jaxpr` is the program in double precision."""


def in_double(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Calls `function(*args)` with float64 and int64 enabled, whatever transforms the call.

    The result may hold float64 arrays; pass them on to another `in_double`, since other operations
    on them belong to the caller's precision. Works under jit, vmap, scan and checkify, nested in
    any way; it is not differentiable, and checks inside it are not seen by checkify.

    Args:
      function: Pure function; it may close over traced values.
      *args: Pytrees of arrays.

    Returns:
      What `function` returns.
    """
    with jax.enable_x64(True):
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, args))
        program, shape = jaxprs.trace(
            lambda *leaves: function(*jax.tree.unflatten(treedef, leaves)), *leaves
        )
        # What is traced goes in as an argument; constants stay inside, as 64-bit as they are.
        traced, program = jaxprs.hoisted(program, lambda const: isinstance(const, jax.core.Tracer))
        results = _in_double(*traced, *leaves, jaxpr=program)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _run(*args: Any, jaxpr: jaxprs.Program) -> list[Any]:
    with jax.enable_x64(True):
        return jaxprs.run(jaxpr)(*args)


def _batch(args: Any, dims: Any, *, jaxpr: jaxprs.Program) -> tuple[list[Any], list[int]]:
    axes = tuple(dim if isinstance(dim, int) else None for dim in dims)
    results = in_double(jax.vmap(lambda *args: _run(*args, jaxpr=jaxpr), in_axes=axes), *args)
    return results, [0] * len(results)


_in_double = jaxprs.primitive(
    IN_DOUBLE,
    _run,
    shapes=lambda *args, jaxpr: list(jaxpr.out_avals),
    batch=_batch,
    context=lambda: jax.enable_x64(True),
)
