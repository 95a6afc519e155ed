"""From a Pruner and a training function to a pure Algorithm, `(data, *, key) -> masks`.

Every algorithm begins with `init_key, run_key = jax.random.split(key)`, draws its params with the
first, and is then a function of the data and the key alone: it jits, and vmaps over datasets and
over keys. One `train(params, masks, data, *, key) -> params`, its masks traced, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nopr.typing import Algorithm, Batch, Masks, Params, Pruner, Train

Init = Callable[[Any], Params]
ScoringBatch = Callable[[Batch], Batch]


def _whole(data: Batch) -> Batch:
    return data


def at_init(pruner: Pruner, *, init: Init, batch: ScoringBatch = _whole) -> Algorithm:
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
    pruner: Pruner, *, init: Init, train: Train, batch: ScoringBatch = _whole
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
        trained = train(init(init_key), None, data, key=train_key)
        return pruner(trained, batch(data), key=prune_key)

    return algorithm


def imp(
    pruner: Pruner,
    *,
    init: Init,
    train: Train,
    counts: Any,
    rewind: Train | None = None,
    batch: ScoringBatch = _whole,
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
    plan = np.asarray(counts, np.int32)
    if plan.ndim != 1 or plan.size == 0:
        raise ValueError(f"`counts` must be a list of one number a level, got {counts}.")
    if np.any(plan[1:] > plan[:-1]):
        raise ValueError(f"`counts` must fall from level to level, got {plan.tolist()}.")

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = jax.random.split(key)
        rewind_key, train_key, prune_key = jax.random.split(run_key, 3)
        start = init(init_key)
        if rewind is not None:
            start = rewind(start, None, data, key=rewind_key)

        def level(masks: Masks, count: Array) -> tuple[Masks, Masks]:
            trained = train(start, masks, data, key=train_key)
            kept = pruner(trained, batch(data), masks=masks, counts=count, key=prune_key)
            return kept, kept

        like = jax.eval_shape(lambda: pruner(start, batch(data), counts=plan[0], key=prune_key))
        dense = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
        last, path = jax.lax.scan(level, dense, jnp.asarray(plan))
        return path if levels else last

    return algorithm
