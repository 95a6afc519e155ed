"""Training that is cut off and goes on: `advance` in segments, each kept when it is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from nopr.finetune.loop import Carry, History, advance, check_epochs
from nopr.typing import Batch, Params

Progress = Callable[[int, int], Any]
"""`progress(done, epochs)`, called where a run begins or goes on, and after every segment."""


@runtime_checkable
class Keeper(Protocol):
    """Where the state of a run is kept; `checkpoints.Saver` is one."""

    def save(self, step: int, tree: PyTree, /) -> Any:
        """Keeps a tree as it is now."""
        ...

    def restore(self, target: PyTree, /) -> tuple[int, PyTree] | None:
        """The newest step and tree that can be trusted, like `target`, or None."""
        ...


def resume(
    carry: Carry,
    data: Batch,
    *,
    epochs: int,
    every: int,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Carry, History]:
    """Trains for some epochs, going on from where an earlier call of the same was cut off.

    It is `advance` in segments of `every` epochs; after each, the carry and the history so far go
    to the keeper. The carry tells the position in the data, its epoch and its step, so a run is
    gone on with at a whole epoch. It ends with the same bits however often it was cut off, for the
    segments, and so the compiled programs, are the same.

    Args:
      carry: From `start`, or from earlier training; the same in every call.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      epochs: How many epochs follow `carry`, at least 1.
      every: Epochs in a segment, at least 1; the last one may be shorter. What is lost when the
        run is cut off is at most one segment, and the save that was under way.
      keeper: Keeps and gives back the state, under the number of epochs done, those before `carry`
        included. None keeps nothing.
      progress: Called with the epochs done and `epochs`.
      options: All others of `advance`: step_loss, tx, batch_size and so on.

    Returns:
      The carry after the epochs, and their whole history.

    Raises:
      ValueError: If an option is out of range, or what the keeper has is not of this run.
      FloatingPointError: If the loss or the params became NaN or infinite; names the epoch. The
        segment is not kept, so that the newest checkpoint is a good one.

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
      ...     carry, history = finetune.resume(
      ...         carry, data, epochs=6, every=2, keeper=saver, **options)
      >>> int(carry.epoch), history.loss.shape
      (6, (6,))
    """
    check_epochs(epochs)
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    first = int(carry.epoch)
    like, one = after_one(carry, data, **options)
    history = empty(one, epochs)
    found = restored(keeper, (like, history)) if keeper is not None else None
    if found is not None:
        carry, history = found[1]
    done = int(carry.epoch) - first
    if not 0 <= done <= epochs:
        raise ValueError(
            f"What was kept is of epoch {first + done}, outside this run of epochs {first} to "
            f"{first + epochs}. Keep each run in a folder of its own."
        )
    were_finite = _finite(carry.params)
    if progress is not None:
        progress(done, epochs)
    while done < epochs:
        count = min(every, epochs - done)
        carry, part = advance(carry, data, epochs=count, **options)
        _check(part, were_finite, carry.params, begin=first + done)
        history = _filled(history, part, done)
        done += count
        if keeper is not None:
            keeper.save(first + done, (carry, history))
        if progress is not None:
            progress(done, epochs)
    return carry, jax.tree.map(jnp.asarray, history)


def restored(keeper: Keeper, target: PyTree) -> tuple[int, PyTree] | None:
    """What was kept of this run.

    Raises:
      ValueError: If what was kept is of another run.
    """
    try:
        return keeper.restore(target)
    except ValueError as error:
        raise ValueError(
            f"What was kept is of another run: {error} A run goes on with the same network, data, "
            "transformation, monitor and number of epochs; keep each in a folder of its own."
        ) from error


def after_one(carry: Carry, data: Batch, **options: Any) -> tuple[Carry, History]:
    """The shapes of what an epoch gives, the carry on the devices that it is bound to now."""
    after, history = jax.eval_shape(partial(advance, epochs=1, **options), carry, data)

    def like(leaf: Any, there: Any) -> jax.ShapeDtypeStruct:
        bound = isinstance(there, jax.Array) and there.committed
        return leaf.update(sharding=there.sharding if bound else None)

    return jax.tree.map(like, after, carry), history


def empty(one: History, *lengths: int) -> History:
    """A history before its first epoch, of one size however much of it is done; on the host.

    Args:
      one: The history of one epoch, or its shapes.
      lengths: The axes that come in place of its own; the last counts epochs.
    """

    def like(leaf: Any) -> Any:
        return np.zeros((*lengths, *leaf.shape[1:]), leaf.dtype)

    finite: Any = np.array(True)
    return History(like(one.loss), jax.tree.map(like, one.metrics), finite)


def _filled(history: History, part: History, done: int) -> History:
    """A history with the epochs of a segment put in."""

    def put(column: Any, new: Any) -> Any:
        column = np.array(column)
        column[done : done + len(new)] = new
        return column

    metrics = jax.tree.map(put, history.metrics, part.metrics)
    return History(put(history.loss, part.loss), metrics, history.finite)


def _check(part: History, were_finite: list[Array], params: Params, *, begin: int) -> None:
    """Raises for a segment that must not be kept."""
    remedy = "that segment is not kept. Lower the learning rate or look at the data."
    loss = np.asarray(part.loss)
    if not part.finite:
        epoch = begin + 1 + int(np.argmin(np.isfinite(loss)))
        raise FloatingPointError(f"The loss was NaN or infinite in epoch {epoch}; {remedy}")
    if any(was and not now for was, now in zip(were_finite, _finite(params), strict=True)):
        raise FloatingPointError(
            f"The params were NaN or infinite after epoch {begin + len(loss)}; {remedy}"
        )


@jax.jit
def _finite(params: Params) -> list[Array]:
    leaves = (leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return [jnp.isfinite(leaf).all() for leaf in leaves]
