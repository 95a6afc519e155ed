"""From a Pruner and a training function to a pure Algorithm, `(data, *, key) -> masks`.

Every algorithm begins with `init_key, run_key = jax.random.split(key)`, draws its params with the
first, and is a function of the data and the key alone: it works under jit, and under vmap over
datasets and keys. All take the same `train(params, masks, data, *, key)`, whose masks may be
traced; a `finetune.trainer` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Key

from nopr import masks as masks_
from nopr import pruning
from nopr.finetune.fitted import all_finite, raise_if_not_finite
from nopr.typing import (
    Algorithm,
    Batch,
    Masks,
    Params,
    Pruner,
    Train,
    Trained,
    check_choice,
    check_flags,
    check_form,
    check_key,
    shown,
)

Init = Callable[[Any], Params]
ScoringBatch = Callable[[Batch], Batch]
Retrain: TypeAlias = Literal["weight_rewinding", "learning_rate_rewinding", "finetuning"]
"""How a level of iterative pruning trains what the level before has left; see `imp`."""


class MadeOf(NamedTuple):
    """What an algorithm was made of, as its attribute `made_of`, for others to check."""

    rewind: Train | None = None
    retrain: Retrain = "weight_rewinding"


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

    vars(algorithm).update(made_of=MadeOf())
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

    vars(algorithm).update(made_of=MadeOf())
    return algorithm


def imp(
    pruner: Pruner,
    *,
    init: Init,
    train: Train,
    counts: Any,
    rewind: Train | None = None,
    retrain: Retrain = "weight_rewinding",
    finetune: Train | None = None,
    batch: ScoringBatch = whole,
    levels: bool = False,
) -> Algorithm:
    """Iterative pruning: train, prune, rewind, repeat.

    Level 0 trains the dense network, of which `counts[0]` weights are kept. Every later level
    trains the remaining weights, and `counts[level]` of them are kept. The training of a level is
    `train`, from the rewind step to the end, or `finetune`. Optimizer, schedule and data order
    restart with each level, since these functions begin anew and get the same key.

    `retrain` says from which weights a level trains, and with what:

    - `"weight_rewinding"`: from those of the rewind step, by `train`: lottery tickets. With
      `rewind=None` these are the initial weights; with some steps of training ("late resetting"),
      larger networks have tickets too.
    - `"learning_rate_rewinding"`: from those where the level before ended, by `train`, so that
      only the schedule goes back to the rewind step.
    - `"finetuning"`: from those where the level before ended, by `finetune`, usually at the last
      learning rate.

    Training to the rewind step uses up the beginning of a schedule, and `train` the rest, which the
    optimizer is to be told.

    Args:
      pruner: A pruner of one round, such as `pruning.pruner(criteria.magnitude())`.
      init: `init(key) -> params`.
      train: `train(params, masks, data, *, key)`, from the rewind step to the end; returns a record
        such as `finetune.Fitted`, or the trained params alone.
      counts: Kept weights after each level, never rising: [levels], or by layer [levels, layers] or
        `{path: [levels]}`. `pruning.level_counts` makes them from densities, and `densities.plan`
        by a distribution.
      rewind: Trains the dense network from its initialization to the rewind step. None rewinds
        to step 0.
      retrain: One of the three words above.
      finetune: Trains each level after level 0 with `retrain="finetuning"`; as `train`.
      batch: `batch(data)`, the data that the pruner scores on; all of it by default.
      levels: Whether to return the masks of every level, with a leading level axis, instead of
        those of the last.

    Raises:
      ValueError: If `counts` rise or are not whole numbers, `retrain` is another word, or
        `finetune` is not given with `"finetuning"` alone.
      FloatingPointError: From the algorithm outside a trace, if training gave NaN or infinity; the
        message lists the levels.

    Example:
      Learning-rate rewinding to epoch 2 of 10, 5 steps an epoch:

      >>> import jax, optax
      >>> from nopr import algorithms, criteria, finetune, networks, pruning
      >>> net = networks.mlp((8, 2), inputs=4)
      >>> loss, rate = finetune.cross_entropy(net.apply), optax.cosine_decay_schedule(0.1, 50)
      >>> late = optax.sgd(lambda step: rate(step + 10))
      >>> algorithm = algorithms.imp(
      ...     pruning.pruner(criteria.magnitude()), init=net.init, counts=[24, 12],
      ...     rewind=finetune.trainer(loss, optax.sgd(rate), epochs=2, batch_size=4),
      ...     train=finetune.trainer(loss, late, epochs=8, batch_size=4),
      ...     retrain="learning_rate_rewinding")
      >>> data = jax.random.normal(jax.random.key(0), (20, 4)), jax.numpy.arange(20) % 2
      >>> kept = algorithm(data, key=jax.random.key(1))

    Source: Frankle & Carbin 2019, arXiv:1803.03635; late resetting: Frankle et al. 2019,
    arXiv:1903.01611; retraining: Renda et al. 2020, arXiv:2003.02389.
    """
    check_parts(pruner=pruner, init=init, train=train)
    check_choice("retrain", retrain, Retrain)
    check_flags(levels=levels)
    if rewind is not None:
        check_parts(rewind=rewind)
    if (finetune is not None) != (retrain == "finetuning"):
        raise ValueError(
            "`finetune` must be given with `retrain='finetuning'`, and only then, got "
            f"{shown(finetune)} with {retrain!r}."
        )
    if finetune is not None:
        check_parts(finetune=finetune)
    plan = falling_counts(counts)

    def algorithm(data: Batch, *, key: Key[Array, ""]) -> Masks:
        _, run_key = _split(key)
        # The first key trains, as in `after_training`: level 0 is the same dense network.
        train_key, prune_key, _ = jax.random.split(run_key, 3)
        start = starting_params(data, init=init, rewind=rewind, key=key)

        def level(state: Any, count: Any, train: Train = train) -> Any:
            masks, params = state
            begin = start if retrain == "weight_rewinding" else params
            fitted = _train(train, begin, masks, data, key=train_key)
            alive = masks if fitted.masks is None else fitted.masks
            count = plan.of_one(count)
            kept = pruner(fitted.params, batch(data), masks=alive, count=count, key=prune_key)
            end = None if retrain == "weight_rewinding" else _of_types(fitted.params, start)
            return (kept, end), (kept, fitted.finite)

        dense = keep_all(pruner, start, batch(data), count=plan.at(0), key=prune_key)
        state = dense, None if retrain == "weight_rewinding" else _of_types(start, start)
        every = jax.tree.map(jnp.asarray, plan.counts)
        if finetune is None:
            (last, _), found = jax.lax.scan(level, state, every)
        else:
            state, first = level(state, jax.tree.map(lambda counts: counts[0], every))
            rest = jax.tree.map(lambda counts: counts[1:], every)
            (last, _), later = jax.lax.scan(partial(level, train=finetune), state, rest)
            found = jax.tree.map(lambda a, b: jnp.append(a[None], b, axis=0), first, later)
        path, finite = found
        _raise_outside_a_trace(_Trained(None, None, finite), runs="levels")
        masks_.warn_emptied(last)
        return path if levels else last

    vars(algorithm).update(made_of=MadeOf(rewind, retrain))
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


class Levels(NamedTuple):
    """The kept counts after each level: [levels], [levels, layers], or by path [levels]."""

    counts: Any

    def __len__(self) -> int:
        """The number of levels."""
        return len(jax.tree.leaves(self.counts)[0])

    def at(self, level: int) -> Any:
        """The count of one level, as a pruner of one round takes it."""
        return self.of_one(jax.tree.map(lambda counts: counts[level], self.counts))

    def of_one(self, count: Any) -> Any:
        """The count of one level, cut from `counts`, as a pruner of one round takes it."""
        return count if isinstance(count, Mapping) or not count.ndim else count[None]


def falling_counts(counts: Any) -> Levels:
    """Checks that the kept counts after each level are whole numbers that do not rise."""
    by_path = isinstance(counts, Mapping)
    plan: Any = (
        {path: pruning.whole_counts(one) for path, one in counts.items()}
        if by_path
        else pruning.whole_counts(counts)
    )
    rows: list[np.ndarray] = list(plan.values()) if by_path else [plan]
    fit = all(row.size and 1 <= row.ndim <= (1 if by_path else 2) for row in rows)
    if not fit or len({len(row) for row in rows}) != 1:
        raise ValueError(
            "`counts` must be a list with one number per level, or one per layer in each, "
            f"[levels, layers], or {{path: list}}, got {shown(counts)}."
        )
    for row in rows:
        if np.any(row[1:] > row[:-1]):
            raise ValueError(f"`counts` must fall from level to level, got {shown(row.tolist())}.")
    return Levels(plan)


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
_FORMS["rewind"] = _FORMS["finetune"] = _FORMS["train"]


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


def _of_types(params: Params, like: Params) -> Params:
    """Params with the types that a scan began with."""
    return jax.tree.map(lambda leaf, one: jnp.asarray(leaf, jnp.result_type(one)), params, like)


def _raise_outside_a_trace(fitted: _Trained, **names: Any) -> None:
    if not isinstance(fitted.finite, jax.core.Tracer):
        raise_if_not_finite(fitted, **names)
