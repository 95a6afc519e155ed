"""From a Pruner and a training function to a pure Algorithm, `(data, *, key) -> masks`.

Every algorithm begins with `init_key, run_key = jax.random.split(key)`, draws its params with the
first, and is a function of the data and the key alone: it works under jit, and under vmap over
datasets and keys. All take the same `train(params, masks, data, *, key)`, whose masks may be
traced; a `finetune.trainer` is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Key

from nopr import finetune, pruning
from nopr import masks as masks_
from nopr.finetune.fitted import all_finite
from nopr.typing import (
    Algorithm,
    Batch,
    Masks,
    Params,
    Pruner,
    Train,
    Trained,
    check_form,
    check_key,
)

Init = Callable[[Any], Params]
ScoringBatch = Callable[[Batch], Batch]


def whole(data: Batch) -> Batch:
    """Returns all of the data, to score on."""
    return data


def at_init(pruner: Pruner, *, init: Init, batch: ScoringBatch = whole) -> Algorithm:
    """Prunes at initialization: random, magnitude, SNIP, GraSP, SynFlow.

    Args:
      pruner: Chooses the masks from the initial params.
      init: `init(key) -> params`.
      batch: `batch(data)`, the data that the pruner scores on; all of it by default.

    Raises:
      ValueError: If `pruner` or `init` is something else, such as a criterion or params.
    """
    check_parts(pruner=pruner, init=init)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = _split(key)
        return pruner(init(init_key), batch(data), key=run_key)

    return algorithm


def during_training(*, init: Init, train: Train) -> Algorithm:
    """Trains with a procedure that changes its masks, and returns the final masks.

    Args:
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key)`, called with `masks=None`, such as a
        `finetune.trainer` with `read_masks`; returns a record that has masks.

    Raises:
      ValueError: From the algorithm, if the record has no masks.
      FloatingPointError: From the algorithm outside a trace, if training gave NaN or infinity.
    """
    check_parts(init=init, train=train)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = _split(key)
        fitted = _train(train, init(init_key), None, data, key=run_key)
        if fitted.masks is None:
            raise ValueError(
                "`train` must return a record with masks, got None. Give its trainer "
                "`read_masks`, or choose masks with `after_training`."
            )
        _raise_outside_a_trace(fitted)
        return fitted.masks

    return algorithm


def after_training(
    pruner: Pruner, *, init: Init, train: Train, batch: ScoringBatch = whole
) -> Algorithm:
    """Trains the dense network, then prunes it.

    Args:
      pruner: Chooses the masks from the trained params.
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key)`, called with `masks=None`; returns a record such
        as `finetune.Fitted`, or the trained params alone.
      batch: `batch(data)`, the data that the pruner scores on; all of it by default.

    Raises:
      FloatingPointError: From the algorithm outside a trace, if training gave NaN or infinity.
    """
    check_parts(pruner=pruner, init=init, train=train)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        init_key, run_key = _split(key)
        train_key, prune_key = jax.random.split(run_key)
        fitted = _train(train, init(init_key), None, data, key=train_key)
        _raise_outside_a_trace(fitted)
        return pruner(fitted.params, batch(data), masks=fitted.masks, key=prune_key)

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
    """Iterative pruning with rewinding: train, prune, rewind, repeat.

    Level 0 trains the dense network, of which `counts[0]` weights are kept. Every later level
    trains the remaining weights from the rewound params, and `counts[level]` of them are kept.
    Optimizer, schedule and data order restart with each level: `train` gets the same key.

    Args:
      pruner: A pruner of one round, such as `pruning.pruner(criteria.magnitude())`.
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key)`, from the rewind step to the end; returns a record
        such as `finetune.Fitted`, or the trained params alone.
      counts: Kept weights after each level, never rising; see `pruning.level_counts`.
      rewind: Trains the dense network from its initialization to the rewind step. None rewinds
        to step 0.
      batch: `batch(data)`, the data that the pruner scores on; all of it by default.
      levels: Whether to return the masks of every level, with a leading level axis, instead of
        those of the last.

    Raises:
      ValueError: If `counts` rise or are not whole numbers.
      FloatingPointError: From the algorithm outside a trace, if training gave NaN or infinity; the
        message lists the levels.

    Source: Frankle & Carbin 2019, arXiv:1803.03635; rewinding: arXiv:1903.01611.
    """
    check_parts(pruner=pruner, init=init, train=train)
    if rewind is not None:
        check_parts(rewind=rewind)
    plan = falling_counts(counts)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        _, run_key = _split(key)
        # The first key trains, as in `after_training`: level 0 is the same dense network.
        train_key, prune_key, _ = jax.random.split(run_key, 3)
        start = starting_params(data, init=init, rewind=rewind, key=key)

        def level(masks: Masks, count: Array) -> tuple[Masks, tuple[Masks, Array]]:
            fitted = _train(train, start, masks, data, key=train_key)
            alive = masks if fitted.masks is None else fitted.masks
            kept = pruner(fitted.params, batch(data), masks=alive, count=count, key=prune_key)
            return kept, (kept, fitted.finite)

        dense = keep_all(pruner, start, batch(data), count=plan[0], key=prune_key)
        last, (path, finite) = jax.lax.scan(level, dense, jnp.asarray(plan))
        _raise_outside_a_trace(_Trained(None, None, finite), runs="levels")
        masks_.warn_emptied(last)
        return path if levels else last

    return algorithm


def starting_params(
    data: Batch, *, init: Init, rewind: Train | None = None, key: Key[Array, ""]
) -> Params:
    """The params from which an algorithm starts with this key, or to which `imp` rewinds."""
    init_key, run_key = _split(key)
    params = init(init_key)
    if rewind is None:
        return params
    return _train(rewind, params, None, data, key=jax.random.split(run_key, 3)[2]).params


class Checked(NamedTuple):
    """Masks, and whether they can be trusted."""

    masks: Masks
    """The masks of the algorithm."""

    finite: Bool[Array, ""]
    """Whether every score that was ranked was finite; one flag per case under vmap."""


def checked(algorithm: Algorithm) -> Callable[..., Checked]:
    """An algorithm that also reports, for each case, whether its scores were finite.

    Under a trace, NaN scores cannot raise: they rank highest, and `masks.top` adds a
    `checkify.debug_check`. Here the result of that check is returned as data, so that a sweep over
    thousands of cases can keep the good ones.

    Args:
      algorithm: `algorithm(data, *, key) -> masks`.

    Returns:
      `(data, *, key) -> Checked`; it works under jit and vmap.
    """

    def run(data: Batch, *, key: Key[Array, ""]) -> Checked:
        error, masks = checkify.checkify(
            lambda data, key: algorithm(data, key=key), errors=checkify.user_checks
        )(data, key)
        failed = [leaf for leaf in jax.tree.leaves(error) if leaf.dtype == np.dtype(bool)]
        return Checked(masks, ~jnp.any(jnp.stack(failed)) if failed else jnp.array(True))

    return run


def falling_counts(counts: Any) -> np.ndarray:
    """Checks that the kept counts after each level are whole numbers that do not rise."""
    plan = pruning.whole_counts(counts)
    if plan.ndim != 1 or plan.size == 0:
        raise ValueError(f"`counts` must be a list with one number per level, got {counts}.")
    if np.any(plan[1:] > plan[:-1]):
        raise ValueError(f"`counts` must fall from level to level, got {plan.tolist()}.")
    return plan


def keep_all(
    pruner: Pruner, params: Params, batch: Batch, *, count: Any, key: Key[Array, ""]
) -> Masks:
    """The masks of level 0, which keep every weight that the pruner can prune."""
    like = jax.eval_shape(lambda: pruner(params, batch, count=count, key=key))
    masks_.check_bool(like)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)


_FORMS = {
    "pruner": (
        "(params, batch, *, masks, count, key)",
        "Make one from a criterion: `pruning.pruner(criterion, density=...)`.",
    ),
    "init": ("(key)", "Give the function that draws params, such as `net.init`, not params."),
    "train": ("(params, masks, data, *, key)", "Make one, such as `finetune.trainer(loss, ...)`."),
}
_FORMS["rewind"] = _FORMS["train"]


def check_parts(**parts: Any) -> None:
    """Checks the functions that an algorithm is made of."""
    for name, part in parts.items():
        form, remedy = _FORMS[name]
        check_form(part, form, name=name, remedy=remedy)


def _split(key: Key[Array, ""]) -> Key[Array, "2"]:
    check_key(key)
    return jax.random.split(key)


class _Trained(NamedTuple):
    params: Params
    masks: Masks | None
    finite: Array


def _train(
    train: Train, params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""]
) -> _Trained:
    """Trains, and returns the parts needed here, from a record or from params alone."""
    found: Any = train(params, masks, data, key=key)
    expected = jax.tree.structure(params)
    if jax.tree.structure(found) == expected:
        return _Trained(found, masks, all_finite(found))
    if isinstance(found, Trained) and jax.tree.structure(found.params) == expected:
        return _Trained(found.params, found.masks, found.finite)
    raise ValueError(
        "`train` must return a record such as `finetune.Fitted`, or params like those it was "
        f"given, got {type(found).__name__}. Return one of the two."
    )


def _raise_outside_a_trace(fitted: _Trained, **names: Any) -> None:
    if not isinstance(fitted.finite, jax.core.Tracer):
        finetune.raise_if_not_finite(fitted, **names)
