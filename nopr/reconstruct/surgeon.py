"""The update of the optimal brain surgeon, with the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import masks as masks_
from nopr import precision, trees
from nopr.criteria.fisher import MEMORY_BYTES, each_block, fisher_blocks, in_blocks, out_of_blocks
from nopr.reconstruct.quadratic import restricted
from nopr.typing import Batch, Loss, Masks, Params


def obs(
    loss: Loss,
    *,
    block: int = 50,
    damping: float = 1e-5,
    examples: int = 32,
    memory_bytes: int = MEMORY_BYTES,
) -> Callable[[Params, Masks, Batch], Params]:
    r"""The optimal brain surgeon's update for all removed weights at once.

    In a quadratic model of the loss around the params, in which they are a minimum, the kept
    weights make up best for the removed ones :math:`Q` by

    .. math:: \delta w = -F^{-1} E_Q \big( E_Q^\top F^{-1} E_Q \big)^{-1} w_Q ,

    the columns of :math:`E_Q` being the unit vectors of :math:`Q`, and raise the loss by
    :math:`\delta w^\top F \, \delta w / 2`. For one weight, that is the score of
    `criteria.woodfisher`. :math:`F` is the damped empirical Fisher information at the params that
    are given, in blocks on the diagonal, as described there; see `restricted` for how it is solved.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch; called with single examples.
      block: Weights per block, taken filter by filter as by `criteria.woodfisher`.
      damping: The positive number that is added to the diagonal of the information.
      examples: Number of examples differentiated at once.
      memory_bytes: The most memory for the blocks, their sums and the gradients, not counting a
        `vmap` of yours.

    Returns:
      `(params, masks, batch) -> params`, which takes the params before pruning and gives them
      exactly 0 where pruned, in their own dtypes. Leaves without masks stay as they are, and so
      does every leaf that is kept whole. It works under jit and vmap, and raises a ValueError if
      the masks do not match the params, the blocks take more than `memory_bytes`, or, outside a
      trace, new weights are not finite; the message names the leaf.

    Raises:
      ValueError: If `block`, `examples` or `memory_bytes` is not a whole number from 1 up, or
        `damping` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from nopr import criteria, finetune, masks, reconstruct
      >>> loss = finetune.squared_error(lambda params, inputs: inputs @ params["w"])
      >>> inputs = jax.random.normal(jax.random.key(0), (50, 4)) + 1
      >>> params = {"w": jnp.array([[1.0], [2.0], [3.0], [0.5]])}
      >>> noise = jax.random.normal(jax.random.key(1), (50, 1))
      >>> batch = inputs, inputs @ params["w"] + noise
      >>> kept = masks.top(criteria.woodfisher(loss)(params, batch), count=3)
      >>> after = reconstruct.obs(loss)(params, kept, batch)
      >>> bool(loss(after, batch) < loss(masks.apply(params, kept), batch))
      True

    Source: Hassibi and Stork 1993, Optimal Brain Surgeon; with the Fisher information, Singh and
    Alistarh 2020, arXiv:2004.14340.
    """
    blocks = fisher_blocks(
        loss, block=block, damping=damping, examples=examples, memory_bytes=memory_bytes
    )

    def reconstruct(params: Params, masks: Masks, batch: Batch) -> Params:
        masks_.check_bool(masks)
        trees.check_matches(masks, params)
        paths = trees.paths(masks)
        weights = trees.select(params, lambda path, leaf: path in paths)
        information = blocks(params, weights, batch, None)
        kept = trees.map_prunable(lambda _, mask: mask, weights, masks)

        def updated(weight: Any, fisher: Any, mask: Any) -> Array:
            rows = [in_blocks(leaf, fisher.shape[-1]) for leaf in (weight, mask)]
            solve = lambda *leaves: each_block(restricted, *leaves)  # noqa: E731
            found = precision.in_double(solve, fisher, *rows)
            return out_of_blocks(found, weight.shape).astype(weight.dtype)

        new = jax.tree.map(updated, weights, information, kept)
        for path, leaf in trees.by_path(new, "params").items():
            if not isinstance(leaf, jax.core.Tracer) and not jnp.isfinite(leaf).all():
                raise ValueError(
                    f"The new weights have NaN or infinity at {path!r}. Check the params, and the "
                    "gradients of the loss."
                )
        return trees.overlay(lambda _, leaf: leaf, params, new)

    return reconstruct
