"""The minimum of a quadratic function over the weights that are kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nopr import trees

_HIGHEST = jax.lax.Precision.HIGHEST


def restricted(
    hessian: Float[Any, "n n"], weights: Float[Any, " n"], kept: Bool[Any, " n"]
) -> Float[Array, " n"]:
    r"""The best weights that are 0 where pruned, by a quadratic model of the loss around :math:`w`.

    It minimizes :math:`(v - w)^\top H (v - w)` over the vectors :math:`v` that are 0 outside the
    kept weights :math:`K`. With :math:`Q` the pruned ones,

    .. math:: v_K = w_K + H_{KK}^{-1} H_{KQ} w_Q, \qquad v_Q = 0,

    which is the update :math:`-H^{-1} E_Q (E_Q^\top H^{-1} E_Q)^{-1} w_Q` of the optimal brain
    surgeon for all pruned weights at once, without :math:`H^{-1}`. It works under jit and vmap,
    with one compilation for all masks.

    Args:
      hessian: The symmetric matrix :math:`H`, positive definite on the kept weights. Damping, a
        multiple of the identity, is yours to add.
      weights: The weights :math:`w`.
      kept: Their mask, True = kept.

    Returns:
      The new weights, in at least float32. With a full mask, they are the weights.

    Raises:
      ValueError: If the shapes do not match, `kept` is not bool, or the result is not finite, as
        where the matrix is not positive definite; under a trace the result is then NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import reconstruct
      >>> hessian = jnp.array([[2.0, 1.0], [1.0, 1.0]])
      >>> reconstruct.restricted(hessian, jnp.array([3.0, 4.0]), jnp.array([True, False]))
      Array([5., 0.], dtype=float32)

    Source: Hassibi and Stork 1993, Optimal Brain Surgeon; for several weights at once, Singh and
    Alistarh 2020, arXiv:2004.14340.
    """
    named = {"hessian": hessian, "weights": weights, "kept": kept}
    hessian, weights, kept = (jnp.asarray(trees.numbers(v, name)) for name, v in named.items())
    n = weights.size
    if weights.ndim != 1 or hessian.shape != (n, n) or kept.shape != (n,):
        raise ValueError(
            "`hessian`, `weights` and `kept` must have shapes [n, n], [n] and [n], got "
            f"{hessian.shape}, {weights.shape} and {kept.shape}."
        )
    if kept.dtype != bool:
        raise ValueError(f"`kept` must be bool, got {kept.dtype}. True means kept.")
    dtype = jnp.result_type(hessian, weights, jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`hessian` and `weights` must be real, got {dtype}.")
    hessian, weights = hessian.astype(dtype), weights.astype(dtype)
    pull = jnp.dot(hessian, jnp.where(kept, 0, weights), precision=_HIGHEST)
    found = jnp.where(kept, weights + change(hessian, pull, kept), 0)
    if not isinstance(found, jax.core.Tracer) and not jnp.isfinite(found).all():
        raise ValueError(
            "`hessian` must be positive definite on the kept weights, and all numbers finite, got "
            "a result with NaN or infinity. Add damping: `hessian + damping * jnp.eye(n)`."
        )
    return found


def change(hessian: Array, pull: Array, kept: Array) -> Array:
    """The solution of H x = `pull` over the kept entries, any number at the others."""
    both = kept[:, None] & kept[None, :]
    block = jnp.where(both, hessian, jnp.eye(kept.size, dtype=hessian.dtype))
    factor = jnp.linalg.cholesky(block, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), pull)
