"""What training carries from step to step, and the one record that every procedure returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nopr.typing import Masks, Params, shown

REMEDY = "Lower the learning rate or check the data."


class Carry(NamedTuple):
    """Everything that training needs to continue; a pytree that can be saved.

    Attributes:
      params: The params, exactly 0 where pruned.
      masks: The current masks, or None for a dense network.
      opt_state: The state of the optax transformation.
      state: What `step_loss` carries from step to step, such as batch statistics.
      epoch: Epochs done.
      step: Steps done.
      key: The key of the whole run; the batches of epoch e are drawn from `fold_in(key, e)`.
    """

    params: Params
    masks: Masks | None
    opt_state: optax.OptState
    state: PyTree
    epoch: Int[Array, ""]
    step: Int[Array, ""]
    key: Key[Array, ""]


class History(NamedTuple):
    """Losses and metrics by epoch; in `gradient_descent`, each step is an epoch.

    Attributes:
      loss: Mean training loss over the examples of each epoch, before the update of each step.
      metrics: What `monitor` returned after each epoch, by name.
    """

    loss: Float[Array, " epochs"]
    metrics: dict[str, Array]


class Fitted(NamedTuple):
    """A trained network; every training procedure returns this record.

    The first seven fields are those of `Carry`, and `carry` is that part of the record: `advance`
    and `resume` continue from it, to the bit. Under `jit`, fields that the caller does not return
    cost nothing.

    Attributes:
      params: The params after the last step, exactly 0 where pruned.
      masks: Their masks: those given or, if training changes them, the last ones.
      opt_state: The state of the optax transformation.
      state: The last state of `step_loss`.
      epoch: Epochs done, including those before this call.
      step: Steps done, likewise.
      key: The key of the whole run.
      history: Losses and metrics of the epochs of this call.
      finite: Whether every loss was finite, and every array of the params that was finite at the
        start still is; see `raise_if_not_finite`.
      best_params: The params after the best epoch; None without `best_by`.
      best_masks: The masks after the best epoch.
      best_state: The state of `step_loss` after the best epoch, for use with `best_params`.
      best_epoch: Index of the best epoch in the history, from 0.
    """

    params: Params
    masks: Masks | None
    opt_state: optax.OptState
    state: PyTree
    epoch: Int[Array, ""]
    step: Int[Array, ""]
    key: Key[Array, ""]
    history: History
    finite: Bool[Array, ""]
    best_params: Params | None = None
    best_masks: Masks | None = None
    best_state: PyTree = None
    best_epoch: Int[Array, ""] | None = None

    @property
    def carry(self) -> Carry:
        """What `advance` and `resume` continue from."""
        return Carry(**{name: getattr(self, name) for name in Carry._fields})


def raise_if_not_finite(fitted: Any, *, runs: str = "runs", remedy: str = REMEDY) -> None:
    """Raises if training gave NaN or infinity; call it outside `jit`.

    Args:
      fitted: Record of one run or stacked over runs, or any object with `finite`.
      runs: Plural noun for what is stacked, such as `"seeds"`.
      remedy: Last sentence of the message.

    Raises:
      FloatingPointError: If it did; the message has the epoch of a single run, or the indices of
        the runs that failed.
    """
    if not hasattr(fitted, "finite"):
        raise ValueError(f"`fitted` must be a record with `finite`, got {shown(fitted)}.")
    finite = np.asarray(fitted.finite)
    if finite.all():
        return
    if finite.ndim == 0:
        raise FloatingPointError(f"{_breakdown(fitted)}. {remedy}")
    failed = [index if finite.ndim > 1 else index[0] for index in np.argwhere(~finite).tolist()]
    more = f" and {len(failed) - 20} more" if len(failed) > 20 else ""
    listed = ", ".join(str(index) for index in failed[:20])
    raise FloatingPointError(
        f"Training gave NaN or infinity in {len(failed)} of {finite.size} {runs}: "
        f"{listed}{more}. {remedy}"
    )


def are_finite(tree: PyTree) -> list[Bool[Array, ""]]:
    """Whether each floating or complex array is finite throughout."""
    leaves = (jnp.asarray(leaf) for leaf in jax.tree.leaves(tree))
    return [jnp.isfinite(leaf).all() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of a tree is finite."""
    flags = are_finite(tree)
    return jnp.stack(flags).all() if flags else jnp.array(True)


def stayed_finite(before: Params, after: Params) -> Bool[Array, ""]:
    """Whether every array that was finite still is; constants such as minus infinity may stay."""
    flags = [now | ~was for was, now in zip(are_finite(before), are_finite(after), strict=True)]
    return jnp.stack(flags).all() if flags else jnp.array(True)


def _breakdown(fitted: Any) -> str:
    history = getattr(fitted, "history", None)
    if history is None:
        return "Training gave NaN or infinity"
    last = int(fitted.epoch)
    good = np.isfinite(np.asarray(history.loss))
    if good.all():
        return f"The params were NaN or infinite after epoch {last}"
    return f"The loss was NaN or infinite in epoch {last - len(good) + 1 + int(good.argmin())}"
