"""Iterative pruning of one network as a long run: cut off anywhere, it goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from nopr import finetune, trees
from nopr.algorithms.pure import ScoringBatch, falling_counts, keep_all, whole
from nopr.finetune import resuming
from nopr.finetune.loop import Carry, History
from nopr.typing import Batch, Masks, Params, Pruner


class Iterated(NamedTuple):
    """What iterative pruning leaves, level by level; level 0 is the dense network.

    Attributes:
      params: The trained params of the last level, exactly 0 where pruned.
      masks: Under which each level was trained, with a leading level axis; level 0 keeps all.
      history: Of each level from the rewind epoch on, `[levels, epochs]`.
      before: Of the dense network up to the rewind epoch; None where that is 0.
    """

    params: Params
    masks: Masks
    history: History
    before: History | None


def resume_imp(
    pruner: Pruner,
    params: Params,
    data: Batch,
    *,
    counts: Any,
    epochs: int,
    rewind_epoch: int = 0,
    every: int,
    keeper: finetune.Keeper | None = None,
    progress: finetune.Progress | None = None,
    batch: ScoringBatch = whole,
    state: PyTree = None,
    key: Key[Array, ""],
    **options: Any,
) -> Iterated:
    """Iterative pruning with rewinding of one network, going on from where it was cut off.

    Level 0 trains the dense network. Each level after it keeps `counts[level - 1]` of the weights
    by the trained ones of the level before, goes back to the rewind epoch, and trains what is left.
    Going back restores all of the training as it was at that epoch: weights, optimiser, schedule
    and data order, without the pruned weights. After every segment the whole state goes to the
    keeper: level, masks so far, the carry of the rewind epoch and the one under way, histories.

    Args:
      pruner: A pruner of one round, such as `pruning.pruner(criteria.magnitude())`.
      params: The initial params; the same in every call, as all arguments are.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      counts: Kept weights after each level, falling; see `pruning.level_counts`.
      epochs: Of the whole training of a level, those before the rewind epoch included.
      rewind_epoch: The epoch of the dense network whose weights come back; 0 is initialisation.
      every: Epochs between two saves; see `finetune.resume`.
      keeper: Keeps and gives back the state, under the number of epochs trained over all levels.
      progress: Called with the epochs trained over all levels, and how many there will be.
      batch: Takes from the data what the pruner scores on; all of it by default.
      state: The first state of `step_loss`, if it has one.
      key: Decides the order of the batches, the same in every level, and the pruner's draws. For
        the `run_key` of `imp` these are the same as there.
      options: All others of `finetune.advance`: step_loss, tx, batch_size and so on.

    Returns:
      Params, masks and histories.

    Raises:
      ValueError: If an option is out of range, or what the keeper has is not of this run.
      FloatingPointError: If training gives NaN or infinity; names level and epoch.

    Source: Frankle & Carbin 2019, arXiv:1803.03635; rewinding: arXiv:1903.01611.
    """
    plan = falling_counts(counts)
    if not 0 <= rewind_epoch < epochs:
        raise ValueError(
            f"`rewind_epoch` must be from 0 to below the {epochs} epochs, got {rewind_epoch}."
        )
    train_key, prune_key, _ = jax.random.split(key, 3)
    dense = keep_all(pruner, params, batch(data), count=plan[0], key=prune_key)
    start = finetune.start(params, dense, tx=options["tx"], state=state, key=train_key)
    run = _Run(
        first=_first(start, len(plan) + 1, data, epochs, rewind_epoch, options),
        data=data,
        epochs=epochs,
        rewind_epoch=rewind_epoch,
        every=every,
        keeper=keeper,
        progress=progress,
        options=options,
    )

    def prune(trained: Params, masks: Masks, level: int) -> Masks:
        count = int(plan[level - 1])
        return pruner(trained, batch(data), masks=masks, count=count, key=prune_key)

    return _iterate(run, prune)


class _State(NamedTuple):
    """All that the run needs to go on; of one structure and size from its first epoch on."""

    level: Any  # int32; -1 in the epochs before the rewind epoch
    rewound: Carry  # of the rewind epoch; the start until it is reached
    carry: Carry  # under way
    masks: Masks  # [levels, ...]; on the host
    history: History  # [levels, epochs]
    before: History | None


class _Run(NamedTuple):
    """What is fixed in a run."""

    first: _State
    data: Batch
    epochs: int
    rewind_epoch: int
    every: int
    keeper: finetune.Keeper | None
    progress: finetune.Progress | None
    options: dict[str, Any]

    @property
    def levels(self) -> int:
        return len(self.first.history.loss)

    @property
    def total(self) -> int:
        return self.done_before(self.levels)

    def done_before(self, level: int) -> int:
        """Epochs trained before a level begins."""
        return self.rewind_epoch + level * (self.epochs - self.rewind_epoch) if level >= 0 else 0


def _first(
    start: Carry, levels: int, data: Batch, epochs: int, rewind_epoch: int, options: dict[str, Any]
) -> _State:
    """The state before the first epoch."""
    _, one = resuming.after_one(start, data, **options)
    masks = jax.tree.map(lambda leaf: np.zeros((levels, *leaf.shape), bool), start.masks)
    return _State(
        level=np.int32(-1 if rewind_epoch else 0),
        rewound=start,
        carry=start,
        masks=_put(masks, 0, start.masks),
        history=resuming.empty(one, levels, epochs - rewind_epoch),
        before=resuming.empty(one, rewind_epoch) if rewind_epoch else None,
    )


def _iterate(run: _Run, prune: Callable[[Params, Masks, int], Masks]) -> Iterated:
    state = _restored(run)
    if state.level < 0:
        carry, before = _train(run, state)
        state = state._replace(level=np.int32(0), rewound=carry, carry=carry, before=before)
    for level in range(int(state.level), run.levels):
        carry, history = _train(run, state)
        state = state._replace(carry=carry, history=_put(state.history, level, history))
        if level + 1 < run.levels:
            kept = prune(carry.params, carry.masks, level + 1)
            state = state._replace(
                level=np.int32(level + 1),
                carry=_under(kept, state.rewound, run.options["tx"]),
                masks=_put(state.masks, level + 1, kept),
            )
    parts = jax.tree.map(jnp.asarray, (state.masks, state.history, state.before))
    return Iterated(state.carry.params, *parts)


def _restored(run: _Run) -> _State:
    """The state to go on from: the newest that was kept, or the first."""
    if run.keeper is None:
        return run.first
    like, _ = resuming.after_one(run.first.carry, run.data, **run.options)
    target = run.first._replace(rewound=like, carry=like)
    found = resuming.restored(run.keeper, target)
    return run.first if found is None else found[1]


def _train(run: _Run, state: _State) -> tuple[Carry, History]:
    """The training of `state.level` to its end, from where the state is."""
    level = int(state.level)
    done_before = run.done_before(level)

    def progress(done: int, _: int) -> None:
        if run.progress is not None:
            run.progress(done_before + done, run.total)

    try:
        return finetune.resume(
            state.rewound,  # It counts epochs from here; the keeper has where the state is.
            run.data,
            epochs=run.epochs - run.rewind_epoch if level >= 0 else run.rewind_epoch,
            every=run.every,
            keeper=_Within(run.keeper, state, done_before - int(state.rewound.epoch)),
            progress=progress,
            **run.options,
        )
    except FloatingPointError as error:
        place = f"level {level} of {run.levels - 1}" if level >= 0 else "the start"
        raise FloatingPointError(f"In {place}: {error}") from error


class _Within(NamedTuple):
    """The keeper of one level's training: the state of the whole run goes with it."""

    keeper: finetune.Keeper | None
    state: _State
    ahead: int  # epochs over all levels less those that the carry counts

    def save(self, step: int, tree: PyTree, /) -> None:
        if self.keeper is not None:
            self.keeper.save(self.ahead + step, _with(self.state, *tree))

    def restore(self, target: PyTree, /) -> tuple[int, PyTree] | None:
        del target  # The whole state was compared with its own.
        return int(self.state.carry.epoch), (self.state.carry, _history(self.state))


