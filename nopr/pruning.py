"""From criterion, distribution, granularity and schedule to a Pruner.

The order is always: score -> pool to granules -> counts -> top -> expand; a schedule repeats it,
each round among the granules still alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr import granularity as granularities
from nopr import masks as masks_
from nopr import precision, schedules, trees
from nopr.typing import Batch, Counts, Criterion, Masks, Params, Pruner, Scope, Scores


def pruner(
    criterion: Criterion,
    *,
    density: float | None = None,
    scope: Scope = "global",
    distribution: Callable[..., Counts] | None = None,
    granularity: granularities.Granularity | None = None,
    schedule: Callable[..., schedules.Schedule] = schedules.one_shot,
    rounds: int = 1,
) -> Pruner:
    """Composes a Pruner `(params, batch, *, masks=None, counts=None, key) -> masks`.

    Args:
      criterion: What scores the weights.
      density: Kept fraction of all granules after the last round, in [0, 1]. Without it every call
        must give `counts`.
      scope: `"global"`: all granules compete; `"layer"`: those of one layer, with the same density
        in each.
      distribution: `(shapes, *, density) -> counts` for the layers, such as `densities.erk`;
        replaces `scope`.
      granularity: What is kept or removed as a whole; single weights by default.
      schedule: A constructor of `schedules`; round t of `rounds` keeps `schedule(t)`.
      rounds: How often to score and prune; each round scores the params masked by the one before.

    Returns:
      The Pruner. Called with `masks` it chooses among the granules alive in them. Called with
      `counts` it keeps these instead of the scheduled ones: a number, one a round, or
      [rounds, layers] counts per layer; they may be traced.

    Raises:
      ValueError: If `density`, `rounds` or `scope` is out of range (here), or nothing says how
        many to keep (when called).
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}.")
    if density is not None:
        schedule(density=density, steps=rounds)  # checks the density now, not at the first call
    if scope not in ("global", "layer"):
        raise ValueError(f"`scope` must be one of 'global', 'layer', got {scope!r}.")
    grain = granularities.unstructured() if granularity is None else granularity

    def planned(scores: Any) -> np.ndarray:
        """Kept granules of each round, [rounds] or [rounds, layers]."""
        if density is None:
            raise ValueError("The pruner has no `density`; give one, or `counts` in the call.")
        at = schedule(density=density, steps=rounds)
        shapes = trees.shapes(jax.eval_shape(grain.pool, scores))
        wanted = [at(step) for step in range(1, rounds + 1)]
        if distribution is not None:
            return _falling(np.array([distribution(shapes, density=d) for d in wanted], np.int32))
        return level_counts(sum(math.prod(shape) for shape in shapes), wanted)

    def prune(
        params: Params,
        batch: Batch,
        *,
        masks: Masks | None = None,
        counts: Any = None,
        key: Key[Array, ""],
    ) -> Masks:
        like = jax.eval_shape(lambda: criterion(params, batch, masks=masks, key=key))
        plan = _per_round(planned(like) if counts is None else counts, rounds)

        def prune_once(masks: Masks | None, xs: tuple[Any, Any]) -> tuple[Masks, Array]:
            count, key = xs
            scores = criterion(params, batch, masks=masks, key=key)
            return _keep(scores, count, masks, grain=grain, scope=scope), _finite(scores, masks)

        if rounds == 1:
            return prune_once(masks, (_plain(plan[0]), key))[0]
        full = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
        kept, finite = jax.lax.scan(
            prune_once,
            full if masks is None else masks,
            (jnp.asarray(plan, jnp.int32), jax.random.split(key, rounds)),
        )
        _check_rounds(finite)
        return kept

    return prune


def levels(pruner: Pruner, counts: Any) -> Pruner:
    """A Pruner that gives the masks of many densities from one scoring.

    Args:
      pruner: Any Pruner.
      counts: What it keeps at each level, on the leading axis: a number, or one entry a round as
        in a call of `pruner`.

    Returns:
      A Pruner whose masks have a leading level axis.
    """
    plan = whole_counts(counts)

    def prune(
        params: Params,
        batch: Batch,
        *,
        masks: Masks | None = None,
        counts: Any = None,
        key: Key[Array, ""],
    ) -> Masks:
        if counts is not None:
            raise ValueError("The counts of `levels` are fixed; give `counts` to its pruner.")
        like = jax.eval_shape(
            lambda: pruner(params, batch, masks=masks, counts=plan.max(axis=0), key=key)
        )
        check_at_most(plan, masks_.size(like))
        many = jax.vmap(lambda k: pruner(params, batch, masks=masks, counts=k, key=key))
        return many(jnp.asarray(plan))

    return prune


