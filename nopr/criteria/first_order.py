"""Criteria based on the gradient of a loss."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nopr import trees
from nopr.criteria.shared import filter_sums, from_gradients, gradient, living, map_filters
from nopr.typing import (
    Axes,
    Batch,
    Criterion,
    Loss,
    Masks,
    Params,
    Scores,
    Where,
    check_axes,
    check_choice,
    check_flags,
    check_loss,
    shown,
)

Group: TypeAlias = Literal["weight", "filter"]
"""What `taylor` estimates the removal of: `"weight"`, or all of a `"filter"`."""


def snip(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Connection sensitivity :math:`|w \, \partial L / \partial w|`.

    Iterative SNIP is a pruner of many rounds, each of which differentiates at the weights that the
    round before left: `pruner(snip(loss), density=0.01, schedule=schedules.exponential,
    rounds=100)`. There removed weights stay removed; with `force`, they can return.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches; their gradients are summed first.

    Source: Lee et al. 2019, arXiv:1810.02340; in rounds, de Jorge et al. 2021, arXiv:2006.09081.
    """
    return from_gradients(lambda w, g: jnp.abs(w * g), loss, where=where, stacked=stacked)


def force(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Foresight connection sensitivity :math:`|w \, \partial L / \partial w|_{m \odot w}|`.

    The weight :math:`w` is the original one, and the gradient that of the loss at the masked
    weights :math:`m \odot w`, with respect to every weight, removed ones too: what a weight would
    change if it returned to the network that is left. On masks that keep everything, it is `snip`.

    FORCE chooses among all weights in each round, :math:`m_0 = 1` and

    .. math:: m_{t+1} = \arg\max_{|m| = k_{t+1}} \sum_i m_i
        \Big| w_i \, \frac{\partial L}{\partial w_i} (m_t \odot w) \Big|,

    with the counts :math:`k_t` of an exponential schedule. That is a pruner with `regrow`:
    `pruner(force(loss), density=0.01, schedule=schedules.exponential, rounds=60, regrow=True)`.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches; their gradients are summed first.

    Returns:
      A criterion whose scores outside the masks have a meaning too.

    Source: de Jorge et al. 2021, arXiv:2006.09081.
    """
    check_loss(loss)
    check_flags(stacked=stacked)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        slope = gradient(loss, params, batch, stacked)(living(params, masks, where))
        return jax.tree.map(lambda w, g: jnp.abs(w * g), trees.select(params, where), slope)

    return score


def taylor(
    loss: Loss,
    *,
    group: Group = "weight",
    where: Where = trees.is_prunable,
    axes: Axes = None,
    stacked: bool = False,
) -> Criterion:
    r"""Squared first-order change of the loss, :math:`(w \, \partial L / \partial w)^2`.

    It estimates :math:`(\Delta L)^2` of removing a weight, or a whole filter :math:`S`, the weights
    with one index on the last axis or those of `axes`, which then all get the score

    .. math:: \Big( \sum_{s \in S} w_s \frac{\partial L}{\partial w_s} \Big)^2 .

    `granularity.filters` takes the mean over a filter, which returns this score to rounding. The
    paper's other estimate of a filter, :math:`\sum_s (w_s \, \partial L / \partial w_s)^2`, is
    `by_filter(taylor(loss))`; without `by_filter` it becomes a mean, and layers with large filters
    compete at a disadvantage.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      group: `"weight"` for the removal of single weights, `"filter"` for that of filters.
      where: `where(path, leaf)`, true for a prunable leaf.
      axes: The axes that number a kernel's filters, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions, as for `granularity.filters`.
      stacked: Whether the batch holds several batches; their gradients are summed first. The paper
        averages the scores of batches instead: `average(taylor(loss), stacked=True)`.

    Raises:
      ValueError: If `group` is another word, `axes` are given without filters, or `loss` does not
        take (params, batch).

    Source: Molchanov et al. 2019, arXiv:1906.10771.
    """
    check_choice("group", group, Group)
    if group == "weight":
        if axes is not None:
            raise ValueError(
                f"`axes` number filters and need `group='filter'`, got {shown(axes)} with 'weight'."
            )
        return from_gradients(lambda w, g: jnp.square(w * g), loss, where=where, stacked=stacked)
    check_axes(axes, argument="axes")
    changes = from_gradients(jnp.multiply, loss, where=where, stacked=stacked)

    def of_filters(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        change = changes(params, batch, masks=masks, key=key)
        return jax.tree.map(jnp.square, map_filters(filter_sums, axes, change))

    return of_filters


def movement(loss: Loss, *, where: Where = trees.is_prunable, stacked: bool = False) -> Criterion:
    r"""Movement :math:`-w \, \partial L / \partial w`: how fast descent moves a weight from zero.

    Positive where a step of gradient descent would increase :math:`|w|`, negative where it would
    shrink it. The paper accumulates it over the steps of training, as the gradient of learned
    scores; this is the score of fixed weights, usually trained ones, on one or several batches.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches, over which the scores are summed.

    Source: Sanh et al. 2020, arXiv:2005.07683.
    """
    return from_gradients(lambda w, g: -w * g, loss, where=where, stacked=stacked)