def _with(state: _State, carry: Carry, history: History) -> _State:
    """The state with the training under way put in."""
    if state.level < 0:
        return state._replace(carry=carry, before=history)
    return state._replace(carry=carry, history=_put(state.history, int(state.level), history))


def _history(state: _State) -> History | None:
    """The history of the training under way."""
    if state.level < 0:
        return state.before
    loss, metrics, finite = state.history
    level = int(state.level)
    return History(loss[level], jax.tree.map(lambda column: column[level], metrics), finite)


def _under(masks: Masks, carry: Carry, tx: Any) -> Carry:
    """The carry with its training as it was, less the weights that are pruned now."""
    everywhere = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), carry.params)
    kept = trees.overlay(lambda _, mask: mask, everywhere, masks)

    def without(leaf: Any, mask: Array) -> Any:
        # Statistics of whole rows and columns, as Adafactor has them, stay.
        return jnp.where(mask, leaf, 0) if jnp.shape(leaf) == mask.shape else leaf

    params = jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), carry.params, kept)
    opt_state = optax.tree_map_params(tx, without, carry.opt_state, kept)
    return carry._replace(params=params, masks=masks, opt_state=opt_state)


def _put(stacked: PyTree, level: int, new: PyTree) -> PyTree:
    """Stacked arrays of the levels with one level put in; what has no levels stays."""

    def put(column: Any, row: Any) -> Any:
        if np.ndim(column) == 0:
            return column
        column = np.array(column)
        column[level] = row
        return column

    return jax.tree.map(put, stacked, new)
