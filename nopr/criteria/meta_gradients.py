"""Criteria that differentiate through steps of training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import sweeps, trees
from nopr.criteria.shared import gradient, living
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
    check_loss_value,
    is_real,
    shown,
    whole_number,
)


def prospr(
    loss: Loss,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    steps: int = 3,
    where: Where = trees.is_prunable,
    stacked: bool = False,
) -> Criterion:
    r"""Prospect pruning: the effect of a weight on the loss after a few steps of training.

    The score is :math:`|\partial L(\theta_K) / \partial m|` at :math:`m = 1`, where training starts
    from the masked weights and goes on without the mask,

    .. math:: \theta_0 = m \odot w, \qquad
        v_{k+1} = \mu v_k + \nabla L(\theta_k), \qquad \theta_{k+1} = \theta_k - \eta v_{k+1},

    and the derivative goes through all K steps, so that it is
    :math:`|w \, \partial L(\theta_K) / \partial \theta_0|`. Every floating leaf is trained, biases
    and norms too, and only weights that the caller's masks have removed stay 0. Without training
    (a learning rate of 0), it is `snip`. Memory grows with K, like that of K networks.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      learning_rate: The step size :math:`\eta`.
      momentum: The momentum :math:`\mu`, in [0, 1).
      steps: The number of steps K.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds `steps` + 1 batches: one for each step, and one for the loss
        after the last; otherwise the same batch serves for all.

    Raises:
      ValueError: If an option is out of range. From the criterion, if a stack does not hold
        `steps` + 1 batches.

    Source: Alizadeh et al. 2022, arXiv:2202.08132; the mask at the start alone and the training of
    all leaves are those of its released code.
    """
    check_loss(loss)
    check_flags(stacked=stacked)
    steps = whole_number("steps", steps)
    rate = _checked("learning_rate", learning_rate, most=1e38)
    decay = _checked("momentum", momentum, most=1)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        weights = living(params, masks, where)
        trees.check_floating(weights)
        first, last = _schedule(batch, steps) if stacked else (None, batch)
        floating = trees.select(params, trees.everything)

        def step(carry: tuple[Params, Params], one: Any) -> tuple[tuple[Params, Params], None]:
            trained, velocity = carry
            slope = gradient(loss, params, one if stacked else batch, stacked=False)(trained)
            if masks is not None:
                slope = trees.overlay(lambda g, m: jnp.where(m, g, 0), slope, masks)
            velocity = jax.tree.map(lambda v, g: decay * v + g, velocity, slope)
            trained = jax.tree.map(lambda w, v: w - rate * v, trained, velocity)
            return (trained, velocity), None

        def outcome(weights: Params) -> Array:
            start = trees.overlay(lambda _, new: new, floating, weights)
            start = jax.tree.map(jnp.asarray, start)
            still = jax.tree.map(jnp.zeros_like, start)
            (trained, _), _ = jax.lax.scan(step, (start, still), first, length=steps)
            return check_loss_value(loss(trees.overlay(lambda _, new: new, params, trained), last))

        return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, jax.grad(outcome)(weights))

    return score


def _checked(name: str, value: Any, *, most: float) -> float:
    if not is_real(value) or not 0 <= float(value) < most:
        raise ValueError(f"`{name}` must be in [0, {most}), got {shown(value)}.")
    return float(value)


def _schedule(batch: Batch, steps: int) -> tuple[Batch, Batch]:
    """The batches of the steps, and that of the loss after them."""
    n = sweeps.case_count(batch, name="batch")
    if n != steps + 1:
        raise ValueError(
            f"`batch` must hold {steps + 1} batches, one for each of `steps` = {steps} and one for "
            f"the loss after them, got {n}."
        )
    leaves = jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(lambda leaf: leaf[:-1], leaves), jax.tree.map(lambda x: x[-1], leaves)
