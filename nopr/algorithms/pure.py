"""From a Pruner and a training function to a pure Algorithm, `(data, *, key) -> masks`.

Every algorithm begins with `init_key, run_key = jax.random.split(key)`, draws its params with the
first, and is then a function of the data and the key alone: it jits, and vmaps over datasets and
over keys. One `train(params, masks, data, *, key) -> params`, its masks traced, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Key

from nopr import masks as masks_
from nopr import pruning
from nopr.typing import Algorithm, Batch, Masks, Params, Pruner, Train

Init = Callable[[Any], Params]
ScoringBatch = Callable[[Batch], Batch]


def whole(data: Batch) -> Batch:
    """All of the data, to score on."""
    return data


def at_init(pruner: Pruner, *, init: Init, batch: ScoringBatch = whole) -> Algorithm:
    """Prunes at initialisation: random, magnitude, SNIP, GraSP, SynFlow.

    Args:
      pruner: Chooses the masks from the initial params.
      init: `init(key) -> params`.
      batch: Takes from the data what the pruner scores on; all of it by default.
    """

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = jax.random.split(key)
        return pruner(init(init_key), batch(data), key=run_key)

    return algorithm


def after_training(
    pruner: Pruner, *, init: Init, train: Train, batch: ScoringBatch = whole
) -> Algorithm:
    """Trains the dense network, then prunes it.

    Args:
      pruner: Chooses the masks from the trained params.
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key) -> params`; called with `masks=None`.
      batch: Takes from the data what the pruner scores on; all of it by default.
    """

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = jax.random.split(key)
        train_key, prune_key = jax.random.split(run_key)
        start = init(init_key)
        trained = _checked_params(train(start, None, data, key=train_key), start)
        return pruner(trained, batch(data), key=prune_key)

    return algorithm


def imp(
    pruner: Pruner,
    *,
    init: Init,
    train: Train,
    counts: Any,
    rewind: Train | None = None,
    batch: ScoringBatch = whole,
    levels: bool = False,
) -> Algorithm:
    """Iterative pruning with rewinding: train, prune, go back, repeat.

    Level 1 trains the dense network and keeps `counts[0]` of its weights; every later level trains
    what is left from the rewound params and keeps `counts[level - 1]` of it. Optimiser, schedule
    and data order restart with each level: `train` gets the same key.

    Args:
      pruner: A pruner of one round, such as `pruning.pruner(criteria.magnitude())`.
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key) -> params`, from the rewind step to the end.
      counts: Kept weights after each level, falling; see `pruning.level_counts`.
      rewind: Trains the dense network from its initialisation to the rewind step. None rewinds
        to step 0.
      batch: Takes from the data what the pruner scores on; all of it by default.
      levels: Whether to return the masks of every level, with a leading level axis, and not those
        of the last alone.

    Source: Frankle & Carbin 2019, arXiv:1803.03635; rewinding: arXiv:1903.01611.
    """
    plan = falling_counts(counts)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = jax.random.split(key)
        # The first key trains, as in `after_training`: level 1 is the same dense network.
        train_key, prune_key, rewind_key = jax.random.split(run_key, 3)
        start = init(init_key)
        if rewind is not None:
            start = rewind(start, None, data, key=rewind_key)

        def level(masks: Masks, count: Array) -> tuple[Masks, tuple[Masks, Array]]:
            trained = _checked_params(train(start, masks, data, key=train_key), start)
            kept = pruner(trained, batch(data), masks=masks, count=count, key=prune_key)
            return kept, (kept, _all_finite(trained))

        dense = keep_all(pruner, start, batch(data), count=plan[0], key=prune_key)
        last, (path, finite) = jax.lax.scan(level, dense, jnp.asarray(plan))
        if not isinstance(finite, jax.core.Tracer) and not finite.all():
            raise ValueError(
                f"Training gave NaN or infinite params at level {int(finite.argmin()) + 1} of "
                f"{len(plan)}. Lower the learning rate or look at the data."
            )
        masks_.warn_emptied(last)
        return path if levels else last

    return algorithm


class Checked(NamedTuple):
    """Masks, and whether they can be trusted."""

    masks: Masks
    """What the algorithm returned."""

    finite: Bool[Array, ""]
    """Whether every score that was ranked was finite; one flag a case under vmap."""


def checked(algorithm: Algorithm) -> Callable[..., Checked]:
    """An algorithm that says of each case whether its scores were finite.

    Under a trace NaN scores cannot raise: they rank highest, and `masks.top` leaves a
    `checkify.debug_check` behind. This carries its verdict along as data, so that a sweep over
    thousands of cases keeps the good ones.

    Args:
      algorithm: `algorithm(data, *, key) -> masks`.

    Returns:
      `(data, *, key) -> Checked`, which jits and vmaps.
    """

    def run(data: Batch, *, key: Key[Array, ""]) -> Checked:
        error, masks = checkify.checkify(
            lambda data, key: algorithm(data, key=key), errors=checkify.user_checks
        )(data, key)
        failed = [leaf for leaf in jax.tree.leaves(error) if leaf.dtype == np.dtype(bool)]
        return Checked(masks, ~jnp.any(jnp.stack(failed)) if failed else jnp.array(True))

    return run


def falling_counts(counts: Any) -> np.ndarray:
    """Checks the kept weights after each level."""
    plan = pruning.whole_counts(counts)
    if plan.ndim != 1 or plan.size == 0:
        raise ValueError(f"`counts` must be a list of one number a level, got {counts}.")
    if np.any(plan[1:] > plan[:-1]):
        raise ValueError(f"`counts` must fall from level to level, got {plan.tolist()}.")
    return plan


def keep_all(
    pruner: Pruner, params: Params, batch: Batch, *, count: Any, key: Key[Array, ""]
) -> Masks:
    """The masks of level 0, which keep all that the pruner can prune."""
    like = jax.eval_shape(lambda: pruner(params, batch, count=count, key=key))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)


def _checked_params(trained: Params, start: Params) -> Params:
    if jax.tree.structure(trained) != jax.tree.structure(start):
        raise ValueError(
            f"`train` must return params like those it is given, got {type(trained).__name__}. "
            "Where it returns a record, as those of `finetune` do, wrap it: "
            "lambda *args, **options: train(*args, **options).params"
        )
    return trained


def _all_finite(params: Params) -> Array:
    flags = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(params)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(flags).all()
