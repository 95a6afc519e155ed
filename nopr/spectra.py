"""Exact input-output Jacobians of a network, their singular values, and summary statistics.

Under dynamical isometry, the singular values of the Jacobian d outputs / d inputs lie near 1, so
that signals and gradients neither explode nor vanish. Here they are computed exactly, one Jacobian
per example. Nothing is jitted: wrap what you call often in `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nopr import jaxprs, trees
from nopr.typing import Apply, Params, check_apply, check_choice, whole_number

BLOCK_BYTES = 2**28
"""Estimated working memory, in bytes, within which the default `block` stays."""

Mode: TypeAlias = Literal["auto", "forward", "reverse"]
"""How a Jacobian is accumulated."""

Method: TypeAlias = Literal["gram", "svd"]
"""How singular values are computed."""

_MARK = 7919  # a batch size, prime and unlike any layer's, that marks what grows with the batch


class Summary(NamedTuple):
    """Scalars that describe the singular values of a batch of Jacobians.

    Attributes:
      mean: Over all values and examples: the "mean JSV" of the pruning literature.
      std: Their standard deviation (divided by n).
      max: The largest.
      min: The smallest.
      condition_number: Median over examples of largest / smallest; infinite where the smallest
        is 0.
      fraction_near_one: Fraction of the values within [0.5, 2].
    """

    mean: Array
    std: Array
    max: Array
    min: Array
    condition_number: Array
    fraction_near_one: Array


def jacobian(
    apply: Apply,
    params: Params,
    inputs: Any,
    *,
    mode: Mode = "auto",
    block: int | None = None,
) -> Float[Array, "batch out in"]:
    r"""The Jacobian :math:`J = \partial f(x) / \partial x` of every example.

    Inputs and outputs are raveled, so they may have any shape. Each example goes through `apply`
    as a batch of one, so normalization layers must be in inference mode. Matrix products run at the
    highest precision. Works under jit, and under vmap over `params`.

    Args:
      apply: `apply(params, inputs) -> outputs`, both with a leading example axis.
      params: Any pytree that `apply` takes.
      inputs: Floating, [batch, ...].
      mode: `"forward"` pushes one tangent per input (`jax.jacfwd`), `"reverse"` pulls one
        cotangent per output (`jax.jacrev`), and `"auto"` takes the one with fewer passes: forward
        for tall or square Jacobians, reverse for wide ones. They agree to rounding.
      block: Number of examples differentiated at once; blocks run one after the other. By default
        as many as fit in `BLOCK_BYTES`, by an estimate from the sizes of the activations, and at
        least one. The estimate excludes the result, and vmap multiplies it.

    Returns:
      [batch, out, in], in the dtype of the outputs.

    Raises:
      ValueError: If `mode` or `block` is invalid, the inputs are not floating, or a Jacobian has a
        NaN or infinite entry (the message has the first such example). Under a trace, such entries
        are returned.
    """
    values, finite = _map(apply, params, inputs, mode=mode, block=block, then=lambda j: j)
    _check_finite(finite)
    return values


def singular_values(
    apply: Apply,
    params: Params,
    inputs: Any,
    *,
    mode: Mode = "auto",
    block: int | None = None,
    method: Method = "svd",
) -> Float[Array, "batch least"]:
    r"""All singular values of the Jacobian of every example, in descending order.

    Only the Jacobians of one block are in memory at a time. See `jacobian` for details.

    Args:
      apply: `apply(params, inputs) -> outputs`, both with a leading example axis.
      params: Any pytree that `apply` takes.
      inputs: Floating, [batch, ...].
      mode: `"auto"`, `"forward"` or `"reverse"`.
      block: Number of examples differentiated at once; by default as many as fit in `BLOCK_BYTES`.
      method: `"svd"`, accurate to a few rounding units of the *largest* value; or `"gram"`, the
        square roots of the eigenvalues of the smaller of :math:`J J^T` and :math:`J^T J`, which is
        several times as fast. Squaring costs half of the digits: with :math:`\epsilon` the
        rounding unit, a value :math:`s` has an error of about :math:`\epsilon s_{max}^2 / s`, and
        no value below :math:`\sqrt{\epsilon} s_{max}` (3e-4 of the largest in float32, 1.5e-8 in
        float64) can be trusted. Means are hardly affected; the smallest value and the condition
        number of an ill-conditioned network are.

    Returns:
      [batch, min(out, in)], descending, float32 or float64.

    Raises:
      ValueError: As for `jacobian`, or if `method` is unknown. Under a trace, the values of an
        example whose Jacobian is not finite are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import spectra
      >>> params = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
      >>> values = spectra.singular_values(lambda w, x: x @ w, params, jnp.ones((1, 3)))
      >>> values
      Array([[3., 2.]], dtype=float32)
      >>> float(spectra.summarize(values).mean)
      2.5
    """
    check_choice("method", method, Method)
    decompose = _by_svd if method == "svd" else _by_gram
    values, finite = _map(apply, params, inputs, mode=mode, block=block, then=decompose)
    _check_finite(finite)
    return jnp.where(finite[:, None], values, jnp.nan)


def summarize(values: Float[Array | np.ndarray, "*batch least"]) -> Summary:
    """Summary statistics of singular values.

    Args:
      values: Singular values, those of one Jacobian along the last axis, in any order.

    Returns:
      The summary, as scalars. Works under jit and vmap.

    Raises:
      ValueError: If `values` is empty, or a concrete value is NaN, infinite or negative.
    """
    values = trees.numbers(values, "values")
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"`values` must be real, got {values.dtype}.")
    values = jnp.asarray(values, jnp.result_type(float))
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"`values` must hold singular values, got shape {values.shape}.")
    if not isinstance(values, jax.core.Tracer) and not _valid(np.asarray(values)):
        raise ValueError("`values` must be finite and not negative, as singular values are.")
    largest, least = jnp.max(values, axis=-1), jnp.min(values, axis=-1)
    return Summary(
        mean=jnp.mean(values),
        std=jnp.std(values),
        max=jnp.max(largest),
        min=jnp.min(least),
        condition_number=jnp.median(jnp.where(least == 0, jnp.inf, largest / least)),
        fraction_near_one=jnp.mean((values >= 0.5) & (values <= 2), dtype=values.dtype),
    )


def _map(
    apply: Apply,
    params: Params,
    inputs: Any,
    *,
    mode: Mode,
    block: int | None,
    then: Callable[[Array], Array],
) -> tuple[Array, Bool[Array, " batch"]]:
    """`then` of the Jacobian of every example, and whether that Jacobian is finite."""
    check_apply(apply)
    inputs = _checked_inputs(inputs)

    def one(example: Array) -> Array:
        outputs = jnp.asarray(trees.numbers(apply(params, example[None]), "apply(params, inputs)"))
        if not outputs.ndim:
            raise ValueError(
                "`apply` must return outputs with a leading example axis, got a scalar."
            )
        return outputs[0].reshape(-1)

    example = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    like = jax.eval_shape(one, example)
    if not jnp.issubdtype(like.dtype, jnp.floating):
        raise ValueError(f"`apply` must return floating outputs, got {like.dtype}.")
    outs, ins = like.size, math.prod(example.shape)
    mode = _resolve(mode, outs, ins)
    differentiate = jax.jacfwd(one) if mode == "forward" else jax.jacrev(one)

    def measure(example: Array) -> tuple[Array, Array]:
        matrix = differentiate(example).reshape(outs, ins)
        # Where an input is NaN, an activation may have a slope of 0.
        finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(example))
        return then(matrix), finite

    with jax.default_matmul_precision("highest"):
        if block is None:
            passes = ins if mode == "forward" else outs
            block = _default_block(one, example, passes=passes, entries=outs * ins)
        block = whole_number("block", block)
        if block >= len(inputs):
            return jax.vmap(measure)(inputs)
        return jax.lax.map(measure, inputs, batch_size=block)


def _valid(values: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(values) & (values >= 0)))


def _checked_inputs(inputs: Any) -> Array:
    inputs = jnp.asarray(trees.numbers(inputs, "inputs"))
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"`inputs` must be floating to differentiate by, got {inputs.dtype}.")
    if inputs.ndim < 2 or inputs.size == 0:
        raise ValueError(f"`inputs` must be [batch, ...] and not empty, got shape {inputs.shape}.")
    return inputs


def _resolve(mode: Mode, outs: int, ins: int) -> Mode:
    check_choice("mode", mode, Mode)
    if mode == "auto":
        return "forward" if ins <= outs else "reverse"
    return mode


def _check_finite(finite: Bool[Array, " batch"]) -> None:
    if isinstance(finite, jax.core.Tracer) or bool(jnp.all(finite)):
        return
    bad = np.flatnonzero(~np.asarray(finite))
    raise ValueError(
        f"The Jacobian of example {bad[0]} has a NaN or infinite entry ({bad.size} of "
        f"{finite.size} examples do). Check the params and the inputs."
    )


def _by_svd(matrix: Float[Array, "out in"]) -> Float[Array, " least"]:
    return jnp.linalg.svd(_at_least_single(matrix), full_matrices=False, compute_uv=False)


def _by_gram(matrix: Float[Array, "out in"]) -> Float[Array, " least"]:
    matrix = _at_least_single(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    # Rounding can leave the zero eigenvalues slightly negative.
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0))


def _at_least_single(matrix: Array) -> Array:
    return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))


def _default_block(
    one: Callable[[Array], Array],
    example: jax.ShapeDtypeStruct,
    *,
    passes: int,
    entries: int,
) -> int:
    """The number of examples that fit in `BLOCK_BYTES`, from the activations of one example.

    All activations are held once for the backward pass, and about three of the largest at a time
    once per tangent or cotangent; the Jacobian is held together with its decomposition.
    """
    stacked = jax.ShapeDtypeStruct((_MARK, *example.shape), example.dtype)
    program, _ = jaxprs.trace(jax.vmap(one), stacked)
    computed = [var.aval for eqn in jaxprs.equations(program) for var in eqn.outvars]
    every = [getattr(aval, "size", 0) for aval in computed]
    sizes = [size // _MARK for size in every if size % _MARK == 0]
    largest = max([*sizes, math.prod(example.shape)])
    numbers = sum(sizes) + 3 * passes * largest + 3 * entries
    return max(1, BLOCK_BYTES // (numbers * max(4, example.dtype.itemsize)))
