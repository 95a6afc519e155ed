"""Convolutions as patches and a matrix product, for loops on a CPU.

On a CPU, XLA runs a convolution several times slower inside a compiled loop than outside, and even
slower under a `vmap` over kernels. A matrix product has neither defect. `convolve` computes a
convolution as one; `as_patches` rewrites the convolutions of a function before differentiation, so
that its derivatives are matrix products too.

The price is memory: patches hold each input once for every position of the kernel, and reverse mode
keeps them. A training step of ResNet-20 takes 3.3 to 3.6 times the temporary memory of XLA's
convolutions (958 MiB instead of 288 for a batch of 128).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from nopr import jaxprs
from nopr.typing import check_choice

Implementation: TypeAlias = Literal["auto", "patches", "xla"]
"""How convolutions are computed; see `resolve`."""

MOST_TAPS = 256
"""Kernels with more positions are left to XLA: their patches would fill the memory."""

_ENTERED = {jaxprs.COND, jaxprs.JIT, jaxprs.REMAT, jaxprs.SCAN, jaxprs.WHILE}


def resolve(
    choice: str = "auto", *, mesh: Mesh | None = None, name: str = "convolutions"
) -> Literal["patches", "xla"]:
    """How convolutions are computed on this machine.

    The two implementations agree to rounding, not to the bit: record the choice with any result
    that must be reproduced exactly.

    Args:
      choice: `"xla"` leaves convolutions unchanged; `"patches"` gathers patches and multiplies them
        by the kernel; `"auto"` takes `"patches"` on a CPU and `"xla"` elsewhere.
      mesh: The devices that compute; None for JAX's default.
      name: The name of the option in errors.

    Returns:
      The choice.

    Raises:
      ValueError: If `choice` is unknown.
    """
    check_choice(name, choice, Implementation)
    if choice == "auto":
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        choice = "patches" if platform == "cpu" else "xla"
    return "patches" if choice == "patches" else "xla"


def computed(function: Callable[..., Any], choice: Implementation) -> Callable[..., Any]:
    """The function with its convolutions computed as `resolve` has chosen."""
    return as_patches(function) if choice == "patches" else function


def as_patches(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its convolutions as patches and matrix products.

    Loops, branches, `jit` and `jax.checkpoint` inside it are rewritten too; functions with custom
    derivatives keep those, and their convolutions. Convolutions grouped over the batch or with more
    than 256 positions are left to XLA as well. A function without convolutions is called unchanged.

    Args:
      function: A function from pytrees of arrays to pytrees of arrays.

    Returns:
      A function with the same results to rounding.
    """

    def run(*args: Any) -> Any:
        program, shape = jaxprs.trace(function, *args)
        if not _convolves(program):
            return function(*args)
        leaves = _evaluate(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return run


def convolve(
    inputs: Any,
    kernel: Any,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dimension_numbers: lax.ConvDimensionNumbers,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`lax.conv_general_dilated` as patches and one matrix product, with the same arguments."""
    numbers, groups = dimension_numbers, feature_group_count
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1]))
    *taps, _, features = kernel.shape
    entering = patches(
        inputs,
        taps,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=numbers,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        feature_group_count=groups,
    )
    outputs = _product(
        entering, kernel.reshape(-1, groups, features // groups), precision, preferred_element_type
    )
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(outputs, [order.index(axis) for axis in range(len(order))])


def patches(
    inputs: Any,
    taps: Sequence[int],
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dimension_numbers: lax.ConvDimensionNumbers,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
) -> Array:
    """What a convolution multiplies its kernel by at each position of its output.

    Args:
      inputs: The inputs, as given to `lax.conv_general_dilated`.
      taps: The sides of the kernel's window.
      window_strides: As in `lax.conv_general_dilated`, like all that follow.
      padding: Zeros before and after each spatial dimension.
      dimension_numbers: The layout of the inputs; those of kernel and outputs are not read.
      lhs_dilation: Dilation of the inputs.
      rhs_dilation: Dilation of the kernel.
      feature_group_count: The number of groups of channels.

    Returns:
      Patches [examples, *positions, groups, taps * channels of a group]; the channel is the fastest
      index of the last axis.
    """
    numbers, groups = dimension_numbers, feature_group_count
    found = jnp.transpose(inputs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    ones = (1,) * len(taps)
    ends = zip(padding, lhs_dilation or ones, strict=True)
    gaps = [(low, high, dilation - 1) for (low, high), dilation in ends]
    zero = jnp.zeros((), found.dtype)
    found = lax.pad(found, zero, [(0, 0, 0), *gaps, (0, 0, 0)])
    # Dimension by dimension: a slice per row and per column, instead of one per position.
    found = found.reshape(*found.shape[:-1], groups, found.shape[-1] // groups)
    steps = zip(taps, window_strides, rhs_dilation or ones, strict=True)
    for axis, (count, stride, dilation) in reversed(list(enumerate(steps, start=1))):
        length = (found.shape[axis] - (count - 1) * dilation - 1) // stride + 1
        slices = [
            lax.slice_in_dim(found, start, start + (length - 1) * stride + 1, stride, axis)
            for start in range(0, count * dilation, dilation)
        ]
        found = jnp.concatenate(slices, axis=-1)
    return found


def _product(rows: Array, kernel: Array, precision: Any, preferred_element_type: Any) -> Array:
    """`[..., groups, k]` times `[k, groups, features]`, group by group: `[..., all features]`."""
    *outer, groups, size = rows.shape
    if groups == 1:
        rows, kernel = rows.reshape(-1, size), kernel[:, 0]
        contract: Any = ((1,), (0,)), ((), ())
    else:
        rows = rows.reshape(-1, groups, size)
        contract = ((2,), (0,)), ((1,), (1,))
    product = lax.dot_general(
        rows,
        kernel,
        contract,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if groups > 1:
        product = jnp.moveaxis(product, 0, 1)
    return product.reshape(*outer, -1)


def _evaluate(program: jaxprs.Program, values: Sequence[Any]) -> list[Any]:
    """Runs a program with its convolutions rewritten."""
    return jaxprs.fold(program, values, _step, constant=lambda value: value)


def _step(eqn: jaxprs.Equation, values: list[Any]) -> Sequence[Any]:
    if _is_rewritable(eqn):
        unused = ("batch_group_count", "out_sharding")
        options = {name: value for name, value in eqn.params.items() if name not in unused}
        return [convolve(*values, **options)]
    if eqn.primitive.name not in _ENTERED or not any(map(_convolves, jaxprs.inner(eqn))):
        return jaxprs.bind(eqn, *values)
    if eqn.primitive.name == jaxprs.REMAT:
        policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
        body: jaxprs.Program = jaxprs.called(eqn)
        again = partial(jax.checkpoint, policy=policy, prevent_cse=prevent_cse)
        return again(lambda *args: _evaluate(body, args))(*values)
    return jaxprs.bind(eqn, *values, **jaxprs.replaced(eqn, _rewritten))


def _rewritten(program: jaxprs.Program) -> jaxprs.Program:
    return jaxprs.trace(lambda *args: _evaluate(program, args), *program.in_avals).program


def _convolves(program: jaxprs.Program) -> bool:
    """Whether there is a convolution to rewrite."""
    return any(map(_is_rewritable, jaxprs.equations(program)))


def _is_rewritable(eqn: jaxprs.Equation) -> bool:
    if eqn.primitive.name != "conv_general_dilated":
        return False
    inputs, kernel, outputs = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    taps = [kernel[axis] for axis in eqn.params["dimension_numbers"].rhs_spec[2:]]
    return (
        eqn.params["batch_group_count"] == 1
        and eqn.params.get("out_sharding") is None
        and 0 < math.prod(taps) <= MOST_TAPS
        and 0 not in (*inputs, *outputs)
    )
