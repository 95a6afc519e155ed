"""From criterion, distribution, granularity and schedule to a Pruner.

The order is always score -> pool to granules -> counts -> top -> expand. A schedule repeats it,
each round among the granules still alive, or with `regrow` among those alive at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr import axes as axes_
from nopr import budgets, criteria, precision, ranking, schedules, trees
from nopr import densities as densities_
from nopr import granularity as granularities
from nopr import masks as masks_
from nopr.typing import (
    Batch,
    Counts,
    Criterion,
    Masks,
    Params,
    Pruner,
    Scope,
    Scores,
    check_choice,
    check_flags,
    check_form,
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
    _check_densities(density, distribution, schedule, rounds)
    check_choice("scope", scope, Scope)
    grain = granularities.unstructured() if granularity is None else granularity
    _check_group(grain, density=density, distribution=distribution)
    if scope == "output" and (granularity is not None or distribution is not None):
        raise ValueError(
            "`granularity` and `distribution` must be None with scope='output': single weights "
            "compete, at the same density in each output of a layer. Leave them out; `density` may "
            "be {path: number}."
        )
    by_layer = distribution is not None or not (density is None or _is_single(density))

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
        paths = trees.paths(pooled)
        outs = ranking.output_axes(pooled, axes, scope=scope)
        rivals = None if outs is None else ranking.fan_ins(pooled, outs)
        sizes = rivals or [math.prod(shape) for shape in trees.shapes(pooled)]
        _check_group(grain, count=count)
        if grain.n_of_m is not None:
            n, m = grain.n_of_m
            plan = _scheduled(schedule, n / m, rounds, m)
        elif count is None:
            plan = _planned(pooled, density, distribution, schedule, rounds, rivals)
        else:
            plan = _per_round(count, rounds, paths)
            if by_layer and np.ndim(plan) < 2:
                raise ValueError(
                    "`count` must be one number per layer where the pruner has a `distribution` or "
                    f"a density per layer, which it replaces, got {shown(count)}. "
                    "`densities.counts` makes them."
                )

        def prune_once(masks: Masks | None, xs: tuple[Any, Any]) -> tuple[Masks, Array]:
            count, key = xs
            scores = criterion(params, batch, masks=masks, key=key)
            among = start if regrow else masks
            kept = _keep(scores, count, among, grain=grain, scope=scope, axes=axes)
            return kept, _finite(scores, among)

        start = masks
        if rounds == 1:
            kept = prune_once(start, (_plain(plan[0]), key))[0]
        else:
            if not _traced(plan):
                if rivals is not None:
                    plan = np.broadcast_to(plan.T, (len(rivals), rounds)).T
                _check_sizes(plan, sizes)
                plan = jnp.asarray(plan, jnp.int32)
            if start is None:
                start = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
            kept, finite = jax.lax.scan(prune_once, start, (plan, jax.random.split(key, rounds)))
            _check_rounds(finite)
        asked = density if count is None else _plain(plan[-1])
        masks_.warn_emptied(kept, before=masks, expected=budgets.zeros(asked, paths))
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
    plan = whole_counts(counts)
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
        check_at_most(plan, masks_.size(like))
        many = jax.vmap(lambda k: pruner(params, batch, masks=masks, count=k, key=key))
        kept = many(jnp.asarray(plan, jnp.int32))
        if not any(map(_traced, jax.tree.leaves(kept))):
            some = plan.reshape(len(plan), -1).any(axis=1)  # the levels that keep any weight
            in_all = jax.tree.map(
                lambda leaf: leaf[some].any(axis=tuple(range(1, leaf.ndim))).all(), kept
            )
            masks_.warn_emptied(in_all, before=masks)
        return kept

    return prune


def whole_counts(counts: Any) -> np.ndarray:
    """Checks that concrete counts are whole numbers from 0 up, and returns them as int64.

    Raises:
      ValueError: If a count is not (usually it is a density); the message has the first of them.
    """
    remedy = "`pruning.level_counts` makes them from densities."
    return budgets.whole(counts, must="`counts` must be whole numbers from 0 up", remedy=remedy)


def check_at_most(counts: np.ndarray, size: int) -> None:
    """Checks that no count exceeds the number of prunable weights.

    Raises:
      ValueError: If one does; the message has the largest count.
    """
    if counts.size and counts.max() > size:
        raise ValueError(
            f"`counts` must be at most {size}, the prunable weights, got {counts.max()}."
        )


def level_counts(size: int, densities: Any) -> np.ndarray:
    """Kept counts, round(density * size), of a falling series of densities.

    Raises:
      ValueError: If a density is outside [0, 1] or the series rises.
    """
    values = budgets.falling(densities)
    return np.array([budgets.from_density(value, size) for value in values], np.int64)


def _check_densities(
    density: Any,
    distribution: Callable[..., Counts] | None,
    schedule: Callable[..., schedules.Schedule],
    rounds: int,
) -> None:
    """Checks the densities when the Pruner is made, not at its first call."""
    check_form(
        schedule,
        "(*, density, steps)",
        name="schedule",
        remedy="Give the constructor, such as `schedules.cubic`; the pruner calls it.",
    )
    if density is None:
        return
    single = _is_single(density)
    if distribution is not None and not single:
        raise ValueError(
            f"`density` must be one number with a `distribution`, got {shown(density)}. "
            "Omit one of them."
        )
    for value in [density] if single else _values(density):
        schedule(density=value, steps=rounds)  # raises if it is out of range


def _is_single(density: Any) -> bool:
    return not isinstance(density, Mapping) and np.ndim(density) == 0


def _check_group(grain: granularities.Granularity, **given: Any) -> None:
    """Checks that what N:M settles itself is not given."""
    for name, value in given.items():
        if grain.n_of_m is not None and value is not None:
            raise ValueError(
                f"`{name}` must be None with granularity {grain.name}, which sets the density of "
                f"each leaf, got {shown(value)}. Leave it out."
            )


def _planned(
    pooled: Any,
    density: Any,
    distribution: Callable[..., Counts] | None,
    schedule: Callable[..., schedules.Schedule],
    rounds: int,
    rivals: Sequence[int] | None,
) -> np.ndarray:
    """Kept granules of each round, [rounds] or [rounds, layers].

    Those of each output if `rivals`, the weights of an output of each layer, are given.
    """
    if density is None:
        raise ValueError("The pruner has no `density`. Give it one, or `count` in the call.")
    sizes = [math.prod(shape) for shape in trees.shapes(pooled)] if rivals is None else rivals
    each = budgets.layers(density, trees.paths(pooled), name="density")
    if each is None and rivals is not None:
        each = [density] * len(rivals)
    if each is not None:
        counts = [_scheduled(schedule, d, rounds, n) for d, n in zip(each, sizes, strict=True)]
        return np.stack(counts, axis=1)
    if distribution is None:
        return _scheduled(schedule, density, rounds, sum(sizes))
    at = schedule(density=density, steps=rounds)
    falling = [at(step) for step in range(1, rounds + 1)]
    return densities_.plan(distribution, pooled, densities=falling)


def _scheduled(
    schedule: Callable[..., schedules.Schedule], density: float, rounds: int, size: int
) -> np.ndarray:
    """Kept granules of `size` after each round."""
    at = schedule(density=density, steps=rounds)
    return level_counts(size, [at(step) for step in range(1, rounds + 1)])


def _values(densities: Any) -> list[Any]:
    return list(densities.values() if isinstance(densities, Mapping) else densities)


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
    if not _traced(finite) and not np.all(finite):
        first = int(np.argmin(finite)) + 1
        raise ValueError(
            f"The scores of round {first} of {len(finite)} have NaN or infinite values. "
            "Check the weights and the loss that were scored."
        )


def _per_round(count: Any, rounds: int, paths: Sequence[str]) -> Any:
    """`count` with a leading axis of rounds."""
    each = budgets.layers(count, paths, name="count") if isinstance(count, Mapping) else None
    if each is not None:
        traced = any(map(_traced, each))
        rows = [jnp.asarray(one) if traced else np.asarray(one) for one in each]
        rows = [row[None] if row.ndim == 0 and rounds == 1 else row for row in rows]
        count = (jnp if traced else np).stack(rows, axis=-1)
    counts = count if _traced(count) else whole_counts(count)
    if counts.ndim == 0:
        counts = counts[None]
    if len(counts) != rounds:
        raise ValueError(
            f"`count` must have one entry per round, {rounds}, got {len(counts)}. "
            "Give one per round, or take a pruner of one round."
        )
    return counts


def _check_sizes(plan: np.ndarray, layers: Sequence[int]) -> None:
    """Checks concrete counts, [rounds] or [rounds, layers], against the number of granules."""
    sizes = np.array(layers)
    if plan.ndim == 2 and plan.shape[1] != len(sizes):
        raise ValueError(
            f"`count` must have one entry per layer, {len(sizes)}, got {plan.shape[1]}."
        )
    over = plan > (sizes if plan.ndim == 2 else sizes.sum())
    if over.any():
        raise ValueError(
            f"`count` must be at most what can be pruned, {sizes.tolist()} by layer, got "
            f"{plan[over][0]}."
        )


def _plain(count: Any) -> Any:
    """A concrete count as Python numbers, so that `top` can check it against the weights alive."""
    return count if _traced(count) else np.asarray(count).tolist()


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
