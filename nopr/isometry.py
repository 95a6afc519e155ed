"""Repairing dynamical isometry: weights that preserve the norms of signals after pruning.

Pruning makes the singular values of a trained network's Jacobian collapse. `orthogonalize`
replaces every kernel with a semi-orthogonal one in the span of its weights, so that each layer by
itself is an isometry on the smaller of its two dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Float

from nopr import masks as masks_
from nopr import surgery, trees
from nopr.typing import Masks, Params, Where, check_choice, is_real, shown

Method: TypeAlias = Literal["polar", "qr"]
"""How a kernel is made semi-orthogonal."""


def orthogonalize(
    params: Params,
    masks: Masks | None = None,
    *,
    gain: Any = 1.0,
    method: Method = "qr",
    where: Where = trees.is_prunable,
    layers: Sequence[str] | None = None,
) -> Params:
    r"""Replaces every kernel with a semi-orthogonal one: OrthP.

    A kernel is flattened to :math:`A` of shape [out, rest] and transposed if that has fewer rows
    than columns. From the reduced factors :math:`A = QR` the kernel becomes

    .. math:: \mathrm{gain} \cdot Q \, \mathrm{sign}(\mathrm{diag} R), \qquad \mathrm{sign}(0) = 1,

    transposed back: Gram-Schmidt of the filters in their order, each with its old orientation. The
    smaller of :math:`K^T K` and :math:`K K^T` of the new kernel :math:`K` is
    :math:`\mathrm{gain}^2 I`. Biases and other leaves stay unchanged.

    With unit masks, which keep a block of whole inputs and outputs in each kernel, only the kept
    block is orthogonalized, as it would be if the rest had been removed, and the rest becomes 0.
    This holds for traced masks too, so it works under jit and under vmap over params and masks.

    Each layer is then an isometry. A linear network is one only if its widths never grow again:
    where masks leave a kernel fewer inputs than outputs, the network has singular values of 0 or
    otherwise different from 1, which a warning reports.

    Args:
      params: The parameters.
      masks: Masks of whole units or filters (`granularity.units`, `granularity.filters`), or None.
      gain: Singular value of the new kernels: a positive number (1 for linear networks, sqrt(2)
        for ReLU), or a function `(path, leaf) -> number`.
      method: `"qr"` as above, or `"polar"`: :math:`U V^T` of the singular value decomposition
        :math:`A = U S V^T`, the orthogonal matrix nearest to :math:`A`. Where the kept block is
        rank-deficient, both complete it with arbitrary orthogonal directions.
      where: `where(path, leaf)`, true for the kernels that are replaced.
      layers: The paths of all kernels from input to output. With them, the warnings also cover
        inputs that no path reaches (see `surgery.live`); results do not depend on them.

    Returns:
      Params like `params`.

    Raises:
      ValueError: If a mask is not a block of whole inputs and outputs, a weight is NaN or
        infinite, or the trees do not match (the message names the leaf); or if an option is
        invalid. Under a trace, such masks and weights give NaN instead.

    Warns:
      UserWarning: If concrete masks leave a kernel fewer inputs than outputs by removing inputs,
        or, given `layers`, leave no path from the inputs to the outputs.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from nopr import isometry
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (5, 3))}
      >>> kernel = isometry.orthogonalize(params)["kernel"]
      >>> np.allclose(kernel.T @ kernel, np.eye(3), atol=1e-5)
      True

    Source: Wang et al. 2021, arXiv:2105.05916.
    """
    check_choice("method", method, Method)
    chosen = trees.select(params, where)
    found = _masks_by_path(params, masks)
    _warn_of_limits(masks, layers)

    def repair(path: Any, leaf: Any) -> Any:
        name = trees.path_string(path)
        _check_kernel(name, leaf)
        matrix = jnp.asarray(leaf).reshape(-1, leaf.shape[-1])
        block = _replace_block(matrix, found.get(name), method, name)
        return (_gain(gain, name, leaf) * block).reshape(leaf.shape).astype(leaf.dtype)

    return trees.overlay(lambda _, new: new, params, tree_map_with_path(repair, chosen))


def _replace_block(
    matrix: Float[Array, "rest out"], mask: Any, method: Method, path: str
) -> Float[Array, "rest out"]:
    """The matrix with its kept block made semi-orthogonal and zeros elsewhere."""
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    with jax.default_matmul_precision("highest"):
        if mask is None:
            return _semi_orthogonal(matrix, matrix.shape, method)
        mask = mask.reshape(matrix.shape)
        if isinstance(mask, jax.core.Tracer):
            return _replace_traced_block(matrix, mask, method)
        block = np.ix_(*_kept_indices(np.asarray(mask), path))
        kept = matrix[block]
        if kept.size == 0:
            return jnp.zeros_like(matrix)
        return jnp.zeros_like(matrix).at[block].set(_semi_orthogonal(kept, kept.shape, method))


def _replace_traced_block(
    matrix: Float[Array, "rest out"], mask: Array, method: Method
) -> Float[Array, "rest out"]:
    """The same with static shapes: kept rows and columns are moved to the front.

    A factor of the leading block padded with zeros is the factor of the block, padded.
    """
    rows, columns = jnp.any(mask, axis=1), jnp.any(mask, axis=0)
    # A mask that is not a block would bring pruned weights back; NaN makes that visible.
    is_block = jnp.all(mask == (rows[:, None] & columns))
    row_order = jnp.argsort(~rows, stable=True)
    column_order = jnp.argsort(~columns, stable=True)
    front = jnp.where(mask, matrix, 0)[row_order][:, column_order]
    new = _semi_orthogonal(front, (jnp.sum(rows), jnp.sum(columns)), method)
    back = new[jnp.argsort(row_order)][:, jnp.argsort(column_order)]
    return jnp.where(is_block, jnp.where(mask, back, 0), jnp.nan)


def _semi_orthogonal(
    matrix: Float[Array, "rest out"], block: tuple[Any, ...], method: Method
) -> Float[Array, "rest out"]:
    """The semi-orthogonal factor of the leading block of [rows, columns]; the rest must be 0.

    The longer dimension is orthogonalized along the shorter one; as [out, rest], a square block
    counts as tall. With traced dimensions both ways are computed and the right one is selected.
    """
    rows, columns = block
    if isinstance(rows, int):
        if columns >= rows:
            return _orthonormal_columns(matrix.T, rows, method).T
        return _orthonormal_columns(matrix, columns, method)
    return jnp.where(
        columns >= rows,
        _orthonormal_columns(matrix.T, rows, method).T,
        _orthonormal_columns(matrix, columns, method),
    )


def _orthonormal_columns(
    matrix: Float[Array, "long short"], count: Any, method: Method
) -> Float[Array, "long short"]:
    """Makes the first `count` columns orthonormal; the others have no meaning.

    `count` never exceeds the number of rows.
    """
    width = min(matrix.shape)
    q, r = jnp.linalg.qr(matrix[:, :width])
    if method == "qr":
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
    else:
        # Ones on the removed diagonal keep its null space apart from that of a block without full
        # rank. LAPACK leaves zero rows alone anyway; iterations on accelerators need not.
        removed = jnp.arange(width) >= count
        u, _, v = jnp.linalg.svd(r + jnp.diag(removed.astype(r.dtype)))
        q = q @ (u @ v)
    return jnp.pad(q, ((0, 0), (0, matrix.shape[1] - width)))


def _kept_indices(mask: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
    """The kept rows and columns of a concrete mask, which must be true where they cross."""
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    if not np.array_equal(mask, np.logical_and.outer(rows, columns)):
        raise ValueError(
            f"`masks` must keep whole inputs and outputs for `orthogonalize`, and at {path!r} it "
            "does not. Choose whole units with `granularity.units`; unstructured masks would need "
            "`isometry.approximate` (Lee et al. 2020), which is not in this release."
        )
    return np.flatnonzero(rows), np.flatnonzero(columns)


def _masks_by_path(params: Params, masks: Masks | None) -> dict[str, Any]:
    if masks is None:
        return {}
    trees.check_matches(masks, params)
    masks_.check_bool(masks)
    return trees.by_path(masks, "masks")


def _check_kernel(path: str, leaf: Any) -> None:
    if leaf.ndim < 2:
        raise ValueError(
            f"A kernel must have two or more dimensions, got {leaf.shape} at {path!r}."
        )
    if not isinstance(leaf, jax.core.Tracer) and not np.all(np.isfinite(leaf)):
        raise ValueError(f"`params` has NaN or infinite values at {path!r}.")


def _gain(gain: Any, path: str, leaf: Any) -> Any:
    value = gain(path, leaf) if isinstance(gain, Callable) else gain
    if not isinstance(value, jax.core.Tracer) and not (is_real(value) and value > 0):
        raise ValueError(f"`gain` must be positive and finite, got {shown(value)} at {path!r}.")
    return value


def _warn_of_limits(masks: Masks | None, layers: Sequence[str] | None) -> None:
    """Warns of a broken path, or else of the first kernel with fewer inputs than outputs."""
    if masks is None or any(isinstance(m, jax.core.Tracer) for m in jax.tree.leaves(masks)):
        return
    with jax.ensure_compile_time_eval():  # the masks may be constants inside a trace
        seen = masks if layers is None else surgery.live(masks, layers)
    for path, mask in trees.by_path(seen, "masks").items():
        flat = np.asarray(mask).reshape(-1, mask.shape[-1])
        ins, outs = int(flat.any(axis=1).sum()), int(flat.any(axis=0).sum())
        if ins < min(outs, flat.shape[0]):
            warnings.warn(
                f"The masks leave {ins} inputs to the {outs} outputs of {path!r}: each layer "
                "becomes an isometry, but the network cannot be one where its widths grow.",
                UserWarning,
                stacklevel=3,
            )
            return
