"""Rows and their statistics, for each kernel over all its uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from nopr import trees
from nopr.capture.kernels import walk
from nopr.capture.uses import Entering, Use
from nopr.typing import Apply, Params, Where

BLOCK_BYTES = 1 << 26
"""The most memory that the patches of a convolution take at a time, if one example fits."""


def rows(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, Float[Array, "groups rows fan_in"]]:
    """What enters each kernel: the rows that its matrix multiplies.

    A row is what a dense kernel or attention's is contracted with, or a patch of a convolution's
    inputs, its entries in the order of the kernel's contracted axes. So the kernel's outputs are
    `rows @ kernel.matrix(leaf)`, with `kernel` from `kernels`.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      Rows by path, in the order of use; [1, rows, fan_in] for kernels without groups. The rows of
      all uses of a shared kernel follow each other.

    Raises:
      ValueError: If a leaf cannot be followed, is used in two different ways, or is not used as a
        kernel; the message has its path.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import capture
      >>> def apply(params, x):
      ...     return jnp.maximum(x @ params["body"], 0) @ params["head"]
      >>> params = {"body": jnp.array([[1.0, -1.0]]), "head": jnp.ones((2, 3))}
      >>> capture.rows(apply, params, jnp.array([[2.0], [-3.0]]))["head"]
      Array([[[2., 0.],
              [0., 3.]]], dtype=float32)
    """
    found: dict[str, list[Array]] = {}

    def visit(use: Use) -> None:
        (one,) = use.entering
        found.setdefault(use.kernel.path, []).append(one.rows(one.operand))

    walk(apply, [params], inputs, visit, where=where)
    return {path: jnp.concatenate(each, axis=1) for path, each in found.items()}


def second_moments(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, Float[Array, "groups fan_in fan_in"]]:
    r"""The second moments of the rows that enter each kernel, :math:`\sum_r x_r x_r^T / R`.

    Patches are formed for some examples at a time. Means have at least float32.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      Second moments by path, in the order of use.

    Raises:
      ValueError: As `rows` does.
    """
    return _means(apply, params, inputs, where, lambda one: total(gram, one))


def squared_norms(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, Float[Array, "groups fan_in"]]:
    r"""The squared norm of each input entry over all rows, :math:`\sum_r x_{ri}^2`.

    Patches are formed for some examples at a time. Sums have at least float32.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      Squared norms by path, in the order of use.

    Raises:
      ValueError: As `rows` does.
    """

    def squares(block: Array) -> Array:
        return jnp.sum(jnp.square(_wide(block)), axis=1)

    return _sums(apply, params, inputs, where, lambda one: total(squares, one))


def nonzero(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, Float[Array, "groups entries"]]:
    """The share of nonzero values in what enters each kernel.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      Shares in [0, 1] by path, in the order of use: [groups, fan_in] for matrix products, and
      [groups, channels] for convolutions, over the pixels of their inputs without the padding.

    Raises:
      ValueError: As `rows` does.
    """

    def entries(one: Entering) -> Array:
        values = one.entries(one.operand)
        there = jnp.where(jnp.isnan(values), jnp.nan, jnp.float32(values != 0))
        return jnp.sum(there, axis=1)

    def count(one: Entering) -> int:
        return jax.eval_shape(one.entries, one.operand).shape[1]

    return _means(apply, params, inputs, where, entries, count)


def total(function: Callable[..., PyTree], entering: Entering, *others: Entering) -> PyTree:
    """The sum of a function over blocks of the rows that enter a kernel in one use.

    Args:
      function: `function(*blocks) -> value`, from a block [groups, rows, fan_in] of `entering` and
        one of each of `others` to arrays; its sum over blocks must be its value for all rows.
      entering: What enters the kernel.
      *others: What enters it in other copies of the network.

    Returns:
      The sum. Patches of a convolution are formed for as many examples at a time as fit into
      64 MiB.
    """
    every, first = (entering, *others), entering
    axis, size = first.examples, jnp.shape(first.operand)
    if axis is None or not size[axis]:
        return function(*(one.rows(one.operand) for one in every))
    row = jax.eval_shape(lambda x: first.rows(jax.lax.slice_in_dim(x, 0, 1, axis=axis)), first[0])
    bytes_each = max(math.prod(row.shape) * max(row.dtype.itemsize, 4), 1)
    block = min(max(BLOCK_BYTES // bytes_each, 1), size[axis])

    part = partial(jax.lax.dynamic_slice_in_dim, axis=axis)

    def of(start: Any, length: int) -> PyTree:
        return function(*(one.rows(part(one.operand, start, length)) for one in every))

    blocks = size[axis] // block
    result = of(0, block)
    if blocks > 1:
        result = jax.lax.fori_loop(
            1, blocks, lambda i, sums: jax.tree.map(jnp.add, sums, of(i * block, block)), result
        )
    rest = size[axis] - blocks * block
    return jax.tree.map(jnp.add, result, of(blocks * block, rest)) if rest else result


def gram(one: Array, other: Array | None = None) -> Array:
    """The sum over rows of outer products, [groups, fan_in, fan_in], in at least float32."""
    other = one if other is None else other
    return jnp.einsum("gri,grj->gij", _wide(one), _wide(other), precision="highest")


def row_count(one: Entering) -> int:
    """The number of rows that enter a group of a kernel in one use."""
    return jax.eval_shape(one.rows, one.operand).shape[1]


def _sums(
    apply: Apply, params: Params, inputs: Any, where: Where, function: Callable[[Entering], Any]
) -> dict[str, Any]:
    """The sum of a function over the uses of each kernel, by path."""
    found: dict[str, Any] = {}

    def visit(use: Use) -> None:
        path, new = use.kernel.path, function(use.entering[0])
        found[path] = jax.tree.map(jnp.add, found[path], new) if path in found else new

    walk(apply, [params], inputs, visit, where=where)
    return found


def _means(
    apply: Apply,
    params: Params,
    inputs: Any,
    where: Where,
    function: Callable[[Entering], Array],
    count: Callable[[Entering], int] = row_count,
) -> dict[str, Array]:
    """The sum of a function over the uses of each kernel, over the number of their rows."""
    sums = _sums(apply, params, inputs, where, lambda one: (function(one), count(one)))
    return {path: one / max(number, 1) for path, (one, number) in sums.items()}


def _wide(values: Array) -> Array:
    return values.astype(jnp.float32) if values.dtype.itemsize < 4 else values
