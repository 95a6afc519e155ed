"""The empirical Fisher information: sums over the gradients of single examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import precision, sweeps, trees
from nopr.criteria.shared import gradient, living, summed, wide
from nopr.typing import (
    Batch,
    Criterion,
    Loss,
    Masks,
    Params,
    Scores,
    Where,
    check_flags,
    check_loss,
    is_real,
    shown,
    whole_number,
)

MEMORY_BYTES = 2**32
"""The default limit on the memory of blocks of the Fisher information: 4 GiB."""


def woodfisher(
    loss: Loss,
    *,
    block: int = 50,
    damping: float = 1e-5,
    examples: int = 32,
    memory_bytes: int = MEMORY_BYTES,
    where: Where = trees.is_prunable,
    stacked: bool = False,
) -> Criterion:
    r"""Optimal brain surgeon :math:`w_q^2 / 2 [F^{-1}]_{qq}` with the empirical Fisher information.

    Removing :math:`w_q` at a minimum of the loss raises it by about this much if the other weights
    move to where they make up for it best, as `reconstruct.obs` moves them. The Hessian is
    approximated by the outer products of the gradients :math:`g_j` of the n examples,

    .. math:: F = \frac{1}{n} \sum_{j=1}^n g_j g_j^\top + \lambda I ,

    in blocks on the diagonal: of `block` consecutive weights of a leaf, filter by filter, that is
    with the last axis of the kernel slowest. With `block=1`, it is `obd` with damping.
    :math:`F^{-1}` is that of living weights alone. It comes from the Cholesky factors of the
    blocks, in double precision; the paper's recursion by the Woodbury identity gives the same.

    The released code can also average gradients over mini-batches before it takes outer products;
    here each example counts by itself.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch; called with single examples.
      block: Weights per block; a larger one is cut to the size of the leaf. The blocks take
        8 `block` bytes a weight.
      damping: The positive :math:`\lambda`.
      examples: Number of examples differentiated at once.
      memory_bytes: The most memory for the blocks, their sums and the gradients, not counting a
        `vmap` of yours.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches; the information is the mean over the
        examples of all.

    Returns:
      A criterion whose scores are at least float32. It raises a ValueError if the leaves of the
      batch share no leading axis, or the blocks take more than `memory_bytes`.

    Raises:
      ValueError: If `block`, `examples` or `memory_bytes` is not a whole number from 1 up, or
        `damping` is not positive.

    Source: Singh and Alistarh 2020, WoodFisher, arXiv:2004.14340.
    """
    check_flags(stacked=stacked)
    blocks = fisher_blocks(
        loss, block=block, damping=damping, examples=examples, memory_bytes=memory_bytes
    )

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = living(params, masks, where)
        if stacked:
            check_stacked(batch)
            batch = jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *jnp.shape(leaf)[2:])), batch)
        information = blocks(params, weights, batch, masks)

        def of_leaf(w: Any, fisher: Any) -> Array:
            rows = in_blocks(wide(w), fisher.shape[-1])
            scores = precision.in_double(lambda *leaves: each_block(_rises, *leaves), rows, fisher)
            return out_of_blocks(scores, w.shape).astype(wide(w).dtype)

        return jax.tree.map(of_leaf, weights, information)

    return score


def fisher_blocks(
    loss: Loss, *, block: Any, damping: Any, examples: Any, memory_bytes: Any
) -> Callable[..., Params]:
    """The damped blocks of the Fisher information, as a function.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      block: Weights per block.
      damping: What is added to the diagonal.
      examples: Number of examples differentiated at once.
      memory_bytes: The most memory.

    Returns:
      `(params, weights, batch, masks) -> blocks`: for the prunable leaves `weights` of `params`,
      float64 arrays [blocks, b, b], b the smaller of `block` and the leaf's size, in the order of
      `in_blocks`. Pruned weights are constants, so that only the damping is left of their entries.
    """
    check_loss(loss)
    block, examples = whole_number("block", block), whole_number("examples", examples)
    memory_bytes = whole_number("memory_bytes", memory_bytes)
    if not is_real(damping) or damping <= 0:
        raise ValueError(f"`damping` must be a positive number, got {shown(damping)}.")

    def blocks(params: Params, weights: Params, batch: Batch, masks: Masks | None) -> Params:
        trees.check_floating(weights)
        _check_memory(weights, block, examples, memory_bytes)

        def slope(example: Batch) -> Params:
            found = gradient(loss, params, example, stacked=False)(weights)
            if masks is None:
                return found
            return trees.map_prunable(lambda m, g: jnp.where(m, g, 0), masks, found)

        def products(slopes: Any) -> Array:
            side = _side(slopes.shape[1:], block)
            rows = jax.vmap(partial(in_blocks, block=side))(slopes.astype(jnp.float64))
            return jnp.einsum("nkb,nkc->kbc", rows, rows)

        def zeros(leaf: Any) -> Array:
            side = _side(leaf.shape, block)
            return jnp.zeros((-(-leaf.size // side), side, side), jnp.float64)

        n, total = over_examples(
            partial(precision.in_double, partial(jax.tree.map, products)),
            slope,
            batch,
            examples,
            precision.in_double(lambda: jax.tree.map(zeros, weights)),
        )

        def damped(fisher: Any) -> Array:
            return fisher / n + float(damping) * jnp.eye(fisher.shape[-1])

        return precision.in_double(partial(jax.tree.map, damped), total)

    return blocks


def over_examples(
    statistic: Callable[[Params], Params],
    slope: Callable[[Batch], Params],
    batch: Batch,
    examples: int,
    zeros: Params,
) -> tuple[int, Params]:
    """The number of examples, and the sum of a statistic of their gradients, some at once.

    Args:
      statistic: A function of gradients with a leading axis of examples that sums over them, and
        to which gradients of 0 add nothing.
      slope: The gradient of a batch of one example.
      batch: The batch.
      examples: Number of examples at once.
      zeros: What the sum begins with.
    """
    n = sweeps.case_count(batch, name="batch")
    size = min(examples, n)

    def one(index: Array) -> Params:
        return slope(jax.tree.map(lambda leaf: jnp.asarray(leaf)[index][None], batch))

    def of_some(start: Array) -> Params:
        index = start + jnp.arange(size)  # the last may be past the end of the batch

        def present(leaf: Array) -> Array:
            return jnp.where(jnp.expand_dims(index < n, tuple(range(1, leaf.ndim))), leaf, 0)

        return statistic(jax.tree.map(present, jax.vmap(one)(jnp.minimum(index, n - 1))))

    return n, summed(of_some, jnp.arange(0, n, size), zeros)


def check_stacked(batch: Batch) -> None:
    """Checks that every array of several batches has two leading axes, and that they are the same.

    Raises:
      ValueError: If not; the message names the array.
    """
    sweeps.case_count(batch, name="batch")
    leaves = {path: jnp.shape(leaf) for path, leaf in trees.by_path(batch, "batch").items()}
    first = next(iter(leaves.values()))[:2]
    for path, shape in leaves.items():
        if len(shape) < 2 or shape[:2] != first:
            raise ValueError(
                "`batch` must have two leading axes with `stacked=True`, of batches and of their "
                f"examples, the same in every array, got shape {shape} at {path!r}. Leave "
                "`stacked` out if it is a single batch."
            )


def in_blocks(leaf: Any, block: int) -> Array:
    """A leaf as rows of `block` weights, filter by filter, the last row filled up with 0."""
    shape = jnp.shape(leaf)
    filters = jnp.reshape(leaf, (math.prod(shape[:-1]), (1, *shape)[-1])).T
    flat = filters.reshape(-1)
    return jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)


def out_of_blocks(rows: Array, shape: tuple[int, ...]) -> Array:
    """The leaf of some shape of which `in_blocks` made rows."""
    filters = rows.reshape(-1)[: math.prod(shape)].reshape((1, *shape)[-1], math.prod(shape[:-1]))
    return filters.T.reshape(shape)


def each_block(function: Callable[..., Array], *leaves: Array) -> Array:
    """A function of one block after the other.

    Factors of several blocks at once share the threads of XLA on a CPU, where the loops of several
    leaves that run side by side then wait for each other without end.
    """
    return jax.lax.map(lambda parts: function(*parts), leaves)


def _rises(weights: Array, fisher: Array) -> Array:
    """The rise of the loss for each weight of a block, in double precision."""
    factor = jnp.linalg.cholesky(fisher, symmetrize_input=False)
    identity = jnp.eye(len(weights))
    inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    diagonal = jnp.sum(jnp.square(inverse), axis=0)  # of the inverse of the block
    return jnp.square(weights.astype(jnp.float64)) / (2 * diagonal)


def _side(shape: tuple[int, ...], block: int) -> int:
    return max(1, min(block, math.prod(shape)))


def _check_memory(weights: Params, block: int, examples: int, memory_bytes: int) -> None:
    """Checks the size of the blocks before they are made."""
    shapes = trees.shapes(weights)
    sizes = [math.prod(shape) for shape in shapes]
    sides = [_side(shape, block) for shape in shapes]
    entries = [-(-size // side) * side**2 for size, side in zip(sizes, sides, strict=True)]
    # The sums, what is added to them, and the factors of one; the gradients, in double too.
    needed = 8 * (2 * sum(entries) + 4 * max(sides) ** 2) + 12 * examples * sum(sizes)
    if needed > memory_bytes:
        raise ValueError(
            f"Blocks of {max(sides):,} weights take {needed:,} bytes, more than `memory_bytes`, "
            f"{memory_bytes:,}. Take a smaller `block`, here {block:,}, or give more memory."
        )
