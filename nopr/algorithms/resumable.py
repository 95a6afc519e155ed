"""Iterative pruning of one network as a long run that resumes to the same bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Key, PyTree

from nopr import finetune, transforms, trees
from nopr import masks as masks_
from nopr.algorithms.pure import Retrain, ScoringBatch, falling_counts, keep_all, whole
from nopr.convolutions import Implementation
from nopr.finetune import loop, resuming
from nopr.finetune.fitted import Carry, Fitted, History
from nopr.typing import (
    Batch,
    Masks,
    Params,
    Progress,
    Pruner,
    Status,
    StepLoss,
    check_choice,
    check_key,
    whole_number,
)


class Iterated(NamedTuple):
    """The result of iterative pruning, level by level; level 0 is the dense network.

    Attributes:
      last: The record of the last level.
      masks: The masks under which each level was trained, with a leading level axis; level 0 keeps
        all weights.
      history: The history of each level from the rewind epoch on, `[levels, epochs]`.
      before: The history of the dense network up to the rewind epoch; None if that is 0.
    """

    last: Fitted
    masks: Masks
    history: History
    before: History | None

    @property
    def params(self) -> Params:
        """The trained params of the last level, exactly 0 where pruned."""
        return self.last.params

    @property
    def finite(self) -> Bool[Array, ""]:
        """Whether losses and params were finite."""
        return self.last.finite


def resume_imp(
    pruner: Pruner,
    params: Params,
    data: Batch,
    *,
    counts: Any,
    step_loss: StepLoss,
    tx: transforms.Transformation,
    epochs: int,
    every: int,
    batch_size: int | None,
    rewind_epoch: int = 0,
    retrain: Retrain = "weight_rewinding",
    keeper: finetune.Keeper | None = None,
    progress: Progress | None = None,
    batch: ScoringBatch = whole,
    state: PyTree = None,
    monitor: finetune.Monitor | None = None,
    remainder: bool = True,
    mesh: Mesh | None = None,
    convolutions: Implementation = "auto",
    key: Key[Array, ""],
) -> Iterated:
    """Iterative pruning of one network, resumed where it was interrupted.

    Level 0 trains the dense network. Each later level prunes the network trained at the level
    before to `counts[level - 1]` weights and trains what remains for `epochs - rewind_epoch`
    epochs, as `retrain` says; the words are those of `imp`:

    - `"weight_rewinding"` restores the whole training state of the rewind epoch, less the pruned
      weights: weights, optimizer, schedule, data order and the state of `step_loss`.
    - `"learning_rate_rewinding"` restores optimizer, schedule and data order, and goes on from the
      weights, and the state of `step_loss`, where the level before ended.
    - `"finetuning"` goes on with the optimizer and its schedule too, which is then past its end;
      only the data order restarts.

    After every segment the whole state goes to the keeper: level, masks so far, the carry of the
    rewind epoch, the current carry, and histories.

    Args:
      pruner: A pruner of one round, such as `pruning.pruner(criteria.magnitude())`.
      params: The initial params; to resume, pass them and all other arguments unchanged.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      counts: Kept weights after each level, never rising, in all or by layer, as for `imp`.
      step_loss: `step_loss(params, state, batch, key) -> (loss, state)`; see `finetune.advance`.
      tx: An optax transformation, wrapped here in `transforms.keep`.
      epochs: Epochs in the whole training of a level, including those before the rewind epoch.
      every: Epochs between two saves; see `finetune.resume`.
      batch_size: Examples per step; None takes all of them in their own order.
      rewind_epoch: The epoch of the dense network to which each level rewinds; 0 is
        initialization.
      retrain: `"weight_rewinding"`, `"learning_rate_rewinding"` or `"finetuning"`.
      keeper: Saves and restores the state, under the number of epochs trained over all levels.
      progress: Called with a `Status` that counts the epochs of all levels; its rate is that of
        the current level.
      batch: `batch(data)`, the data that the pruner scores on; all of it by default.
      state: The initial state of `step_loss`, if it has one.
      monitor: `monitor(params) -> {name: scalar}`, or `monitor(params, state)` if `state` is not
        None; run after every epoch.
      remainder: Whether leftover examples form one more, smaller step.
      mesh: The mesh over whose `batch` axis every batch is split; None stays on one device.
      convolutions: How convolutions of `step_loss` are computed; see `convolutions.resolve`.
      key: Typed key for the order of the batches, the same in every level, and for the pruner. The
        `run_key` of `imp` gives the same order and draws as there.

    Returns:
      The record of the last level, with the masks and histories of all levels.

    Raises:
      ValueError: If an option is out of range, or the keeper's state belongs to another run.
      FloatingPointError: If training gives NaN or infinity; the message has the level and epoch.

    Source: Frankle & Carbin 2019, arXiv:1803.03635; late resetting: Frankle et al. 2019,
    arXiv:1903.01611; retraining: Renda et al. 2020, arXiv:2003.02389.
    """
    check_choice("retrain", retrain, Retrain)
    plan = loop.make_plan(
        data,
        step_loss=step_loss,
        tx=tx,
        epochs=epochs,
        batch_size=batch_size,
        monitor=monitor,
        stateful=state is not None,
        remainder=remainder,
        mesh=mesh,
        read_masks=None,
        convolutions=convolutions,
    )
    kept_counts = falling_counts(counts)
    rewind_epoch = whole_number("rewind_epoch", rewind_epoch, least=0)
    if rewind_epoch >= plan.epochs:
        raise ValueError(
            f"`rewind_epoch` must be less than the {plan.epochs} epochs, got {rewind_epoch}. "
            "Rewind to an earlier epoch, or train longer."
        )
    check_key(key)
    train_key, prune_key, _ = jax.random.split(key, 3)
    dense = keep_all(pruner, params, batch(data), count=kept_counts.at(0), key=prune_key)
    start = finetune.start(params, dense, tx=tx, state=state, key=train_key)
    run = _Run(data, plan, rewind_epoch, whole_number("every", every), keeper, progress)
    now = _restored(run, _first(run, start, levels=len(kept_counts) + 1))
    if now.level < 0:
        fitted = _train(run, now)
        now = now._replace(
            level=np.int32(0), rewound=fitted.carry, carry=fitted.carry, before=fitted.history
        )
    while True:
        level, fitted = int(now.level), _train(run, now)
        now = now._replace(carry=fitted.carry, history=_put(now.history, level, fitted.history))
        if level == len(kept_counts):
            found = jax.tree.map(jnp.asarray, (now.masks, now.history, now.before))
            return Iterated(fitted, *found)
        count = kept_counts.at(level)
        kept = pruner(fitted.params, batch(data), masks=fitted.masks, count=count, key=prune_key)
        now = now._replace(
            level=np.int32(level + 1),
            carry=_under(kept, _retrained(retrain, now.rewound, fitted.carry), tx),
            masks=_put(now.masks, level + 1, kept),
        )


class _State(NamedTuple):
    """All that a run needs to resume; structure and shapes are fixed from the first epoch on."""

    level: Any  # int32; -1 in the epochs before the rewind epoch
    rewound: Carry  # of the rewind epoch; of the start until then
    carry: Carry  # current
    masks: Masks  # [levels, ...]; on the host
    history: History  # [levels, epochs]
    before: History | None


class _Run(NamedTuple):
    """The fixed parts of a run."""

    data: Batch
    plan: loop.Plan
    rewind_epoch: int
    every: int
    keeper: finetune.Keeper | None
    progress: Progress | None

    def length(self, level: int) -> int:
        """The number of epochs that a level trains."""
        return self.plan.epochs - self.rewind_epoch if level >= 0 else self.rewind_epoch

    def done_before(self, level: int) -> int:
        """The number of epochs trained before a level begins."""
        return self.rewind_epoch + level * self.length(level) if level >= 0 else 0


def _first(run: _Run, start: Carry, *, levels: int) -> _State:
    """The state before the first epoch."""
    _, one = resuming.after_one(start, run.data, run.plan)
    masks = jax.tree.map(lambda leaf: np.zeros((levels, *leaf.shape), bool), start.masks)
    return _State(
        level=np.int32(-1 if run.rewind_epoch else 0),
        rewound=start,
        carry=start,
        masks=_put(masks, 0, start.masks),
        history=resuming.empty(one, levels, run.length(0)),
        before=resuming.empty(one, run.rewind_epoch) if run.rewind_epoch else None,
    )


def _restored(run: _Run, first: _State) -> _State:
    """The state to resume from: the newest saved one, or the first."""
    if run.keeper is None:
        return first
    like, _ = resuming.after_one(first.carry, run.data, run.plan)
    found = resuming.restored(run.keeper, first._replace(rewound=like, carry=like))
    return first if found is None else found[1]


def _train(run: _Run, now: _State) -> Fitted:
    """Trains the current level to its end, from the given state."""
    level, levels = int(now.level), len(now.history.loss)
    done_before = run.done_before(level)

    def progress(status: Status) -> None:
        if run.progress is not None:
            total, loaded = run.done_before(levels), done_before + status.loaded
            run.progress(
                status._replace(done=done_before + status.done, total=total, loaded=loaded)
            )

    try:
        return resuming.run_in_segments(
            now.rewound,  # Epochs count from here; the keeper knows the current one.
            run.data,
            run.plan._replace(epochs=run.length(level)),
            every=run.every,
            keeper=_Within(run.keeper, now, done_before - int(now.rewound.epoch)),
            progress=progress,
        )
    except FloatingPointError as error:
        place = f"level {level} of {levels - 1}" if level >= 0 else "the start"
        raise FloatingPointError(f"In {place}: {error}") from error


class _Within(NamedTuple):
    """The keeper of one level's training; it saves the state of the whole run."""

    keeper: finetune.Keeper | None
    state: _State
    ahead: int  # epochs over all levels minus those that the carry counts

    def save(self, step: int, tree: PyTree, /) -> None:
        if self.keeper is not None:
            self.keeper.save(self.ahead + step, _with(self.state, *tree))

    def restore(self, target: PyTree, /) -> tuple[int, PyTree] | None:
        del target  # `_restored` has compared the whole state with its own target.
        return int(self.state.carry.epoch), (self.state.carry, _history(self.state))


