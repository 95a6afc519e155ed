"""The loop: steps in epochs in one compiled program, from one carry to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nopr import transforms, trees
from nopr.finetune import parallel
from nopr.finetune.batches import check_batch_size, examples_in, take
from nopr.typing import Batch, Masks, Params, StepLoss

Monitor = Callable[[Params], Mapping[str, Array]]
"""`monitor(params) -> {name: scalar}`, run after every epoch."""


class Carry(NamedTuple):
    """Everything that training needs to go on; a pytree that can be saved.

    Attributes:
      params: The params, exactly 0 where pruned.
      masks: The masks, or None for a dense network.
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
    """What happened, epoch by epoch.

    Attributes:
      loss: Mean training loss over the examples of each epoch, as met during it.
      metrics: What `monitor` returned after each epoch, by name.
      finite: Whether the loss of every step was finite.
    """

    loss: Float[Array, " epochs"]
    metrics: dict[str, Array]
    finite: Bool[Array, ""]


def start(
    params: Params,
    masks: Masks | None,
    *,
    tx: transforms.Transformation,
    state: PyTree = None,
    key: Key[Array, ""],
) -> Carry:
    """The carry before the first step, with the pruned weights set to 0.

    Args:
      params: The initial params.
      masks: Masks of the params; None trains them all.
      tx: An optax transformation; it is put under `transforms.keep`.
      state: The first state of `step_loss`, if it has one.
      key: Decides the order of the batches and every draw of `step_loss`.

    Returns:
      The carry, for `advance`.

    Raises:
      ValueError: If `masks` do not match `params`.
    """
    params = masked(params, masks)
    opt_state = transforms.keep(tx, masks).init(params)
    zero = jnp.zeros((), jnp.int32)
    return Carry(params, masks, opt_state, state, zero, zero, key)


def advance(
    carry: Carry,
    data: Batch,
    *,
    step_loss: StepLoss,
    tx: transforms.Transformation,
    epochs: int,
    batch_size: int | None,
    monitor: Monitor | None = None,
    remainder: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Carry, History]:
    """Trains for some epochs, as one compiled program.

    Each epoch visits every example once, in an order drawn from `fold_in(carry.key, epoch)`, so two
    calls of one epoch end where one call of two does.

    With a `mesh` the examples of each batch are split over its `batch` axis, and the run is that of
    one device but for rounding: losses, gradients, batch statistics and noise are those of the
    whole batch, also where the devices do not divide it (a size that they divide is the fastest).
    Params, masks and the states of `tx` and `step_loss` are whole on every device, and so are the
    data: a device needs memory for all of them, and for its share of a batch's activations. Data
    that you have put on the mesh yourself stay as they lie; split over `batch` they take their
    share of memory only, at no cost for `batch_size=None`, while smaller batches, drawn from all of
    the data, then go through the interconnect. Further axes, such as `runs`, hold copies. Where the
    mesh spans processes, all of them make the call, with the same arguments.

    Args:
      carry: From `start` or from an earlier call.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      step_loss: `step_loss(params, state, batch, key) -> (loss, state)`; see `stateless`.
      tx: The transformation that was given to `start`.
      epochs: Number of epochs, at least 1.
      batch_size: Examples a step; None takes all of them in their own order.
      monitor: `monitor(params) -> {name: scalar}`, run after every epoch.
      remainder: Whether the examples that are left when the batch size does not divide their number
        make one more, smaller step.
      mesh: Splits every batch over its `batch` axis; None stays on one device.

    Returns:
      The carry after the epochs, and their history, whole on every device of the mesh.

    Raises:
      ValueError: If an option is out of range, the leaves of `data` differ in length, `mesh` has no
        `batch` axis, or processes of the mesh give different arguments.
    """
    mesh = parallel.over(mesh)
    plan = make_plan(
        data,
        step_loss=step_loss,
        tx=tx,
        monitor=monitor,
        epochs=epochs,
        batch_size=batch_size,
        remainder=remainder,
        mesh=mesh,
    )
    carry, data = parallel.place((carry, data), mesh)
    with parallel.context(mesh):
        return _advance(carry, data, plan=plan)


class Plan(NamedTuple):
    """What is fixed when a run is compiled; its functions are told apart by identity."""

    step_loss: StepLoss
    tx: transforms.Transformation
    monitor: Monitor | None
    examples: int
    epochs: int
    batch_size: int | None
    remainder: bool
    mesh: Mesh | None


