"""Which kept weights matter, and taking out the units that do not.

A kept weight is *live* if it lies on a path of kept weights from an input to an output. The rest
counts towards density but not towards what the network computes; the effective density leaves it
out. Everything here takes the kernels as explicit ordered paths: the leaves of a dict sort
Dense_10 before Dense_2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, Bool, Float, Int

from nopr import trees
from nopr.granularity import chain, inputs_from
from nopr.typing import Masks, Params


def live(masks: Masks, layers: Sequence[str]) -> Masks:
    """Masks of the kept weights that lie on a path from an input to an output.

    A path goes through dense kernels by units, through convolutions by channels, and from a
    convolution to a dense kernel by a channels-last flatten. Biases make no path: a unit that is
    reached by its bias alone is a constant. Works under jit and vmap.

    Args:
      masks: Masks of a sequential network, [in, out] or [height, width, in, out] a kernel.
      layers: The path of every kernel, from the input to the output.

    Returns:
      Masks like `masks`, a subset of them.

    Raises:
      ValueError: If `layers` does not fit the masks; the message names the leaf.
    """
    kernels = chain(masks, layers)
    forward = _forward(kernels)
    backward = _backward(kernels)
    alive = {
        path: jnp.asarray(kernel) & ins[:, None] & outs
        for path, kernel, ins, outs in zip(layers, kernels, forward, backward, strict=True)
    }
    return tree_map_with_path(lambda path, _: alive[trees.path_string(path)], masks)


def effective_count(masks: Masks, layers: Sequence[str]) -> Int[Array, ""]:
    """The number of live weights; see `live`."""
    return sum(
        (jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(live(masks, layers))),
        jnp.int32(0),
    )


def effective_density(masks: Masks, layers: Sequence[str]) -> Float[Array, ""]:
    """Live over prunable weights, in [0, 1]; at most the density.

    Source: Vysogorets & Kempe 2023, arXiv:2107.02306.
    """
    return effective_count(masks, layers) / sum(leaf.size for leaf in jax.tree.leaves(masks))


def remove(
    params: Params,
    masks: Masks,
    layers: Sequence[str],
    *,
    keep_constant: bool = False,
) -> tuple[Params, Masks]:
    """Takes the units that cannot matter out of a sequential dense network.

    The masks are applied, and a hidden unit goes where nothing leads from it to an output, or
    where its own value is always 0: no kept weight from a unit that is not itself 0, and a bias
    that is absent or 0. A unit that is constant but not 0 stays. Inputs and outputs of the network
    stay; a layer that would lose every unit keeps its first one. With the same `apply`, if that
    takes any widths, the outputs are those of the masked network to rounding.

    Args:
      params: A kernel [in, out] at each of `layers`, beside it optionally a bias [out] whose path
        has "bias" where the kernel's has "kernel", and no other leaf.
      masks: Masks of `params`; concrete, since they decide the shapes.
      layers: The path of every kernel, from the input to the output.
      keep_constant: Keeps units whose input is always 0 too, as activations need that are not 0
        at 0 (sigmoid, softplus). Not needed for linear, ReLU, tanh, GELU.

    Returns:
      The smaller params, masks applied, and the smaller masks.

    Raises:
      ValueError: If the trees or `layers` do not match, a kernel is not dense, `params` has a
        leaf that belongs to no layer, or an array is traced; the message names the leaf.
    """
    trees.check_matches(masks, params)
    kernels = [np.asarray(_concrete(leaf, path)) for path, leaf in _checked(masks, layers)]
    found = {trees.path_string(path): leaf for path, leaf in tree_flatten_with_path(params)[0]}
    biases = [_bias(found, path, kernel) for path, kernel in zip(layers, kernels, strict=True)]
    _check_only(found, layers)
    outs = _kept_units(kernels, biases, keep_constant)
    ins = [np.arange(kernels[0].shape[0]), *outs[:-1]]
    small_params, small_masks = dict(found), {}
    for path, mask, rows, columns in zip(layers, kernels, ins, outs, strict=True):
        block = np.ix_(rows, columns)
        weights = np.asarray(_concrete(found[path], path))[block]
        small_masks[path] = jnp.asarray(mask[block])
        small_params[path] = jnp.asarray(np.where(mask[block], weights, np.zeros_like(weights)))
        beside = _bias_path(path)
        if beside is not None and beside in found:
            small_params[beside] = jnp.asarray(np.asarray(found[beside])[columns])
    return (
        tree_map_with_path(lambda path, _: small_params[trees.path_string(path)], params),
        tree_map_with_path(lambda path, _: small_masks[trees.path_string(path)], masks),
    )


def _forward(kernels: Sequence[Any]) -> list[Bool[Array, " in"]]:
    """For each kernel, which of its inputs an input of the network reaches."""
    reached, outs = [], None
    for kernel in kernels:
        reached.append(inputs_from(outs, kernel.shape))
        outs = jnp.any(kernel & reached[-1][:, None], axis=tuple(range(kernel.ndim - 1)))
    return reached


def _backward(kernels: Sequence[Any]) -> list[Bool[Array, " out"]]:
    """For each kernel, from which of its outputs an output of the network is reached."""
    reaching = [jnp.ones(kernels[-1].shape[-1], bool)]
    for kernel, before in zip(kernels[:0:-1], kernels[-2::-1], strict=True):
        ins = jnp.any(kernel & reaching[-1], axis=(*range(kernel.ndim - 2), kernel.ndim - 1))
        reaching.append(jnp.any(ins.reshape(-1, before.shape[-1]), axis=0))
    return reaching[::-1]


def _kept_units(
    kernels: Sequence[np.ndarray], biases: Sequence[np.ndarray], keep_constant: bool
) -> list[np.ndarray]:
    """For each kernel, the indices of the outputs that stay."""
    with jax.ensure_compile_time_eval():
        useful = [np.asarray(outs) for outs in _backward(kernels)]
    nonzero = np.ones(kernels[0].shape[0], bool)
    kept = []
    for kernel, bias, reaching in zip(kernels[:-1], biases[:-1], useful[:-1], strict=True):
        nonzero = np.any(kernel & nonzero[:, None], axis=0) | (bias != 0)
        stays = np.flatnonzero(reaching & (nonzero | keep_constant))
        kept.append(stays if stays.size else np.arange(1))
    return [*kept, np.arange(kernels[-1].shape[1])]


def _checked(masks: Masks, layers: Sequence[str]) -> list[tuple[str, Any]]:
    kernels = chain(masks, layers)
    for path, kernel in zip(layers, kernels, strict=True):
        if kernel.ndim != 2:
            raise ValueError(
                f"`remove` works on dense kernels [in, out] only, got shape {kernel.shape} at "
                f"{path!r}. Masks of convolutions can be measured by `live`."
            )
    return list(zip(layers, kernels, strict=True))


def _concrete(leaf: Any, path: str) -> Any:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            f"`remove` cannot be traced, since the masks decide the shapes; the leaf at {path!r} "
            "is a tracer. Call it outside jit and vmap."
        )
    return leaf


def _bias_path(path: str) -> str | None:
    """Where the bias beside a kernel would be; None for a kernel of another name."""
    parts = path.split("/")
    if "kernel" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("kernel")
    return "/".join([*parts[:last], "bias", *parts[last + 1 :]])


def _bias(found: dict[str, Any], path: str, kernel: np.ndarray) -> np.ndarray:
    """The bias beside a kernel, zeros where there is none."""
    beside = _bias_path(path)
    if beside is None or beside not in found:
        return np.zeros(kernel.shape[1])
    bias = np.asarray(_concrete(found[beside], beside))
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"The bias at {beside!r} must be {kernel.shape[1:]}, got {bias.shape}.")
    return bias


def _check_only(found: dict[str, Any], layers: Sequence[str]) -> None:
    known = {*layers, *map(_bias_path, layers)}
    for path in found:
        if path not in known:
            raise ValueError(
                f"`params` has a leaf at {path!r} that is neither a kernel of `layers` nor the "
                "bias beside one, and `remove` would leave its shape as it is."
            )
