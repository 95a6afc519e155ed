"""The spectral criterion: a weight's part in the leading singular directions of its kernel."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from nopr import trees
from nopr.criteria.shared import as_matrix, from_matrix, of_filters, wide
from nopr.typing import Axes, Criterion, Where, whole_number


def spectral(*, rank: int = 8, where: Where = trees.is_prunable, axes: Axes = None) -> Criterion:
    r"""Energy of the leading singular vectors, :math:`(\sum_{k \le r} \sigma_k u_{ik} v_{jk})^2`.

    The score is the square of the weight's entry in the best approximation of its kernel by a
    matrix of rank r, so that the weights of a kernel share its energy in r directions,

    .. math:: \sum_{ij} s_{ij} = \sum_{k \le r} \sigma_k^2 .

    Weights with the highest scores are the principal weights of the first paper below, and the
    second keeps them in full precision. From the full rank on, the score is the square of the
    weight, the order that of `magnitude`. A convolution is the matrix [height * width * inputs,
    outputs] that multiplies patches. Where the singular values r and r + 1 are equal, as in an
    orthogonal kernel, the approximation is not unique, and neither are the scores. Energies grow
    with the scale of a layer: `normalize(spectral())` gives a weight's share in the energy of its
    layer.

    Args:
      rank: The number r of singular vectors; 8 in the second paper.
      where: `where(path, leaf)`, true for a prunable leaf.
      axes: The axes that number a kernel's outputs, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.

    Returns:
      A criterion whose scores are at least float32.

    Raises:
      ValueError: If `rank` is not a whole number from 1 up.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> params = {"w": jnp.array([[3.0, 3.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 5.0]])}
      >>> criteria.spectral(rank=1)(params, None)["w"].round(3)
      Array([[9., 9., 0.],
             [9., 9., 0.],
             [0., 0., 0.]], dtype=float32)

    Source: Liu et al. 2025, principal weights, arXiv:2506.00772; for quantization with rank 8,
    arXiv:2512.01343.
    """
    rank = whole_number("rank", rank)

    def energies(outs: tuple[int, ...], weights: Any, _: Any) -> Array:
        matrix = as_matrix(outs, wide(weights))
        u, values, v = jnp.linalg.svd(matrix, full_matrices=False)
        part = jnp.matmul(u[:, :rank] * values[None, :rank], v[:rank], precision="highest")
        return from_matrix(outs, jnp.square(part), weights.shape)

    return of_filters(energies, where, axes)
