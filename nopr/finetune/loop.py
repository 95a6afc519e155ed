"""The training loop: epochs of steps in one compiled program, from one carry to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from nopr import masks as masks_
from nopr import transforms, trees
from nopr.budgets import MOST
from nopr.convolutions import Implementation, computed, resolve
from nopr.finetune import parallel
from nopr.finetune.batches import examples_in, take
from nopr.finetune.fitted import Carry, Fitted, History, stayed_finite
from nopr.typing import (
    Batch,
    Masks,
    Params,
    StepLoss,
    check_flags,
    check_form,
    check_key,
    check_loss_value,
    shown,
    whole_number,
)

Monitor = Callable[..., Mapping[str, Array]]
"""`monitor(params) -> {name: scalar}`, or `monitor(params, state)` if training has a state."""

ReadMasks = Callable[[optax.OptState], Masks]
"""`read_masks(opt_state) -> masks`, for a transformation whose state holds the masks."""


def start(
    params: Params,
    masks: Masks | None,
    *,
    tx: transforms.Transformation,
    state: PyTree = None,
    read_masks: ReadMasks | None = None,
    key: Key[Array, ""],
) -> Carry:
    """The carry before the first step, with the pruned weights set to 0.

    Args:
      params: The initial params.
      masks: Masks of the params; None trains all weights.
      tx: An optax transformation, wrapped here in `transforms.keep`.
      state: The initial state of `step_loss`, if it has one.
      read_masks: `read_masks(opt_state) -> masks`, for a `tx` that changes the masks; see
        `advance`.
      key: Typed key for the order of the batches and the draws of `step_loss`.

    Returns:
      The carry, for `advance`.

    Raises:
      ValueError: If `masks` do not match `params`, or are given together with `read_masks`.
    """
    check_key(key)
    params = masked(params, masks)
    trees.check_floating(params)
    opt_state = transforms.keep(tx, masks).init(params)
    if read_masks is not None:
        if masks is not None:
            raise ValueError(
                "`masks` must be None with `read_masks`, got a tree. Give the first masks to `tx`, "
                "whose state holds them."
            )
        masks = read_masks(opt_state)
        params = masked(params, masks)
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
    read_masks: ReadMasks | None = None,
    convolutions: Implementation = "auto",
) -> Fitted:
    """Trains for some epochs, as one compiled program.

    Each epoch visits every example once, in an order drawn from `fold_in(carry.key, epoch)`, so two
    calls of one epoch end where one call of two does.

    With a `mesh`, the examples of each batch are split over its `batch` axis, and the results are
    those of one device up to rounding: losses, gradients, batch statistics and noise are those of
    the whole batch, even if the devices do not divide it (a size that they divide is fastest).
    Params, masks, the states of `tx` and `step_loss`, and the data are replicated on every device,
    which needs memory for all of them and for its share of a batch's activations. Data that you
    have placed on the mesh yourself keep their layout: split over `batch`, they take only their
    share of memory, at no cost for `batch_size=None`; smaller batches are drawn from all of the
    data, and then cross the interconnect. Further axes, such as `runs`, hold copies. If the mesh
    spans processes, all of them must make the call, with the same arguments.

    Args:
      carry: From `start`, or the `carry` of an earlier record.
      data: A pytree whose leaves share a leading example axis, such as `(inputs, labels)`.
      step_loss: `step_loss(params, state, batch, key) -> (loss, state)`; see `stateless`.
      tx: The transformation that was given to `start`.
      epochs: Number of epochs, at least 1.
      batch_size: Examples per step; None takes all of them in their own order.
      monitor: `monitor(params) -> {name: scalar}`, or `monitor(params, state)` if `carry.state`
        is not None; run after every epoch.
      remainder: Whether leftover examples form one more, smaller step.
      mesh: The mesh over whose `batch` axis every batch is split; None stays on one device.
      read_masks: `read_masks(opt_state) -> masks`, for a `tx` that changes the masks and keeps
        pruned weights at 0 itself; the record then has the masks read after the last step.
      convolutions: How convolutions of `step_loss` are computed; see `convolutions.resolve`.

    Returns:
      The record of these epochs, replicated on every device of the mesh.

    Raises:
      ValueError: If an option is out of range, the leaves of `data` differ in length, `mesh` has no
        `batch` axis, or processes of the mesh give different arguments.
    """
    check_carry(carry)
    plan = make_plan(
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
    return run(carry, data, plan)


def check_carry(carry: Carry) -> None:
    """Checks what training continues from.

    Raises:
      ValueError: If it is no carry, its key is no key, or its masks do not match its params.
    """
    if not isinstance(carry, Carry):
        raise ValueError(
            f"`carry` must be a Carry, got {shown(carry)}. Make one with `finetune.start`, or take "
            "the `carry` of a record."
        )
    check_key(carry.key)
    if carry.masks is not None:
        masks_.check_bool(carry.masks)


class Plan(NamedTuple):
    """The static part of a run; its functions are compared by identity."""

    step_loss: StepLoss
    tx: transforms.Transformation
    epochs: int
    batch_size: int | None
    monitor: Monitor | None
    stateful: bool  # whether the monitor gets the state
    remainder: bool
    mesh: Mesh | None
    read_masks: ReadMasks | None
    convolutions: Implementation
    best_by: str | None
    examples: int


def make_plan(
    data: Batch,
    *,
    step_loss: StepLoss,
    tx: transforms.Transformation,
    epochs: int,
    batch_size: int | None,
    monitor: Monitor | None,
    stateful: bool,
    remainder: bool,
    mesh: Mesh | None,
    read_masks: ReadMasks | None,
    convolutions: Implementation,
    best_by: str | None = None,
) -> Plan:
    """Checks the options against the data and collects them."""
    form, remedy = "(params, state, batch, key)", "Make one of a loss: `finetune.stateless(loss)`."
    check_form(step_loss, form, name="step_loss", remedy=remedy)
    transforms.check(tx)
    check_flags(remainder=remainder)
    for name, function in (("monitor", monitor), ("read_masks", read_masks)):
        if function is not None and not callable(function):
            raise ValueError(f"`{name}` must be a function, got {shown(function)}.")
    examples = examples_in(data)
    epochs = whole_number("epochs", epochs, most=MOST)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, most=MOST)
        if batch_size > examples and not remainder:
            raise ValueError(
                f"`batch_size` must be at most the {examples} examples without `remainder`, "
                f"got {batch_size}."
            )
    return Plan(
        step_loss=step_loss,
        tx=tx,
        epochs=epochs,
        batch_size=batch_size,
        monitor=monitor,
        stateful=stateful,
        remainder=remainder,
        mesh=parallel.over(mesh),
        read_masks=read_masks,
        convolutions=resolve(convolutions, mesh=mesh),
        best_by=best_by,
        examples=examples,
    )


def run(carry: Carry, data: Batch, plan: Plan) -> Fitted:
    """Runs the epochs of a plan, from a carry to a record."""
    carry, data = parallel.place((carry, data), plan.mesh)
    with parallel.context(plan.mesh):
        return _run(carry, data, plan=plan)


def check_trees(params: Params, masks: Masks | None) -> None:
    """Checks what is about to be placed on a mesh.

    Raises:
      ValueError: If a leaf is an array that JAX does not take; the message names it.
    """
    trees.by_path(params, "params")
    trees.by_path(masks, "masks")


def masked(params: Params, masks: Masks | None) -> Params:
    """The params with exact zeros where pruned, whatever the values there were."""
    return params if masks is None else masks_.apply(params=params, masks=masks)


class _Epoch(NamedTuple):
    """The mean loss and metrics of one epoch, and whether every loss was finite."""

    loss: Array
    metrics: dict[str, Array]
    finite: Array


class _Best(NamedTuple):
    value: Array
    params: Params
    masks: Masks | None  # None where they do not change
    state: PyTree
    epoch: Array


@partial(jax.jit, static_argnames="plan")
def _run(first: Carry, data: Batch, *, plan: Plan) -> Fitted:
    changing = plan.read_masks is not None

    def body(pair: tuple[Carry, _Best | None], index: Array) -> tuple[Any, _Epoch]:
        carry, best = pair
        carry, epoch = _run_epoch(carry, data, plan)
        if best is not None:
            masks = carry.masks if changing else None
            value = _metric(epoch, plan.best_by)
            best = _better(best, _Best(value, carry.params, masks, carry.state, index))
        return (carry, best), epoch

    indices = jnp.arange(plan.epochs, dtype=jnp.int32)
    best = None
    if plan.best_by is not None:
        masks = first.masks if changing else None
        worst = jnp.full((), -jnp.inf, jnp.float32)
        best = _Best(worst, first.params, masks, first.state, indices[0])
    (carry, best), epochs = jax.lax.scan(body, (first, best), indices)
    finite = jnp.all(epochs.finite) & stayed_finite(first.params, carry.params)
    fitted = Fitted(**carry._asdict(), history=History(epochs.loss, epochs.metrics), finite=finite)
    if best is not None:
        masks = best.masks if changing else carry.masks
        fitted = fitted._replace(
            best_params=best.params,
            best_masks=masks,
            best_state=best.state,
            best_epoch=best.epoch,
        )
    return parallel.whole(fitted, plan.mesh)


def _better(best: _Best, candidate: _Best) -> _Best:
    wins = (candidate.value > best.value) | (candidate.epoch == 0)
    return jax.tree.map(lambda new, old: jnp.where(wins, new, old), candidate, best)


def _metric(epoch: _Epoch, name: str | None) -> Float[Array, ""]:
    if name not in epoch.metrics:
        raise ValueError(
            f"`best_by` must name a metric of `monitor`, one of {sorted(epoch.metrics)}, "
            f"got {name!r}."
        )
    value = jnp.asarray(epoch.metrics[name], jnp.float32)
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _run_epoch(carry: Carry, data: Batch, plan: Plan) -> tuple[Carry, _Epoch]:
    """One pass over the data, and the metrics after it."""
    order_key, noise_key = jax.random.split(jax.random.fold_in(carry.key, carry.epoch))
    if plan.batch_size is None:
        carry, losses = _step(carry, data, noise_key, jnp.zeros((), jnp.int32), plan)
        loss, finite = losses, jnp.isfinite(losses)
    else:
        order = jax.random.permutation(order_key, plan.examples)
        carry, loss, finite = _run_batches(carry, data, order, noise_key, plan)
    watched = (carry.params, carry.state) if plan.stateful else (carry.params,)
    metrics = plan.monitor(*watched) if plan.monitor else {}
    if not isinstance(metrics, Mapping):
        raise ValueError(f"`monitor` must return {{name: scalar}}, got {shown(metrics)}.")
    return carry._replace(epoch=carry.epoch + 1), _Epoch(loss, dict(metrics), finite)


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


def _checked(step_loss: StepLoss) -> StepLoss:
    """A `step_loss` whose results are checked."""

    def checked(*args: Any) -> tuple[Array, PyTree]:
        found = step_loss(*args)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"`step_loss` must return (loss, state), got {shown(found)}.")
        return check_loss_value(found[0]), found[1]

    return checked


def _step(
    carry: Carry, batch: Batch, noise_key: Key[Array, ""], index: Int[Array, ""], plan: Plan
) -> tuple[Carry, Array]:
    key = jax.random.fold_in(noise_key, index)
    descent = jax.value_and_grad(
        computed(_checked(plan.step_loss), plan.convolutions), has_aux=True
    )

    def program(batch: Batch) -> Any:
        return descent(carry.params, carry.state, batch, key)

    (loss, state), gradients = program(parallel.split(batch, plan.mesh, program))
    # A transformation that holds the masks in its state keeps pruned weights at 0 itself.
    tx = transforms.keep(plan.tx, None if plan.read_masks else carry.masks)
    updates, opt_state = tx.update(gradients, carry.opt_state, carry.params, value=loss)
    masks = plan.read_masks(opt_state) if plan.read_masks else carry.masks
    if jax.tree.structure(masks) != jax.tree.structure(carry.masks):
        raise ValueError(
            f"`read_masks` must return masks like those of the carry, got {shown(masks)}. Give it "
            "to `finetune.start` too."
        )
    carry = carry._replace(
        params=optax.apply_updates(carry.params, updates),
        masks=masks,
        opt_state=opt_state,
        state=state,
        step=carry.step + 1,
    )
    return parallel.whole(carry, plan.mesh), loss