def _with(state: _State, carry: Carry, history: History) -> _State:
    """The state with the current training inserted."""
    if state.level < 0:
        return state._replace(carry=carry, before=history)
    return state._replace(carry=carry, history=_put(state.history, int(state.level), history))


def _history(state: _State) -> History | None:
    """The history of the current training."""
    if state.level < 0:
        return state.before
    return jax.tree.map(lambda column: column[int(state.level)], state.history)


def _retrained(retrain: Retrain, rewound: Carry, ended: Carry) -> Carry:
    """What a level trains from, before its weights are pruned."""
    if retrain == "weight_rewinding":
        return rewound
    if retrain == "learning_rate_rewinding":
        return rewound._replace(params=ended.params, state=ended.state)
    return ended._replace(epoch=rewound.epoch, step=rewound.step)


def _under(masks: Masks, carry: Carry, tx: Any) -> Carry:
    """The carry as it was, with the newly pruned weights set to 0."""
    everywhere = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), carry.params)
    kept = trees.overlay(lambda _, mask: mask, everywhere, masks)

    def without(leaf: Any, mask: Array) -> Any:
        # Statistics of whole rows and columns, such as Adafactor's, stay.
        return jnp.where(mask, leaf, 0) if jnp.shape(leaf) == mask.shape else leaf

    return carry._replace(
        params=masks_.apply(params=carry.params, masks=masks),
        masks=masks,
        opt_state=optax.tree_map_params(tx, without, carry.opt_state, kept),
    )


def _put(stacked: PyTree, level: int, new: PyTree) -> PyTree:
    """Arrays stacked over levels, with the row of one level replaced."""

    def put(column: Any, row: Any) -> Any:
        column = np.array(column)
        column[level] = row
        return column

    return jax.tree.map(put, stacked, new)