def whole_counts(counts: Any) -> np.ndarray:
    """Checks that concrete counts are whole numbers from 0 up, and gives them as int32.

    Raises:
      ValueError: With the first that is not; densities are the usual mistake.
    """
    values = np.asarray(counts)
    bad = values[(values != np.rint(values)) | (values < 0)]
    if bad.size:
        raise ValueError(
            f"`counts` must be whole numbers from 0 up, got {bad.flat[0]}. "
            "`pruning.level_counts` makes them from densities."
        )
    return values.astype(np.int32)


def check_at_most(counts: np.ndarray, size: int) -> None:
    """Checks that no count passes the number of prunable weights.

    Raises:
      ValueError: With the largest count.
    """
    if counts.size and counts.max() > size:
        raise ValueError(f"`counts` must be at most {size}, the weights there, got {counts.max()}.")


def level_counts(size: int, densities: Any) -> np.ndarray:
    """Kept counts, round(density * size) each, of a falling series of densities.

    Raises:
      ValueError: If a density is outside [0, 1] or the series rises.
    """
    values = np.asarray(densities, np.float64)
    if values.size == 0 or np.any((values < 0) | (values > 1)):
        raise ValueError(f"`densities` must be in [0, 1] and not empty, got {densities}.")
    if np.any(np.diff(values) > 0):
        raise ValueError(f"`densities` must fall from level to level, got {densities}.")
    return np.array([round(float(value) * size) for value in values], np.int32)


def _keep(
    scores: Scores,
    count: Any,
    masks: Masks | None,
    *,
    grain: granularities.Granularity,
    scope: Scope,
) -> Masks:
    """One round: pool, choose among the granules of which any weight is alive, expand."""
    wide = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(scores))
    granules = precision.in_double(grain.pool, scores) if wide else grain.pool(scores)
    alive = None
    if masks is not None:
        shares = grain.pool(jax.tree.map(lambda mask: jnp.asarray(mask, jnp.float32), masks))
        alive = jax.tree.map(lambda share: share > 0, shares)
    by_layer = scope == "layer" or np.ndim(count) == 1
    kept = masks_.top(granules, count=count, within=alive, scope="layer" if by_layer else "global")
    expanded = grain.expand(kept, scores)
    return expanded if masks is None else masks_.combine(expanded, masks)


def _finite(scores: Scores, masks: Masks | None) -> Array:
    """Whether every score of a living weight is finite."""

    def every(leaves: list[Any], alive: list[Any] | None) -> Array:
        flags = [jnp.isfinite(leaf) for leaf in leaves]
        if alive is not None:
            flags = [flag | ~mask for flag, mask in zip(flags, alive, strict=True)]
        return jnp.stack([flag.all() for flag in flags]).all()

    alive = None if masks is None else jax.tree.leaves(masks)
    return precision.in_double(every, jax.tree.leaves(scores), alive)


def _check_rounds(finite: Array) -> None:
    """Raises if a round had scores that are not finite; under a trace `top` has checked it."""
    if not _traced(finite) and not np.all(finite):
        first = int(np.argmin(finite)) + 1
        raise ValueError(
            f"The scores of round {first} of {len(finite)} have NaN or infinite values. "
            "Check the weights and the loss that were scored."
        )


def _falling(plan: np.ndarray) -> np.ndarray:
    """Counts [rounds, layers] of which none rises from round to round; each round's sum stays.

    Largest remainder can give a layer one more when the total falls; what is in excess is taken
    from the layer that still has the most to lose.
    """
    for now, later in zip(plan[-2::-1], plan[:0:-1], strict=True):
        total = now.sum()
        np.maximum(now, later, out=now)
        while now.sum() > total:
            now[np.argmax(now - later)] -= 1
    return plan


def _per_round(counts: Any, rounds: int) -> Any:
    """`counts` with a leading axis of one entry a round."""
    counts = counts if _traced(counts) else whole_counts(counts)
    if counts.ndim == 0:
        counts = counts[None]
    if len(counts) != rounds:
        raise ValueError(f"`counts` must have one entry a round, {rounds}, got {len(counts)}.")
    return counts


def _plain(count: Any) -> Any:
    """A concrete count as Python numbers, so that `top` can check it against what is alive."""
    return count if _traced(count) else np.asarray(count).tolist()


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
