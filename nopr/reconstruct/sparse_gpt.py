"""SparseGPT: masks chosen and weights updated together, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from nopr import budgets, capture, precision, ranking, trees
from nopr import masks as masks_
from nopr.criteria.activations import inputs_of
from nopr.reconstruct.layers import (
    among,
    check_damping,
    check_finite,
    check_first,
    damped,
    gram,
    overlaid,
)
from nopr.typing import Apply, Batch, Masks, Params, Where, check_apply, shown, whole_number


class Pruned(NamedTuple):
    """What pruning with an update of the weights returns.

    Attributes:
      params: The params, exactly 0 where pruned.
      masks: Their masks.
      finite: Whether every new weight is finite.
    """

    params: Params
    masks: Masks
    finite: Bool[Array, ""]


def sparsegpt(
    apply: Apply,
    *,
    density: Any = None,
    n_of_m: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
    where: Where = trees.is_prunable,
) -> Callable[..., Pruned]:
    r"""Prunes the inputs of each layer in turn while those to come make up for what is lost.

    A layer has the weights :math:`w` [fan-in] of each output and, from the rows :math:`X` that
    enter it, :math:`H = X^\top X + \lambda I`, with :math:`\lambda` = `damping` times the mean of
    the diagonal. Let :math:`H^{-1} = U^\top U` with :math:`U` upper triangular. Inputs are visited
    in the order of the kernel's axes; where the mask removes :math:`w_j`, the weights after it
    change by

    .. math:: w_{j:} \leftarrow w_{j:} - \frac{w_j}{U_{jj}} U_{j,j:},

    the update of the optimal brain surgeon with all weights before j fixed. At the beginning of
    each block of inputs, its mask keeps the weights with the highest

    .. math:: w_j^2 / U_{jj}^2,

    which is the rise of the squared error of removing :math:`w_j` alone, by the weights as they are
    then. All outputs of the layer compete within the block. Of the blocks up to any of them,
    round(density * weights) are kept in all, so that each layer's count is exact. With
    `n_of_m=(n, m)`, each m consecutive inputs are a block, of which every output keeps n.

    The layers are pruned in the order in which the network uses them, each by what enters it from
    those already pruned. Groups of a convolution are layers of their own that share the count.
    Everything is computed in double precision.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      density: Kept fraction of each layer, in [0, 1]; or one per layer, as a sequence in leaf order
        or as `{path: density}`. Give exactly one of `density` and `n_of_m`.
      n_of_m: (n, m), such as (2, 4).
      block: The number of inputs whose mask is chosen at once.
      damping: A share of the mean of the diagonal, above 0 unless rows are independent.
      where: `where(path, leaf)`, true for the kernels that are pruned.

    Returns:
      `(params, batch, *, masks=None, key=None) -> record` with `params`, `masks` and `finite`. The
      batch is the inputs of the network, or a tuple whose first entry is. Given `masks`, it chooses
      among the weights alive in them, and makes up for the others too if they are not 0 yet; a
      block keeps no more than are alive. The key is not used. It works under jit and vmap, and
      raises a ValueError if the batch is None, m does not divide the fan-in of a kernel, or a
      kernel cannot be followed through the network (see `capture`) or is used twice, or,
      outside a trace, new weights are not finite; the message has its path.

    Raises:
      ValueError: If an option is out of range, or not exactly one of `density` and `n_of_m` is
        given.

    Example:
      >>> import jax
      >>> from nopr import masks, networks, reconstruct
      >>> net = networks.mlp((16, 4), inputs=8)
      >>> params = net.init(jax.random.key(0))
      >>> inputs = jax.random.normal(jax.random.key(1), (40, 8))
      >>> pruned = reconstruct.sparsegpt(net.apply, n_of_m=(2, 4))(params, inputs)
      >>> [int(layer.kept) for layer in masks.by_layer(pruned.masks).values()]
      [64, 32]

    Source: Frantar and Alistarh 2023, arXiv:2301.00774.
    """
    check_apply(apply)
    damping = check_damping(damping)
    block = whole_number("block", block)
    if (density is None) == (n_of_m is None):
        raise ValueError(
            f"Give exactly one of `density` and `n_of_m`, got density={shown(density)}, "
            f"n_of_m={shown(n_of_m)}."
        )
    if n_of_m is not None:
        n_of_m = _checked(n_of_m)
    elif not isinstance(density, Mapping | list | tuple | np.ndarray):
        budgets.check_density(density)

    def prune(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Pruned:
        del key
        entering = inputs_of(batch, "sparsegpt")
        weights = trees.select(params, where)
        paths = trees.paths(weights)
        alive = trees.full_masks(params, where) if masks is None else masks
        trees.check_same(alive, weights, name="masks", other="params")
        masks_.check_bool(alive)
        living = trees.by_path(alive, "masks")
        each = [None] * len(paths)
        if density is not None:
            each = budgets.layers(density, paths, name="density") or [density] * len(paths)
        asked = dict(zip(paths, each, strict=True))
        new: dict[str, Any] = {}
        kept: dict[str, Any] = {}

        def visit(use: capture.Use) -> tuple[Any]:
            path, kernel = check_first(use, new), use.kernel
            size = min(block, max(kernel.fan_in, 1)) if n_of_m is None else n_of_m[1]
            plan = _counts(kernel, asked[path], n_of_m, size)

            def solve(leaf: Any, there: Any, moments: Any) -> tuple[Array, Array]:
                found, mask = jax.vmap(partial(_layer, size=size, by_output=n_of_m is not None))(
                    kernel.matrix(leaf).astype(jnp.float64),
                    kernel.matrix(there),
                    moments + damped(moments, damping),
                    jnp.asarray(plan),
                )
                return kernel.leaf(found), kernel.leaf(mask)

            (leaf,), (one,) = use.weights, use.entering
            there = jnp.asarray(living[path])
            found, kept[path] = precision.in_double(solve, leaf, there, gram(one, one))
            new[path] = jnp.where(kept[path], found.astype(leaf.dtype), 0)
            return (new[path],)

        capture.walk(apply, [params], entering, visit, where=among(paths))
        check_finite(new)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in new.values()]).all()
        chosen = jax.tree.unflatten(jax.tree.structure(weights), [kept[path] for path in paths])
        return Pruned(overlaid(params, new), chosen, finite)

    return prune


def _layer(
    weights: Array, alive: Array, hessian: Array, counts: Array, *, size: int, by_output: bool
) -> tuple[Array, Array]:
    """The new weights and the mask, both [fan_in, width], of one layer.

    Args:
      weights: The weights, [fan_in, width].
      alive: Those that can be kept.
      hessian: The damped second moments, [fan_in, fan_in].
      counts: What each block keeps, in all or of each output.
      size: The number of inputs in a block.
      by_output: Whether the counts are those of each output.
    """
    fan_in, width = weights.shape
    total = len(counts) * size
    added = ((0, total - fan_in), (0, 0))
    alive = jnp.pad(alive, added)
    eye = jnp.eye(fan_in, dtype=hessian.dtype)
    inverse = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(hessian), True), eye)
    upper = jnp.eye(total, dtype=hessian.dtype)
    upper = upper.at[:fan_in, :fan_in].set(jnp.linalg.cholesky(inverse).T)

    def prune(weights: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        start, count = xs
        rows, there = (
            jax.lax.dynamic_slice(each, (start, 0), (size, width)) for each in (weights, alive)
        )
        strip = jax.lax.dynamic_slice(upper, (start, 0), (size, total))
        square = jax.lax.dynamic_slice(strip, (0, start), (size, size))
        diagonal = jnp.diagonal(square)
        scores = jnp.square(rows / diagonal[:, None])
        if by_output:
            (kept,), _ = ranking.highest_in_groups([scores], [there], count, m=size, axis=0)
        else:
            most = jnp.minimum(count, jnp.sum(there, dtype=jnp.int32))
            (kept,), _ = ranking.highest([scores], [there], [most], scope="layer")

        def remove(j: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            rows, errors = carry
            error = jnp.where(kept[j], 0, rows[j] / diagonal[j])
            return rows - jnp.outer(square[j], error), errors.at[j].set(error)

        errors = jax.lax.fori_loop(0, size, remove, (rows, jnp.zeros_like(rows)))[1]
        # The triangle is 0 before the block, so that earlier weights stay, to the bit.
        return weights - jnp.dot(strip.T, errors, precision="highest"), kept

    starts = jnp.arange(len(counts)) * size
    found, kept = jax.lax.scan(prune, jnp.pad(weights, added), (starts, counts))
    kept = kept.reshape(total, width)[:fan_in]
    return jnp.where(kept, found[:fan_in], 0), kept


def _counts(
    kernel: capture.Kernel, density: Any, n_of_m: tuple[int, int] | None, size: int
) -> Int[np.ndarray, "groups blocks"]:
    """What each block of each group keeps: in all by density, or of each output for N:M.

    Raises:
      ValueError: If m does not divide the fan-in, or a density is out of range.
    """
    blocks = -(-kernel.fan_in // size)
    if n_of_m is not None:
        n, m = n_of_m
        if kernel.fan_in % m:
            raise ValueError(
                f"m of `n_of_m` must divide the fan-in of the kernel at {kernel.path!r}, "
                f"{kernel.fan_in}, got {m}. Leave the kernel out with `where`."
            )
        return np.full((kernel.groups, blocks), n, np.int32)
    ends = np.minimum(np.arange(1, blocks + 1) * size, kernel.fan_in) * kernel.width
    before = np.arange(kernel.groups)[:, None] * kernel.fan_in * kernel.width
    totals = [int(budgets.from_density(density, int(end))) for end in (before + ends).ravel()]
    return np.diff(totals, prepend=0).astype(np.int32).reshape(kernel.groups, blocks)


def _checked(n_of_m: Any) -> tuple[int, int]:
    """N:M as two whole numbers.

    Raises:
      ValueError: If it is something else.
    """
    if not isinstance(n_of_m, tuple | list) or len(n_of_m) != 2:
        raise ValueError(f"`n_of_m` must be two numbers, such as (2, 4), got {shown(n_of_m)}.")
    n, m = budgets.of_group(*n_of_m)
    return int(n), m
