"""Losses, and the evaluation of classifiers on every example."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from nopr import trees
from nopr.convolutions import Implementation, computed, resolve
from nopr.finetune import parallel
from nopr.finetune.batches import examples_in, take
from nopr.typing import (
    Apply,
    Batch,
    Loss,
    Params,
    StepLoss,
    check_apply,
    is_real,
    shown,
    whole_number,
)


class Evaluation(NamedTuple):
    """The performance of a classifier on some data.

    Attributes:
      accuracy: Fraction of the examples whose largest output is that of their label.
      loss: Mean cross-entropy in nats.
      count: Number of examples.
    """

    accuracy: Float[Array, ""]
    loss: Float[Array, ""]
    count: int


def cross_entropy(apply: Apply, *, temperature: float = 1.0) -> Loss:
    """The mean cross-entropy in nats of `apply(params, inputs) / temperature`.

    Args:
      apply: `apply(params, inputs)`, which gives the logits, `[batch, classes]`.
      temperature: Positive divisor of the logits.

    Returns:
      `loss(params, (inputs, labels))`, with integer labels `[batch]`.

    Raises:
      ValueError: If `temperature` is not positive; from the loss, if the labels are not integers
        or not among the classes. Traced labels cannot be refused: one outside the classes makes the
        loss and its gradient NaN.
    """
    check_apply(apply)
    if not is_real(temperature) or temperature <= 0:
        raise ValueError(f"`temperature` must be a positive number, got {shown(temperature)}.")

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        inputs, labels = _pair(batch, "batch")
        return jnp.mean(
            _cross_entropies(_outputs(apply, params, inputs) / float(temperature), labels)
        )

    return loss


def squared_error(apply: Apply) -> Loss:
    """The mean over the examples of the squared error, summed over the outputs.

    Args:
      apply: `apply(params, inputs)`, which gives the predictions, `[batch, out]`.

    Returns:
      `loss(params, (inputs, targets))`, with targets `[batch, out]`, or `[batch]` for one output.

    Raises:
      ValueError: From the loss, if predictions and targets differ in size.
    """
    check_apply(apply)

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        inputs, targets = _pair(batch, "batch")
        outputs = _outputs(apply, params, inputs)
        targets = jnp.asarray(trees.numbers(targets, "batch"))
        if jnp.size(targets) != outputs.size or len(targets) != len(outputs):
            raise ValueError(
                f"The targets must have the shape of the outputs, {outputs.shape}, "
                f"got {jnp.shape(targets)}."
            )
        return jnp.sum(jnp.square(outputs - jnp.reshape(targets, outputs.shape))) / len(outputs)

    return loss


def stateless(loss: Loss) -> StepLoss:
    """Turns `loss(params, batch)` into a `step_loss(params, state, batch, key)`."""

    def step_loss(
        params: Params, state: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Array, PyTree]:
        del key
        return loss(params, batch), state

    return step_loss


def evaluate(
    apply: Apply,
    params: Params,
    data: Batch,
    *,
    batch_size: int = 1000,
    mesh: Mesh | None = None,
    convolutions: Implementation = "auto",
) -> Evaluation:
    """Accuracy and cross-entropy of a classifier over every example.

    Args:
      apply: `apply(params, inputs)`, which gives the logits, `[batch, classes]`.
      params: Its params.
      data: `(inputs, labels)`, the labels integers.
      batch_size: Examples at a time, which bounds the memory; it changes only the rounding.
      mesh: The mesh over whose `batch` axis the examples are split, with `batch_size` rounded up to
        equal shares; None stays on one device. Data already on the mesh keep their layout.
      convolutions: How convolutions of `apply` are computed; see `convolutions.resolve`.

    Returns:
      The evaluation; NaN outputs, and labels outside the classes, count as wrong and make the loss
      NaN.

    Raises:
      ValueError: If `batch_size` is less than 1, the leaves of `data` differ in length or have no
        example, the labels are not integers, `mesh` has no `batch` axis, or its processes give
        different arguments.
    """
    check_apply(apply)
    batch_size = whole_number("batch_size", batch_size)
    _pair(data, "data")
    trees.by_path(params, "params")
    count = examples_in(data)
    mesh = parallel.over(mesh)
    chosen = resolve(convolutions, mesh=mesh)
    size = parallel.rounded_up(min(batch_size, count), mesh)
    params, data = parallel.place((params, data), mesh)
    with parallel.context(mesh):
        accuracy, loss = _evaluate(
            params, data, apply=apply, batch_size=size, mesh=mesh, convolutions=chosen
        )
    return Evaluation(accuracy, loss, count)


@partial(jax.jit, static_argnames=("apply", "batch_size", "mesh", "convolutions"))
def _evaluate(
    params: Params,
    data: Batch,
    *,
    apply: Apply,
    batch_size: int,
    mesh: Mesh | None,
    convolutions: Implementation,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    examples = examples_in(data)
    apply = computed(apply, convolutions)

    def sums(first: Int[Array, ""]) -> tuple[Array, Array]:
        rows = first + jnp.arange(batch_size)
        inputs, labels = parallel.split(take(data, rows), mesh)
        logits = _outputs(apply, params, inputs)
        losses = _cross_entropies(logits, labels)
        # The argmax of NaN is 0: a network that diverged would be right on the first class.
        right = (jnp.argmax(logits, axis=-1) == labels) & jnp.isfinite(losses)
        counted = rows < examples  # the last batch is padded with the last example
        return jnp.sum(counted & right), jnp.sum(jnp.where(counted, losses, 0))

    right, loss = jax.lax.map(sums, jnp.arange(0, examples, batch_size))
    return parallel.whole((jnp.sum(right) / examples, jnp.sum(loss) / examples), mesh)


def _outputs(apply: Apply, params: Params, inputs: Any) -> Array:
    return jnp.asarray(trees.numbers(apply(params, inputs), "apply(params, inputs)"))


def _pair(batch: Any, name: str) -> tuple[Any, Any]:
    """The inputs and the labels or targets of a batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"`{name}` must be a pair (inputs, labels), got {found}.")
    return batch[0], batch[1]


def _cross_entropies(logits: Any, labels: Any) -> Float[Array, " batch"]:
    given = trees.numbers(labels, "batch")
    labels = jnp.asarray(given)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        one_hot = labels.shape == logits.shape and labels.ndim > 0
        remedy = " Turn one-hot labels into integers: `labels.argmax(axis=-1)`." if one_hot else ""
        raise ValueError(
            f"The labels must be integers of shape {logits.shape[:-1]}, "
            f"got {labels.dtype} of shape {labels.shape}.{remedy}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"`apply` must return floating logits, got {logits.dtype}.")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    last = logits.shape[-1] - 1
    known = (labels >= 0) & (labels <= min(last, jnp.iinfo(labels.dtype).max))
    if isinstance(given, np.ndarray):  # JAX narrows integers of 64 bits
        known &= (given >= 0) & (given <= last)
    if not isinstance(known, jax.core.Tracer) and not known.all():
        wrong = np.asarray(given)[~np.asarray(known)].flat[0]
        raise ValueError(
            f"The labels must be from 0 to {last}, the classes of the logits, got {wrong}. "
            "Number the classes from 0, and give the network an output for each."
        )
    # A product, unlike `where`, carries NaN into the gradient too.
    return losses * jnp.where(known, 1, jnp.nan).astype(losses.dtype)
