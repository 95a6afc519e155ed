"""Convolutions as patches and a matrix product, for loops on a CPU.

XLA's CPU runs a convolution several times slower inside a compiled loop than outside of one, and
slower still where a `vmap` gives each case a kernel of its own. A matrix product has neither
defect. `as_patches` rewrites a function before it is differentiated, so that its derivatives are
matrix products too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import Mesh
from jaxtyping import Array

Convolutions: TypeAlias = Literal["auto", "patches", "xla"]
"""How training computes convolutions; see `resolve_convolutions`."""

MOST_TAPS = 256
"""A kernel with more positions than this is left to XLA: its patches would fill the memory."""

_BODIES = ("checkpoint", "closed_call", "cond", "jit", "pjit", "remat2", "scan", "while")
"""Operations that do no more than run the programs among their parameters."""


def resolve_convolutions(
    convolutions: Convolutions = "auto", *, mesh: Mesh | None = None
) -> Literal["patches", "xla"]:
    """How training computes convolutions on this machine.

    The two agree to rounding, not to the bit: record the answer beside a result that must be
    reproduced exactly.

    Args:
      convolutions: "xla" leaves them as they are; "patches" gathers the patches and multiplies them
        with the kernel; "auto" takes "patches" on a CPU and "xla" elsewhere. Grouped over the
        batch, or of more than 256 positions, a convolution is always left to XLA, and so is one
        inside a function with derivative rules of its own.
      mesh: The devices that train; None for JAX's default.

    Returns:
      The choice.

    Raises:
      ValueError: If there is no such choice.
    """
    if convolutions not in get_args(Convolutions):
        known = ", ".join(map(repr, get_args(Convolutions)))
        raise ValueError(f"`convolutions` must be one of {known}, got {convolutions!r}.")
    if convolutions != "auto":
        return convolutions
    return "patches" if _platform(mesh) == "cpu" else "xla"


def rewritten(function: Callable[..., Any], convolutions: Convolutions) -> Callable[..., Any]:
    """The function, its convolutions computed as `resolve_convolutions` has chosen."""
    return as_patches(function) if convolutions == "patches" else function


def as_patches(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its convolutions as patches and matrix products.

    Loops, branches, `jit` and `jax.checkpoint` inside it are entered; functions with derivative
    rules of their own keep them. A function without convolutions is called as it is.

    Args:
      function: Takes and returns pytrees of arrays.

    Returns:
      The same function but for rounding.
    """

    def run(*args: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _convolves(program.jaxpr):
            return function(*args)
        leaves = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Runs a traced program, its convolutions rewritten."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for equation in jaxpr.eqns:
        with equation.ctx.manager:
            results = _run(equation, [read(atom) for atom in equation.invars])
        env |= zip(equation.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _run(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    if _is_rewritable(equation):
        return [_convolve(*values, **equation.params)]
    params = equation.params
    if equation.primitive.name in _BODIES and any(map(_convolves, core.jaxprs_in_params(params))):
        if isinstance(params.get("jaxpr"), core.Jaxpr):  # of `jax.checkpoint`: it has no constants
            body = partial(_evaluate, params["jaxpr"], ())
            policy, prevent_cse = params["policy"], params["prevent_cse"]
            remat = jax.checkpoint(lambda *args: body(args), policy=policy, prevent_cse=prevent_cse)
            return remat(*values)
        params = {name: _rewritten(value) for name, value in params.items()}
    results = equation.primitive.bind(*values, **equation.primitive.get_bind_params(params))
    return results if equation.primitive.multiple_results else [results]


def _rewritten(value: Any) -> Any:
    """A parameter of an operation, the programs in it rewritten."""
    if isinstance(value, tuple):
        return tuple(map(_rewritten, value)) if not hasattr(value, "_fields") else value
    if not isinstance(value, core.ClosedJaxpr):
        return value
    program = partial(_evaluate, value.jaxpr, value.consts)
    return jax.make_jaxpr(lambda *args: program(args))(*value.in_avals)


def _convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution to rewrite."""
    return any(
        _is_rewritable(equation)
        or (
            equation.primitive.name in _BODIES
            and any(map(_convolves, core.jaxprs_in_params(equation.params)))
        )
        for equation in jaxpr.eqns
    )


def _is_rewritable(equation: Any) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    params = equation.params
    kernel, shapes = equation.invars[1].aval.shape, [v.aval.shape for v in equation.outvars]
    taps = [kernel[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    return (
        params["batch_group_count"] == 1
        and params.get("out_sharding") is None
        and 0 < math.prod(taps) <= MOST_TAPS
        and 0 not in (*equation.invars[0].aval.shape, *shapes[0])
    )


def _convolve(
    inputs: Any,
    kernel: Any,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **rest: Any,
) -> Array:
    """`lax.conv_general_dilated` as patches and one matrix product; arguments as there."""
    del rest
    numbers, groups = dimension_numbers, feature_group_count
    patches = jnp.transpose(
        inputs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    )
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1]))
    *taps, channels, features = kernel.shape
    ends = zip(padding, lhs_dilation, strict=True)
    gaps = [(low, high, dilation - 1) for (low, high), dilation in ends]
    zero = jnp.zeros((), patches.dtype)
    patches = lax.pad(patches, zero, [(0, 0, 0), *gaps, (0, 0, 0)])
    # Dimension by dimension, which takes a slice for each row and column and not for each position.
    patches = patches.reshape(*patches.shape[:-1], groups, channels)
    for axis, (count, stride, dilation) in reversed(
        list(enumerate(zip(taps, window_strides, rhs_dilation, strict=True), start=1))
    ):
        length = (patches.shape[axis] - (count - 1) * dilation - 1) // stride + 1
        slices = [
            lax.slice_in_dim(patches, start, start + (length - 1) * stride + 1, stride, axis)
            for start in range(0, count * dilation, dilation)
        ]
        patches = jnp.concatenate(slices, axis=-1)
    outputs = _product(
        patches, kernel.reshape(-1, groups, features // groups), precision, preferred_element_type
    )
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(outputs, [order.index(axis) for axis in range(len(order))])


def _product(patches: Array, kernel: Array, precision: Any, preferred_element_type: Any) -> Array:
    """`[..., groups, k]` times `[k, groups, features]`, group by group: `[..., all features]`."""
    *outer, groups, size = patches.shape
    if groups == 1:
        patches, kernel = patches.reshape(-1, size), kernel[:, 0]
        contract: Any = ((1,), (0,)), ((), ())
    else:
        patches = patches.reshape(-1, groups, size)
        contract = ((2,), (0,)), ((1,), (1,))
    product = lax.dot_general(
        patches,
        kernel,
        contract,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if groups > 1:
        product = jnp.moveaxis(product, 0, 1)
    return product.reshape(*outer, -1)


def _platform(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
