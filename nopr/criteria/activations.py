"""Criteria of what enters each kernel, captured from the traced network.

Their batch is the inputs of the network, or (inputs, labels), whose first entry is the inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nopr import capture, granularity, trees
from nopr.criteria.shared import living, wide
from nopr.granularity.shared import paths
from nopr.typing import Apply, Batch, Criterion, Masks, Params, Scores, Where, check_apply


def wanda(apply: Apply, *, where: Where = trees.is_prunable) -> Criterion:
    r"""Weight times the norm of the input that it reads, :math:`|w_{ij}| \, \|x_i\|_2`.

    :math:`x_i` holds input i of the kernel for every row that enters it: examples, tokens, and the
    positions of a convolution's window. The paper lets weights compete within each output
    (`scope="output"` of the pruner), whose inputs are the same; `capture.output_axes` finds the
    axes of attention's kernels. It needs no gradient and no training after pruning.

    Inputs are those of the network under the masks that the criterion is given, in all layers at
    once; for layer after layer, each with the inputs that the layers pruned before it give, see
    `reconstruct.sparsegpt`.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A criterion whose batch is the inputs, or a tuple whose first entry is. Its scores are at
      least float32. It raises a ValueError if the batch is None, or a kernel cannot be followed
      through the network, by its path: see `capture`.

    Raises:
      ValueError: If `apply` does not take (params, inputs).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nopr import criteria, pruning
      >>> def apply(params, x):
      ...     return x @ params["kernel"]
      >>> params = {"kernel": jnp.array([[1.0, 5.0], [2.0, -1.0]])}
      >>> inputs = jnp.array([[3.0, 0.0], [4.0, 1.0]])  # norms 5 and 1
      >>> criteria.wanda(apply)(params, inputs)["kernel"]
      Array([[ 5., 25.],
             [ 2.,  1.]], dtype=float32)
      >>> prune = pruning.pruner(criteria.wanda(apply), density=0.5, scope="output")
      >>> prune(params, inputs, key=jax.random.key(0))["kernel"].astype(int)
      Array([[1, 1],
             [0, 0]], dtype=int32)

    Source: Sun et al. 2024, arXiv:2306.11695.
    """
    check_apply(apply)

    def criterion(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        inputs = inputs_of(batch, "wanda")
        weights = living(params, masks, where)
        params = trees.overlay(lambda _, new: new, params, weights)
        kernels = capture.kernels(apply, params, inputs, where=where)
        norms = capture.squared_norms(apply, params, inputs, where=where)

        def score(path: str, leaf: Any) -> Array:
            kernel = kernels[path]
            shape = (kernel.groups, kernel.fan_in, kernel.width)
            entering = jnp.broadcast_to(jnp.sqrt(norms[path])[:, :, None], shape)
            return jnp.abs(wide(leaf)) * kernel.leaf(entering)

        return _by_path(score, weights)

    return criterion


def apoz(apply: Apply, *, layers: Sequence[str]) -> Criterion:
    r"""One minus a unit's average percentage of zeros, :math:`1 - \mathrm{APoZ}_c`.

    .. math:: \mathrm{APoZ}_c = \frac{1}{N M} \sum_{n=1}^{N} \sum_{m=1}^{M} [x_{c,m}(n) = 0]

    over the N examples and the M values of unit (channel) c in what enters the next kernel: after
    the nonlinearity, and after pooling where there is some. All weights of the unit's filter have
    its score, so use a granularity of `filters` or `units`. It is meant for ReLU: units that are
    never exactly 0 all score 1.

    A convolution that the network computes as patches (`networks.Conv` does so on a CPU) enters as
    patches, in which zeros of the padding count.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      layers: The paths of the kernels of a chain, in the order in which they are applied, each
        [in, out] or [height, width, in, out]. A flatten between them is channels-last, as in Flax.

    Returns:
      A criterion that scores the layers; other leaves get no scores and stay whole. All weights of
      the last layer, whose outputs enter no kernel, score 1. Its batch is the inputs, or a tuple
      whose first entry is. It raises a ValueError if the batch is None, or the layers do not fit
      the params or each other; the message names the path.

    Raises:
      ValueError: If `apply` does not take (params, inputs), or `layers` has fewer than two paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> def apply(params, x):
      ...     return jnp.maximum(x @ params["body"], 0) @ params["head"]
      >>> params = {"body": jnp.array([[1.0, -1.0]]), "head": jnp.ones((2, 3))}
      >>> inputs = jnp.array([[1.0], [2.0], [3.0], [-1.0]])
      >>> criteria.apoz(apply, layers=["body", "head"])(params, inputs)
      {'body': Array([[0.75, 0.25]], dtype=float32), 'head': Array([[1., 1., 1.],
             [1., 1., 1.]], dtype=float32)}

    Source: Hu et al. 2016, network trimming, arXiv:1607.03250.
    """
    check_apply(apply)
    layers = paths(layers, argument="layers")
    if len(layers) < 2:
        raise ValueError(f"`layers` must name at least two kernels, got {list(layers)}.")

    def among(names: Sequence[str]) -> Where:
        return lambda path, leaf: path in names

    def criterion(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        inputs = inputs_of(batch, "apoz")
        granularity.chain(trees.select(params, among(layers)), layers, name="params")
        weights = living(params, masks, among(layers))
        params = trees.overlay(lambda _, new: new, params, weights)
        shares = capture.nonzero(apply, params, inputs, where=among(layers[1:]))
        following = dict(itertools.pairwise(layers))

        def score(path: str, leaf: Any) -> Array:
            if path == layers[-1]:
                return jnp.ones(leaf.shape, jnp.float32)
            share = shares[following[path]].reshape(-1, leaf.shape[-1])  # the channel is fastest
            return jnp.broadcast_to(jnp.mean(share, axis=0), leaf.shape)

        return _by_path(score, weights)

    return criterion


def inputs_of(batch: Batch, name: str) -> Any:
    """The inputs of the network in a batch: all of it, or the first of a tuple.

    Raises:
      ValueError: If the batch is None, or has no example.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    leaves = trees.by_path(inputs, "batch")
    if not leaves:
        raise ValueError(
            f"`{name}` needs a batch, got None. Give the network's inputs, or (inputs, labels)."
        )
    for leaf in leaves.values():
        if 0 in np.shape(leaf):
            raise ValueError(f"`{name}` needs examples, got a batch of shape {np.shape(leaf)}.")
    return inputs


def _by_path(function: Any, tree: Params) -> Any:
    values = [function(path, leaf) for path, leaf in trees.by_path(tree, "params").items()]
    return jax.tree.unflatten(jax.tree.structure(tree), values)
