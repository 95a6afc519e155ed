"""Training that resumes after an interruption: `advance` in segments, each saved when done."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from nopr import transforms
from nopr.convolutions import Implementation
from nopr.finetune import loop
from nopr.finetune.fitted import REMEDY, Carry, Fitted, History, raise_if_not_finite
from nopr.typing import Batch, Progress, Status, StepLoss, shown, whole_number


@runtime_checkable
class Keeper(Protocol):
    """Saves and restores the state of a run; `checkpoints.Saver` is one."""

    def save(self, step: int, tree: PyTree, /) -> Any:
        """Saves a tree as it is now."""
        ...

    def restore(self, target: PyTree, /) -> tuple[int, PyTree] | None:
        """The newest step with an intact tree, and that tree, like `target`; None if none."""
        ...


def resume(
    carry: Carry,
    data: Batch,
    *,
    step_loss: StepLoss,
    tx: transforms.Transformation,
    epochs: int,
    every: int,
    batch_size: int | None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    monitor: loop.Monitor | None = None,
    remainder: bool = True,
    mesh: Mesh | None = None,
    read_masks: loop.ReadMasks | None = None,
    convolutions: Implementation = "auto",
) -> Fitted:
    """Trains for some epochs, resuming where an earlier call with the same arguments stopped.

    It is `advance` in segments of `every` epochs; after each, the keeper saves the carry and the
    history so far. The carry includes the position in the data, by epoch and step. The run ends
    with the same bits however often it was interrupted, since the segments, and so the compiled
    programs, are the same.

    Args:
      carry: From `start`, or from earlier training; the same in every call.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      step_loss: `step_loss(params, state, batch, key) -> (loss, state)`; see `advance`.
      tx: The transformation that was given to `start`.
      epochs: Number of epochs after `carry`, at least 1.
      every: Epochs per segment, at least 1; the last segment may be shorter. An interrupted run
        loses at most one segment, and the save that was under way.
      batch_size: Examples per step; None takes all of them in their own order.
      keeper: Saves and restores the state, under the number of epochs done, including those before
        `carry`. None saves nothing.
      progress: Function of a `Status` in epochs, called when a run starts or resumes, and after
        every segment.
      monitor: `monitor(params) -> {name: scalar}`, or `monitor(params, state)` if `carry.state`
        is not None; run after every epoch.
      remainder: Whether leftover examples form one more, smaller step.
      mesh: The mesh over whose `batch` axis every batch is split; None stays on one device.
      read_masks: `read_masks(opt_state) -> masks`, for a `tx` that changes the masks.
      convolutions: How convolutions of `step_loss` are computed; see `convolutions.resolve`.

    Returns:
      The record of all the epochs.

    Raises:
      ValueError: If an option is out of range, or the keeper's state belongs to another run.
      FloatingPointError: If the loss or the params became NaN or infinite; the message has the
        epoch. The segment is not saved, so that the newest checkpoint is a good one.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from nopr import finetune
      >>> from nopr.lab import checkpoints
      >>> loss = finetune.squared_error(lambda params, inputs: inputs @ params["w"])
      >>> options = {"step_loss": finetune.stateless(loss), "tx": optax.sgd(0.1), "batch_size": 2}
      >>> data = jnp.eye(4), jnp.ones((4, 1))
      >>> carry = finetune.start({"w": jnp.zeros((4, 1))}, None, tx=options["tx"],
      ...                        key=jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder, checkpoints.Saver(folder) as saver:
      ...     fitted = finetune.resume(carry, data, epochs=6, every=2, keeper=saver, **options)
      >>> int(fitted.epoch), fitted.history.loss.shape
      (6, (6,))
    """
    loop.check_carry(carry)
    plan = loop.make_plan(
        data,
        step_loss=step_loss,
        tx=tx,
        epochs=epochs,
        batch_size=batch_size,
        monitor=monitor,
        stateful=carry.state is not None,
        remainder=remainder,
        mesh=mesh,
        read_masks=read_masks,
        convolutions=convolutions,
    )
    return run_in_segments(
        carry, data, plan, every=whole_number("every", every), keeper=keeper, progress=progress
    )


def run_in_segments(
    carry: Carry,
    data: Batch,
    plan: loop.Plan,
    *,
    every: int,
    keeper: Keeper | None,
    progress: Progress | None,
) -> Fitted:
    """Runs the epochs of a plan as `resume` does."""
    first, epochs = int(carry.epoch), plan.epochs
    like, one = after_one(carry, data, plan)
    history = empty(one, epochs)
    found = restored(keeper, (like, history)) if keeper is not None else None
    if found is not None:
        carry, history = found[1]
    done = int(carry.epoch) - first
    if not 0 <= done <= epochs:
        raise ValueError(
            f"The saved state is of epoch {first + done}, outside this run of epochs {first} to "
            f"{first + epochs}. Give each run a folder of its own."
        )
    loaded, started = done, time.monotonic()

    def report() -> None:
        if progress is not None:
            spent = time.monotonic() - started
            progress(Status(done, epochs, loaded=loaded, seconds=spent))

    report()
    while done < epochs:
        part = loop.run(carry, data, plan._replace(epochs=min(every, epochs - done)))
        raise_if_not_finite(part, remedy=f"That segment is not saved. {REMEDY}")
        carry, history = part.carry, _filled(history, part.history, done)
        done = int(carry.epoch) - first
        if keeper is not None:
            keeper.save(first + done, (carry, history))
        report()
    history = jax.tree.map(jnp.asarray, history)
    return Fitted(**carry._asdict(), history=history, finite=jnp.array(True))


def restored(keeper: Keeper, target: PyTree) -> tuple[int, PyTree] | None:
    """The saved step and state of this run, if any.

    Raises:
      ValueError: If the saved state belongs to another run.
    """
    if not isinstance(keeper, Keeper):
        raise ValueError(
            f"`keeper` must have `save` and `restore`, as `checkpoints.Saver` has, got "
            f"{shown(keeper)}."
        )
    try:
        return keeper.restore(target)
    except ValueError as error:
        raise ValueError(
            f"The saved state belongs to another run: {error} A run resumes with the same network, "
            "data, transformation, monitor and number of epochs; give each a folder of its own."
        ) from error


def after_one(carry: Carry, data: Batch, plan: loop.Plan) -> tuple[Carry, History]:
    """The shapes of carry and history after an epoch; the carry stays committed to its devices."""
    after = jax.eval_shape(partial(loop.run, plan=plan._replace(epochs=1)), carry, data)

    def like(leaf: Any, there: Any) -> jax.ShapeDtypeStruct:
        bound = isinstance(there, jax.Array) and there.committed
        return leaf.update(sharding=there.sharding if bound else None)

    return jax.tree.map(like, after.carry, carry), after.history


def empty(one: History, *lengths: int) -> History:
    """A history before its first epoch, at its full length; on the host.

    Args:
      one: The history of one epoch, or its shapes.
      lengths: Lengths of the axes that replace its own; the last one counts epochs.
    """
    return jax.tree.map(lambda leaf: np.zeros((*lengths, *leaf.shape[1:]), leaf.dtype), one)


def _filled(history: History, part: History, done: int) -> History:
    """A history with the epochs of a segment inserted."""

    def put(column: Any, new: Any) -> Any:
        column = np.array(column)
        column[done : done + len(new)] = new
        return column

    return jax.tree.map(put, history, part)
