"""Layer distributions: from shapes and a density to an exact kept count per layer.

The counts of each distribution sum to round(density * n), by largest remainder.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nopr import budgets, trees
from nopr.typing import Counts, Shapes, shown


def uniform(shapes: Shapes, *, density: float) -> Counts:
    """Kept weights per layer with the same density in each.

    Args:
      shapes: Shape of each prunable layer.
      density: Kept fraction over all prunable weights, in [0, 1].

    Returns:
      Kept count per layer; they sum to round(density * n) exactly.

    Raises:
      ValueError: If `density` is outside [0, 1].
    """
    sizes, total = _sizes(shapes, density)
    return tuple(budgets.share(total, sizes))


def erk(shapes: Shapes, *, density: float) -> Counts:
    r"""Kept weights per layer by the Erdős–Rényi-kernel rule.

    Layer :math:`l` with dimensions :math:`n_i` keeps a share proportional to
    :math:`\sum_i n_i / \prod_i n_i`. A layer whose share would exceed 1 becomes dense, and the
    rest is shared again.

    Args:
      shapes: Shape of each prunable layer.
      density: Kept fraction over all prunable weights, in [0, 1].

    Returns:
      Kept count per layer; they sum to round(density * n) exactly.

    Raises:
      ValueError: If `density` is outside [0, 1].

    Example:
      >>> from nopr import densities
      >>> densities.erk(((784, 300), (300, 100), (100, 10)), density=0.05)  # 235,200; 30,000; 1,000
      (9051, 3340, 919)

    Source: Evci et al. 2020, arXiv:1911.11134.
    """
    sizes, total = _sizes(shapes, density)
    dense: set[int] = set()
    while True:
        # The raw share times the size is the sum of the dimensions: the layer's weight in the
        # split. A scalar counts as one dimension of 1.
        left = total - sum(sizes[i] for i in dense)
        weights = {i: sum(shape or (1,)) for i, shape in enumerate(shapes) if i not in dense}
        scale = Fraction(left, max(sum(weights.values()), 1))
        over = {i for i, weight in weights.items() if scale * weight > sizes[i]}
        if not over:
            break
        dense |= over
    quotas = [size if i in dense else scale * weights[i] for i, size in enumerate(sizes)]
    return trees.largest_remainder(quotas, total)


def _sizes(shapes: Shapes, density: float) -> tuple[list[int], int]:
    """The size of each layer, and the number of kept weights in all."""
    must = "`shapes` must be a sequence of tuples of whole numbers"
    rows = shapes if isinstance(shapes, tuple | list) else [shapes]
    if not all(isinstance(row, tuple | list) for row in rows):
        raise ValueError(f"{must}, got {shown(shapes)}.")
    sizes = [math.prod(budgets.whole(row, must=must).tolist()) for row in rows]
    return sizes, round(budgets.check_density(density) * sum(sizes))
