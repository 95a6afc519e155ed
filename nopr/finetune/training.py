"""Training procedures: `train(params, masks, data, *, key)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from nopr import transforms, trees
from nopr.budgets import MOST
from nopr.convolutions import Implementation, computed, resolve
from nopr.finetune import loop, parallel
from nopr.finetune.batches import examples_in
from nopr.finetune.fitted import Carry, Fitted, History, stayed_finite
from nopr.finetune.losses import stateless
from nopr.typing import (
    Batch,
    Loss,
    Masks,
    Params,
    StepLoss,
    check_flags,
    check_form,
    check_key,
    check_loss,
    check_loss_value,
    whole_number,
)


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
    read_masks: loop.ReadMasks | None = None,
    convolutions: Implementation = "auto",
) -> Callable[..., Fitted]:
    """A training procedure: `train(params, masks, data, *, key) -> Fitted`.

    It jits, and vmaps over any of its arguments; with `masks=None` it trains the dense network.

    Args:
      loss: `loss(params, batch)`, or with `stateful` a `step_loss(params, state, batch, key)`.
      tx: An optax transformation, wrapped here in `transforms.keep`.
      epochs: Number of epochs, at least 1.
      batch_size: Examples per step; None takes all of them in their own order.
      monitor: `monitor(params) -> {name: scalar}`, run after every epoch, on validation data; with
        `stateful` it is called as `monitor(params, state)`.
      best_by: Name of the metric that determines the best epoch, the first with the highest value;
        NaN is never the best.
      stateful: Whether `loss` is a `step_loss`, which carries a state.
      state: The initial state of the `step_loss`.
      remainder: Whether leftover examples form one more, smaller step.
      mesh: The mesh over whose `batch` axis every batch is split, as in `advance`; None stays on
        one device. Under `vmap`, runs that you have split over another axis stay split.
      read_masks: `read_masks(opt_state) -> masks`, for a `tx` that changes the masks; see
        `advance`. The procedure is then called with `masks=None`.
      convolutions: How convolutions of `loss` are computed; see `convolutions.resolve`.

    Returns:
      The procedure.

    Raises:
      ValueError: If an option is out of range, `best_by` is given without `monitor`, or `mesh` has
        no `batch` axis; from the procedure, if the trees do not match, `monitor` has no metric
        `best_by`, or processes of the mesh give different arguments.
    """
    if best_by is not None and monitor is None:
        raise ValueError(f"`best_by` = {best_by!r} needs a `monitor` that returns it, got None.")
    check_flags(stateful=stateful, remainder=remainder)
    whole_number("epochs", epochs)
    if batch_size is not None:
        whole_number("batch_size", batch_size)
    resolve(convolutions, mesh=parallel.over(mesh))
    if stateful:
        remedy = "A plain `loss(params, batch)` needs `stateful=False`."
        check_form(loss, "(params, state, batch, key)", name="loss", remedy=remedy)
    else:
        remedy = "A `step_loss(params, state, batch, key)` needs `stateful=True`."
        check_form(loss, "(params, batch)", name="loss", remedy=remedy)
    if state is not None and not stateful:
        raise ValueError(
            f"`state` needs a `step_loss` that carries it, got {type(state).__name__} with "
            "`stateful=False`. Give `stateful=True`."
        )
    step_loss = cast(StepLoss, loss) if stateful else stateless(cast(Loss, loss))

    def train(params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""]) -> Fitted:
        check_key(key)
        plan = loop.make_plan(
            data,
            step_loss=step_loss,
            tx=tx,
            epochs=epochs,
            batch_size=batch_size,
            monitor=monitor,
            stateful=stateful,
            remainder=remainder,
            mesh=mesh,
            read_masks=read_masks,
            convolutions=convolutions,
            best_by=best_by,
        )
        loop.check_trees(params, masks)
        params, masks, key, first = parallel.place((params, masks, key, state), plan.mesh)
        with parallel.context(plan.mesh):
            carry = loop.start(params, masks, tx=tx, state=first, read_masks=read_masks, key=key)
        return loop.run(carry, data, plan)

    return train


def gradient_descent(
    loss: Loss,
    *,
    steps: int,
    learning_rate: float | None = None,
    tx: transforms.Transformation | None = None,
    mesh: Mesh | None = None,
    convolutions: Implementation = "auto",
) -> Callable[..., Fitted]:
    """Full-batch gradient descent, lean enough for thousands of tiny networks under vmap.

    Args:
      loss: `loss(params, batch)`.
      steps: Number of steps, at least 0; each is an epoch of the record.
      learning_rate: Learning rate of plain gradient descent.
      tx: An optax transformation, in place of `learning_rate`.
      mesh: The mesh over whose `batch` axis the examples are split, as in `advance`; None stays on
        one device.
      convolutions: How convolutions of `loss` are computed; see `convolutions.resolve`.

    Returns:
      `train(params, masks, data, *, key=None) -> Fitted`. It draws nothing from the key, which only
      goes into the record; None stands for `jax.random.key(0)`.

    Raises:
      ValueError: If `steps` is negative, not exactly one of `learning_rate` and `tx` is given, or
        `mesh` has no `batch` axis; from the procedure, if processes of the mesh give different
        arguments.
    """
    steps = whole_number("steps", steps, least=0, most=MOST)
    if (learning_rate is None) == (tx is None):
        raise ValueError(
            "Exactly one of `learning_rate` and `tx` must be given, "
            f"got {'neither' if tx is None else 'both'}."
        )
    check_loss(loss)
    mesh = parallel.over(mesh)
    chosen = resolve(convolutions, mesh=mesh)
    rule = optax.sgd(cast(float, learning_rate)) if tx is None else tx

    def train(
        params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""] | None = None
    ) -> Fitted:
        key = jax.random.key(0) if key is None else key
        trees.by_path(data, "data")
        loop.check_trees(params, masks)
        if mesh is not None:
            examples_in(data)
        params, masks, data, key = parallel.place((params, masks, data, key), mesh)
        with parallel.context(mesh):
            carry = loop.start(params, masks, tx=rule, key=key)
            return _descend(
                carry, data, loss=loss, tx=rule, steps=steps, mesh=mesh, convolutions=chosen
            )

    return train


@partial(jax.jit, static_argnames=("loss", "tx", "steps", "mesh", "convolutions"))
def _descend(
    first: Carry,
    data: Batch,
    *,
    loss: Loss,
    tx: transforms.Transformation,
    steps: int,
    mesh: Mesh | None,
    convolutions: Implementation,
) -> Fitted:
    descent = jax.value_and_grad(
        computed(lambda *args: check_loss_value(loss(*args)), convolutions)
    )
    data = parallel.split(data, mesh, lambda data: descent(first.params, data))
    tx = transforms.keep(tx, first.masks)

    def body(carry: tuple[Params, PyTree], _: None) -> tuple[tuple[Params, PyTree], Array]:
        params, opt_state = carry
        value, gradients = descent(params, data)
        updates, opt_state = tx.update(gradients, opt_state, params, value=value)
        return parallel.whole((optax.apply_updates(params, updates), opt_state), mesh), value

    start = first.params, first.opt_state
    (params, opt_state), losses = jax.lax.scan(body, start, length=steps)
    done = jnp.full((), steps, jnp.int32)
    carry = first._replace(params=params, opt_state=opt_state, epoch=done, step=done)
    finite = jnp.isfinite(losses).all() & stayed_finite(first.params, params)
    history = History(losses, {})
    return parallel.whole(Fitted(**carry._asdict(), history=history, finite=finite), mesh)
