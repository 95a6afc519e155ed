"""Weight updates after pruning: the kept weights change so that they stand in for the removed ones.

A reconstruction is `(params, masks, batch) -> params`, exactly 0 where pruned. It changes the
weights, not the masks, which any criterion has chosen.
"""

from nopr.reconstruct.layers import least_squares
from nopr.reconstruct.quadratic import restricted
from nopr.reconstruct.sparse_gpt import Pruned, sparsegpt
from nopr.reconstruct.surgeon import obs

__all__ = ["Pruned", "least_squares", "obs", "restricted", "sparsegpt"]