class Epoch(NamedTuple):
    """What one epoch leaves behind: its mean loss, its metrics, whether every loss was finite."""

    loss: Array
    metrics: dict[str, Array]
    finite: Array


def make_plan(data: Batch, **options: Any) -> Plan:
    """Checks the options against the data."""
    plan = Plan(examples=examples_in(data), **options)
    check_epochs(plan.epochs)
    check_batch_size(plan.batch_size)
    if plan.batch_size is not None and plan.batch_size > plan.examples and not plan.remainder:
        raise ValueError(
            f"`batch_size` must be at most the {plan.examples} examples without `remainder`, "
            f"got {plan.batch_size}."
        )
    return plan


def check_epochs(epochs: int) -> None:
    """Checks that there is an epoch to run."""
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1, got {epochs}.")


def history_of(epochs: Epoch) -> History:
    """The history of a run from its stacked epochs."""
    return History(epochs.loss, epochs.metrics, jnp.all(epochs.finite))


def run_epoch(carry: Carry, data: Batch, plan: Plan) -> tuple[Carry, Epoch]:
    """One pass over the data, and what the monitor then says."""
    order_key, noise_key = jax.random.split(jax.random.fold_in(carry.key, carry.epoch))
    if plan.batch_size is None:
        carry, losses = _step(carry, data, noise_key, jnp.zeros((), jnp.int32), plan)
        loss, finite = losses, jnp.isfinite(losses)
    else:
        order = jax.random.permutation(order_key, plan.examples)
        carry, loss, finite = _run_batches(carry, data, order, noise_key, plan)
    metrics = dict(plan.monitor(carry.params)) if plan.monitor else {}
    return carry._replace(epoch=carry.epoch + 1), Epoch(loss, metrics, finite)


def masked(params: Params, masks: Masks | None) -> Params:
    """The params with exact zeros where pruned, whatever stood there before."""
    if masks is None:
        return params
    return trees.overlay(lambda w, kept: jnp.where(kept, w, jnp.zeros_like(w)), params, masks)


@partial(jax.jit, static_argnames="plan")
def _advance(carry: Carry, data: Batch, *, plan: Plan) -> tuple[Carry, History]:
    carry, epochs = jax.lax.scan(
        lambda carry, _: run_epoch(carry, data, plan), carry, length=plan.epochs
    )
    return parallel.whole((carry, history_of(epochs)), plan.mesh)


def _run_batches(
    carry: Carry, data: Batch, order: Array, noise_key: Key[Array, ""], plan: Plan
) -> tuple[Carry, Array, Array]:
    size = plan.batch_size or plan.examples
    full = plan.examples // size
    rows, left = order[: full * size].reshape(full, size), order[full * size :]

    def body(carry: Carry, batch: tuple[Array, Array]) -> tuple[Carry, Array]:
        index, rows = batch
        rows = parallel.whole(rows, plan.mesh)  # each device gathers its share from all of the data
        return _step(carry, take(data, rows), noise_key, index, plan)

    carry, losses = jax.lax.scan(body, carry, (jnp.arange(full, dtype=jnp.int32), rows))
    weights = jnp.full(full, size)
    if plan.remainder and left.size:
        carry, loss = body(carry, (jnp.asarray(full, jnp.int32), left))
        losses, weights = jnp.append(losses, loss), jnp.append(weights, left.size)
    mean = jnp.sum(weights * losses) / jnp.sum(weights)
    return carry, mean, jnp.isfinite(losses).all()


def _step(
    carry: Carry, batch: Batch, noise_key: Key[Array, ""], index: Int[Array, ""], plan: Plan
) -> tuple[Carry, Array]:
    key = jax.random.fold_in(noise_key, index)
    descent = jax.value_and_grad(plan.step_loss, has_aux=True)

    def program(batch: Batch) -> Any:
        return descent(carry.params, carry.state, batch, key)

    (loss, state), gradients = program(parallel.split(batch, plan.mesh, program))
    tx = transforms.keep(plan.tx, carry.masks)
    updates, opt_state = tx.update(gradients, carry.opt_state, carry.params, value=loss)
    params = optax.apply_updates(carry.params, updates)
    carry = carry._replace(params=params, opt_state=opt_state, state=state, step=carry.step + 1)
    return parallel.whole(carry, plan.mesh), loss
