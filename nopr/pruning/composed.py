"""From criterion, distribution, granularity and schedule to a Pruner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr import axes as axes_
from nopr import budgets, criteria, precision, schedules, trees
from nopr import densities as densities_
from nopr import granularity as granularities
from nopr import masks as masks_
from nopr.pruning import plans
from nopr.typing import (
    Batch,
    Counts,
    Criterion,
    Masks,
    Params,
    Pruner,
    Scope,
    Scores,
    check_flags,
    check_key,
    shown,
    whole_number,
)


def pruner(
    criterion: Criterion,
    *,
    density: Any = None,
    scope: Scope = "global",
    axes: axes_.Axes = None,
    distribution: Callable[..., Counts] | None = None,
    granularity: granularities.Granularity | None = None,
    schedule: Callable[..., schedules.Schedule] = schedules.exponential,
    rounds: int = 1,
    regrow: bool = False,
) -> Pruner:
    """Composes a Pruner `(params, batch, *, masks=None, count=None, key) -> masks`.

    Args:
      criterion: The criterion that scores the weights.
      density: Kept fraction of all granules after the last round, in [0, 1]; or one per layer, as
        a sequence in leaf order or as `{path: density}`. Without it, every call must give `count`.
      scope: `"global"`, all granules compete; `"layer"`, granules compete within each layer, with
        the same density in each; or `"output"`, single weights compete among those of the same
        output, of which each round keeps round(density * fan_in).
      axes: With scope `"output"`, the axes that number a kernel's outputs, or `{path: axes}`; see
        `masks.top`.
      distribution: `(shapes, *, density) -> counts` for the layers, such as `densities.erk`, or
        `(shapes, *, density, paths) -> counts`; replaces `scope`.
      granularity: The weights that are kept or removed together; single weights by default.
        `granularity.n_of_m` takes no `density`, `distribution` or `count`.
      schedule: A constructor of `schedules`; round t of `rounds` keeps `schedule(t)`. A single
        round keeps the density at once, by any schedule.
      rounds: Number of rounds of scoring and pruning; each scores the params under the masks of the
        round before.
      regrow: Whether granules that a round removed can return in a later one. Each round then
        chooses among all that were alive at the start, by scores under the masks of the round
        before. Made for `criteria.force`, which scores removed weights too. Most criteria give
        them 0, so that they stay out where scores are positive, but return before any weight of
        negative score.

    Returns:
      The Pruner. Given `masks`, it chooses among the granules alive in them. Given `count`, it
      keeps that number (with scope `"output"`, of each output) instead of the scheduled counts: one
      number, one per round, [rounds, layers] counts per layer, or `{path: count}` with one number
      or one per round; numbers may be traced. It warns of layers that lose all their weights, as
      `masks.top` does.

    Raises:
      ValueError: If `density`, `rounds` or `scope` is out of range or `criterion` is a constructor
        that was not called. From the Pruner, if neither `density` nor `count` is given or a count
        is too large.
    """
    criteria.check(criterion)
    if granularity is not None:
        granularities.check(granularity)
    if distribution is not None:
        densities_.check(distribution)
    rounds = whole_number("rounds", rounds)
    check_flags(regrow=regrow)
    grain = granularities.unstructured() if granularity is None else granularity
    asked = plans.Asked(density, scope, axes, distribution, grain, schedule, rounds)
    plans.check(asked)

    def prune(
        params: Params,
        batch: Batch,
        *,
        masks: Masks | None = None,
        count: Any = None,
        key: Key[Array, ""],
    ) -> Masks:
        check_key(key)
        like = jax.eval_shape(lambda: criterion(params, batch, masks=masks, key=key))
        trees.check_matches(like, params, name="scores")
        pooled = jax.eval_shape(grain.pool, like)
        plan = plans.per_round(asked, pooled, count)

        def prune_once(masks: Masks | None, xs: tuple[Any, Any]) -> tuple[Masks, Array]:
            count, key = xs
            scores = criterion(params, batch, masks=masks, key=key)
            among = start if regrow else masks
            kept = _keep(scores, count, among, grain=grain, scope=scope, axes=axes)
            return kept, _finite(scores, among)

        start = masks
        if rounds == 1:
            kept = prune_once(start, (plans.plain(plan[0]), key))[0]
        else:
            counts = jnp.asarray(plan, jnp.int32)
            if start is None:
                start = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
            kept, finite = jax.lax.scan(prune_once, start, (counts, jax.random.split(key, rounds)))
            _check_rounds(finite)
        wanted = density if count is None else plans.plain(plan[-1])
        expected = budgets.zeros(wanted, trees.paths(pooled))
        masks_.warn_emptied(kept, before=masks, expected=expected)
        return kept

    return prune


def levels(pruner: Pruner, counts: Any) -> Pruner:
    """A Pruner that returns the masks of many densities from one scoring.

    Args:
      pruner: Any Pruner.
      counts: The kept counts, one entry per level on the leading axis; each is a number, or one per
        round, as in a call of `pruner`.

    Returns:
      A Pruner whose masks have a leading level axis. One warning names the layers that lose all
      their weights at a level that keeps any; `jax.vmap(masks.emptied)` shows which level.
    """
    plan = plans.whole_counts(counts)
    if not plan.ndim or not plan.size:
        raise ValueError(f"`counts` must have one entry per level, got {shown(counts)}.")

    def prune(
        params: Params,
        batch: Batch,
        *,
        masks: Masks | None = None,
        count: Any = None,
        key: Key[Array, ""],
    ) -> Masks:
        if count is not None:
            raise ValueError("The counts of `levels` are fixed. Give `count` to its pruner.")
        like = jax.eval_shape(
            lambda: pruner(params, batch, masks=masks, count=plan.max(axis=0), key=key)
        )
        plans.check_at_most(plan, masks_.size(like))
        many = jax.vmap(lambda k: pruner(params, batch, masks=masks, count=k, key=key))
        kept = many(jnp.asarray(plan, jnp.int32))
        if not any(map(plans.traced, jax.tree.leaves(kept))):
            some = plan.reshape(len(plan), -1).any(axis=1)  # the levels that keep any weight
            in_all = jax.tree.map(
                lambda leaf: leaf[some].any(axis=tuple(range(1, leaf.ndim))).all(), kept
            )
            masks_.warn_emptied(in_all, before=masks)
        return kept

    return prune


def _keep(
    scores: Scores,
    count: Any,
    masks: Masks | None,
    *,
    grain: granularities.Granularity,
    scope: Scope,
    axes: Any = None,
) -> Masks:
    """One round: pool, choose among the granules with any weight alive, expand.

    The scores of dead weights have no meaning, so they count as 0 in those of their granules.
    """
    if scope == "global" and np.ndim(count) == 1:
        scope = "layer"
    if grain.n_of_m is None:
        choose = partial(masks_.top, count=count, scope=scope, axes=axes, warn=False)
    else:
        choose = partial(masks_.n_of_m, n=count, m=grain.n_of_m[1], axis=-1)
    if grain.pool(scores) is scores:  # single weights
        return choose(scores, masks=masks)

    def pool(scores: Scores, masks: Masks | None) -> Scores:
        if masks is None:
            return grain.pool(scores)
        return grain.pool(trees.map_prunable(lambda m, s: jnp.where(m, s, 0), masks, scores))

    wide = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(scores))
    granules = precision.in_double(pool, scores, masks) if wide else pool(scores, masks)
    alive = None
    if masks is not None:
        shares = grain.pool(jax.tree.map(lambda mask: jnp.asarray(mask, jnp.float32), masks))
        alive = jax.tree.map(lambda share: share > 0, shares)
    expanded = grain.expand(choose(granules, masks=alive), scores)
    return expanded if masks is None else masks_.combine(expanded, masks)


def _finite(scores: Scores, masks: Masks | None) -> Array:
    """Whether the score of every weight alive is finite."""

    def every(leaves: list[Any], alive: list[Any] | None) -> Array:
        flags = [jnp.isfinite(leaf) for leaf in leaves]
        if alive is not None:
            flags = [flag | ~mask for flag, mask in zip(flags, alive, strict=True)]
        return jnp.stack([flag.all() for flag in flags]).all()

    alive = None if masks is None else jax.tree.leaves(masks)
    return precision.in_double(every, jax.tree.leaves(scores), alive)


def _check_rounds(finite: Array) -> None:
    """Raises if a round had scores that are not finite; under a trace, `top` has checked them."""
    if not plans.traced(finite) and not np.all(finite):
        first = int(np.argmin(finite)) + 1
        raise ValueError(
            f"The scores of round {first} of {len(finite)} have NaN or infinite values. "
            "Check the weights and the loss that were scored."
        )
