"""How many granules each round of a Pruner keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nopr import axes as axes_
from nopr import budgets, ranking, schedules, trees
from nopr import densities as densities_
from nopr import granularity as granularities
from nopr.typing import Counts, Scope, check_choice, check_form, shown


class Asked(NamedTuple):
    """What a Pruner was asked to keep; see `pruner`."""

    density: Any
    scope: Scope
    axes: axes_.Axes
    distribution: Callable[..., Counts] | None
    grain: granularities.Granularity
    schedule: Callable[..., schedules.Schedule]
    rounds: int


def check(asked: Asked) -> None:
    """Checks the options when the Pruner is made, not at its first call.

    Raises:
      ValueError: If a density is out of range, or two options exclude each other.
    """
    _check_densities(asked.density, asked.distribution, asked.schedule, asked.rounds)
    check_choice("scope", asked.scope, Scope)
    _check_group(asked.grain, density=asked.density, distribution=asked.distribution)
    structured = asked.grain.name != "unstructured"
    if asked.scope == "output" and (structured or asked.distribution is not None):
        raise ValueError(
            "`granularity` and `distribution` must be None with scope='output': single weights "
            "compete, at the same density in each output of a layer. Leave them out; `density` may "
            "be {path: number}."
        )


def per_round(asked: Asked, pooled: Any, count: Any) -> Any:
    """What each round keeps, [rounds] or [rounds, layers]; concrete unless `count` is traced.

    Args:
      asked: The options of the Pruner.
      pooled: Scores of granules, or their shapes.
      count: The count given in the call, or None.

    Raises:
      ValueError: If neither a density nor `count` is given, or `count` does not fit.
    """
    grain, rounds = asked.grain, asked.rounds
    _check_group(grain, count=count)
    outs = ranking.output_axes(pooled, asked.axes, scope=asked.scope)
    rivals = None if outs is None else ranking.fan_ins(pooled, outs)
    if grain.n_of_m is not None:
        n, m = grain.n_of_m
        plan = _scheduled(asked.schedule, n / m, rounds, m)
    elif count is None:
        plan = _planned(asked, pooled, rivals)
    else:
        plan = _given(count, rounds, trees.paths(pooled))
        by_layer = not (asked.density is None or _is_single(asked.density))
        if (by_layer or asked.distribution is not None) and np.ndim(plan) < 2:
            raise ValueError(
                "`count` must be one number per layer where the pruner has a `distribution` or a "
                f"density per layer, which it replaces, got {shown(count)}. `densities.counts` "
                "makes them."
            )
    if rounds > 1 and not traced(plan):
        if rivals is not None:
            plan = np.broadcast_to(plan.T, (len(rivals), rounds)).T
        _check_sizes(plan, rivals or [math.prod(shape) for shape in trees.shapes(pooled)])
    return plan


def plain(count: Any) -> Any:
    """A concrete count as Python numbers, so that `top` can check it against the weights alive."""
    return count if traced(count) else np.asarray(count).tolist()


def traced(value: Any) -> bool:
    """Whether a value is an argument of a traced function."""
    return isinstance(value, jax.core.Tracer)


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


def _planned(asked: Asked, pooled: Any, rivals: Sequence[int] | None) -> np.ndarray:
    """Kept granules of each round, [rounds] or [rounds, layers].

    Those of each output if `rivals`, the weights of an output of each layer, are given.
    """
    density, schedule, rounds = asked.density, asked.schedule, asked.rounds
    if density is None:
        raise ValueError("The pruner has no `density`. Give it one, or `count` in the call.")
    sizes = [math.prod(shape) for shape in trees.shapes(pooled)] if rivals is None else rivals
    each = budgets.layers(density, trees.paths(pooled), name="density")
    if each is None and rivals is not None:
        each = [density] * len(rivals)
    if each is not None:
        counts = [_scheduled(schedule, d, rounds, n) for d, n in zip(each, sizes, strict=True)]
        return np.stack(counts, axis=1)
    if asked.distribution is None:
        return _scheduled(schedule, density, rounds, sum(sizes))
    at = schedule(density=density, steps=rounds)
    falling = [at(step) for step in range(1, rounds + 1)]
    return densities_.plan(asked.distribution, pooled, densities=falling)


def _scheduled(
    schedule: Callable[..., schedules.Schedule], density: float, rounds: int, size: int
) -> np.ndarray:
    """Kept granules of `size` after each round."""
    at = schedule(density=density, steps=rounds)
    return level_counts(size, [at(step) for step in range(1, rounds + 1)])


def _values(densities: Any) -> list[Any]:
    return list(densities.values() if isinstance(densities, Mapping) else densities)


def _given(count: Any, rounds: int, paths: Sequence[str]) -> Any:
    """`count` with a leading axis of rounds."""
    each = budgets.layers(count, paths, name="count") if isinstance(count, Mapping) else None
    if each is not None:
        numbers: Any = jnp if any(map(traced, each)) else np
        rows = [numbers.asarray(one) for one in each]
        rows = [row[None] if row.ndim == 0 and rounds == 1 else row for row in rows]
        count = numbers.stack(rows, axis=-1)
    counts = count if traced(count) else whole_counts(count)
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
