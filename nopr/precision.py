"""Double precision inside a program of single precision.

`jax.enable_x64` is a tracing context: vmap, scan, checkify and the compiler transform the traced
program later, outside the context, where their rules truncate float64 to float32 or fail.
`in_double` is an operation of its own, each of whose rules enters the context again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from nopr import jaxprs

IN_DOUBLE = "in_double"
"""The name of the operation in jaxprs; its parameter `jaxpr` is the double-precision program."""


def in_double(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Calls `function(*args)` with float64 and int64 enabled, under any transformation.

    The result may hold float64 arrays; operate on them in another `in_double`, since all other
    operations run in the caller's precision. Works under jit, vmap, scan and checkify, in any
    nesting; it is not differentiable, and checkify does not see checks inside it.

    Args:
      function: A pure function; it may close over traced values.
      *args: Pytrees of arrays.

    Returns:
      The result of `function`.
    """
    with jax.enable_x64(True):
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, args))
        program, shape = jaxprs.trace(
            lambda *leaves: function(*jax.tree.unflatten(treedef, leaves)), *leaves
        )
        # Traced values become arguments; constants stay inside and keep their 64 bits.
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
