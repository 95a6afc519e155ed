"""Training procedures: `train(params, masks, data, *, key)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nopr import transforms
from nopr.finetune import loop, parallel
from nopr.finetune.batches import check_batch_size
from nopr.finetune.losses import stateless
from nopr.typing import Batch, Loss, Masks, Params, StepLoss


class Fitted(NamedTuple):
    """A trained network.

    Attributes:
      params: The params after the last epoch, exactly 0 where pruned.
      best: The params after the best epoch; the last one if nothing was monitored.
      best_epoch: Its index in the history, from 0.
      history: Losses and metrics of the epochs.
      finite: Whether the loss of every step was finite.
      state: The last state of `step_loss`.
    """

    params: Params
    best: Params
    best_epoch: Int[Array, ""]
    history: loop.History
    finite: Bool[Array, ""]
    state: PyTree


class Descended(NamedTuple):
    """Where gradient descent ended.

    Attributes:
      params: The params, exactly 0 where pruned.
      loss: Their loss.
      finite: Whether params and loss are finite; descent does not come back from NaN.
    """

    params: Params
    loss: Float[Array, ""]
    finite: Bool[Array, ""]


def trainer(
    loss: Loss | StepLoss,
    tx: transforms.Transformation,
    *,
    epochs: int,
    batch_size: int | None,
    monitor: loop.Monitor | None = None,
    best_by: str | None = None,
    stateful: bool = False,
    state: PyTree = None,
    remainder: bool = True,
    mesh: Mesh | None = None,
) -> Callable[..., Fitted]:
    """A training procedure: `train(params, masks, data, *, key) -> Fitted`.

    It jits, and vmaps over any of its arguments; with `masks=None` it trains the dense network.

    Args:
      loss: `loss(params, batch)`, or with `stateful` a `step_loss(params, state, batch, key)`.
      tx: An optax transformation; it is put under `transforms.keep`.
      epochs: Number of epochs, at least 1.
      batch_size: Examples a step; None takes all of them in their own order.
      monitor: `monitor(params) -> {name: scalar}`, run after every epoch, on validation data.
      best_by: The name of the metric that chooses the best epoch: the highest, and the first among
        equals; a NaN is never the best.
      stateful: Whether `loss` is a `step_loss`.
      state: The first state of the `step_loss`.
      remainder: Whether the examples left over make one more, smaller step.
      mesh: Splits every batch over its `batch` axis, as in `advance`; None stays on one device.
        Under `vmap`, runs that you have split over another axis of the mesh stay so.

    Returns:
      The procedure.

    Raises:
      ValueError: If an option is out of range, `best_by` is given without `monitor`, or `mesh` has
        no `batch` axis; from the procedure, if the trees do not match, `monitor` has no metric
        `best_by`, or processes of the mesh give different arguments.
    """
    if best_by is not None and monitor is None:
        raise ValueError(f"`best_by` = {best_by!r} needs a `monitor` that returns it, got None.")
    loop.check_epochs(epochs)
    check_batch_size(batch_size)
    mesh = parallel.over(mesh)
    step_loss = loss if stateful else stateless(cast(Loss, loss))

    def train(params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""]) -> Fitted:
        plan = loop.make_plan(
            data,
            step_loss=step_loss,
            tx=tx,
            monitor=monitor,
            epochs=epochs,
            batch_size=batch_size,
            remainder=remainder,
            mesh=mesh,
        )
        params, masks, data, key, first = parallel.place((params, masks, data, key, state), mesh)
        with parallel.context(mesh):
            carry = loop.start(params, masks, tx=tx, state=first, key=key)
            return _fit(carry, data, plan=plan, best_by=best_by)

    return train


def gradient_descent(
    loss: Loss,
    *,
    steps: int,
    learning_rate: float | None = None,
    tx: transforms.Transformation | None = None,
    mesh: Mesh | None = None,
) -> Callable[..., Descended]:
    """Full-batch gradient descent, lean enough for thousands of tiny networks under vmap.

    Args:
      loss: `loss(params, batch)`.
      steps: Number of steps, at least 0.
      learning_rate: Of plain gradient descent.
      tx: An optax transformation instead.
      mesh: Splits the examples over its `batch` axis, as in `advance`; None stays on one device.

    Returns:
      `train(params, masks, data, *, key=None) -> Descended`; it draws nothing from the key.

    Raises:
      ValueError: If `steps` is negative, not exactly one of `learning_rate` and `tx` is given, or
        `mesh` has no `batch` axis; from the procedure, if processes of the mesh give different
        arguments.
    """
    if steps < 0:
        raise ValueError(f"`steps` must be at least 0, got {steps}.")
    if (learning_rate is None) == (tx is None):
        raise ValueError(
            "Exactly one of `learning_rate` and `tx` must be given, "
            f"got {'neither' if tx is None else 'both'}."
        )
    mesh = parallel.over(mesh)
    rule = optax.sgd(cast(float, learning_rate)) if tx is None else tx

    def train(
        params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""] | None = None
    ) -> Descended:
        del key
        params, masks, data = parallel.place((params, masks, data), mesh)
        with parallel.context(mesh):
            return _descend(params, masks, data, loss=loss, tx=rule, steps=steps, mesh=mesh)

    return train


def raise_if_not_finite(fitted: Any) -> None:
    """Raises if training ended in NaN or infinity; call it outside jit.

    Args:
      fitted: Anything with `.finite`, of one run or stacked over runs.

    Raises:
      FloatingPointError: Listing the indices of the runs that failed.
    """
    finite = np.asarray(fitted.finite)
    if finite.all():
        return
    remedy = "Lower the learning rate or look at the data."
    if finite.ndim == 0:
        raise FloatingPointError(f"The loss of the run was NaN or infinite. {remedy}")
    failed = [index if finite.ndim > 1 else index[0] for index in np.argwhere(~finite).tolist()]
    more = f" and {len(failed) - 20} more" if len(failed) > 20 else ""
    listed = ", ".join(str(index) for index in failed[:20])
    raise FloatingPointError(
        f"The loss was NaN or infinite in {len(failed)} of {finite.size} runs: {listed}{more}. "
        f"{remedy}"
    )


class _Best(NamedTuple):
    value: Array
    params: Params
    epoch: Array


@partial(jax.jit, static_argnames=("plan", "best_by"))
def _fit(carry: loop.Carry, data: Batch, *, plan: loop.Plan, best_by: str | None) -> Fitted:
    def body(pair: tuple[loop.Carry, _Best], index: Array) -> tuple[Any, loop.Epoch]:
        carry, best = pair
        carry, epoch = loop.run_epoch(carry, data, plan)
        if best_by is not None:
            best = _better(best, _Best(_metric(epoch, best_by), carry.params, index))
        return (carry, best), epoch

    indices = jnp.arange(plan.epochs, dtype=jnp.int32)
    first = _Best(jnp.full((), -jnp.inf, jnp.float32), carry.params, indices[0])
    (carry, best), epochs = jax.lax.scan(body, (carry, first), indices)
    if best_by is None:
        best = best._replace(params=carry.params, epoch=indices[-1])
    history = loop.history_of(epochs)
    fitted = Fitted(carry.params, best.params, best.epoch, history, history.finite, carry.state)
    return parallel.whole(fitted, plan.mesh)


def _better(best: _Best, candidate: _Best) -> _Best:
    wins = (candidate.value > best.value) | (candidate.epoch == 0)
    return jax.tree.map(lambda new, old: jnp.where(wins, new, old), candidate, best)


def _metric(epoch: loop.Epoch, name: str) -> Float[Array, ""]:
    if name not in epoch.metrics:
        raise ValueError(
            f"`best_by` must name a metric of `monitor`, one of {sorted(epoch.metrics)}, "
            f"got {name!r}."
        )
    value = jnp.asarray(epoch.metrics[name], jnp.float32)
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


@partial(jax.jit, static_argnames=("loss", "tx", "steps", "mesh"))
def _descend(
    params: Params,
    masks: Masks | None,
    data: Batch,
    *,
    loss: Loss,
    tx: transforms.Transformation,
    steps: int,
    mesh: Mesh | None,
) -> Descended:
    params = loop.masked(params, masks)
    descent = jax.value_and_grad(loss)
    data = parallel.split(data, mesh, lambda data: descent(params, data))
    tx = transforms.keep(tx, masks)

    def body(carry: tuple[Params, PyTree], _: None) -> tuple[tuple[Params, PyTree], None]:
        params, opt_state = carry
        value, gradients = descent(params, data)
        updates, opt_state = tx.update(gradients, opt_state, params, value=value)
        return parallel.whole((optax.apply_updates(params, updates), opt_state), mesh), None

    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=steps)
    value = loss(params, data)
    flags = [jnp.isfinite(leaf).all() for leaf in (value, *jax.tree.leaves(params))]
    return parallel.whole(Descended(params, value, jnp.stack(flags).all()), mesh)
