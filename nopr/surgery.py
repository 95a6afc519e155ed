"""Which kept weights matter, and the removal of units that do not.

A kept weight is *live* if it lies on a path of kept weights from an input to an output. The others
count towards the density but do not affect the outputs; the effective density leaves them out. The
functions take an explicit, ordered list of kernel paths, since the leaves of a dict sort Dense_10
before Dense_2. They warn of concrete masks that leave no path; for traced masks, use `connected`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map_with_path
from jaxtyping import Array, Bool, Float, Int

from nopr import masks as masks_
from nopr import trees
from nopr.granularity import chain, inputs_from
from nopr.typing import Masks, Params, check_flags


def live(masks: Masks, layers: Sequence[str]) -> Masks:
    """Masks of the kept weights that lie on a path from an input to an output.

    A path goes through dense kernels by units, through convolutions by channels, and from a
    convolution to a dense kernel by a channels-last flatten. Biases make no path: a unit that only
    its bias reaches is a constant. Works under jit and vmap.

    Args:
      masks: Masks of a sequential network; each kernel is [in, out] or [height, width, in, out].
      layers: The path of every kernel, from the input to the output.

    Returns:
      Masks like `masks`, a subset of them.

    Raises:
      ValueError: If `layers` does not fit the masks; the message names the leaf.

    Warns:
      UserWarning: If concrete masks leave no path; the message names the layer where it breaks.
    """
    return _live(masks, layers)


def connected(masks: Masks, layers: Sequence[str]) -> Bool[Array, ""]:
    """Whether a path of kept weights leads from an input to an output.

    Without a path, the outputs are constants. Works under jit and vmap.

    Args:
      masks: Masks of a sequential network, as in `live`.
      layers: The path of every kernel, from the input to the output.

    Raises:
      ValueError: If `layers` does not fit the masks; the message names the leaf.
    """
    return _reached(_kernels(masks, layers))[-1]


def effective_count(masks: Masks, layers: Sequence[str]) -> Int[Array, ""]:
    """The number of live weights; warns as `live` does."""
    return _count(_live(masks, layers))


def effective_density(masks: Masks, layers: Sequence[str]) -> Float[Array, ""]:
    """Live over prunable weights, in [0, 1]; at most the density. Warns as `live` does.

    Source: Vysogorets & Kempe 2023, arXiv:2107.02306.
    """
    return _count(_live(masks, layers)) / max(masks_.size(masks), 1)


class Connectivity(NamedTuple):
    """What a mask leaves of a sequential network; layers by path, in the order of `layers`."""

    density: Float[Array, ""]
    """Kept over prunable weights."""
    effective_density: Float[Array, ""]
    """Live over prunable weights."""
    live: dict[str, Int[Array, ""]]
    """Live weights of each layer; all 0 if there is no path through the network."""
    collapsed: dict[str, Bool[Array, ""]]
    """Whether a layer has no kept weight at all."""
    dead_units: dict[str, Int[Array, ""]]
    """Hidden units (channels) on no path, by the layer that computes them."""
    disconnected_inputs: Int[Array, ""]
    """Inputs (input channels) of the network that reach no output."""
    disconnected_outputs: Int[Array, ""]
    """Outputs of the network that no input reaches: constants."""


def connectivity(masks: Masks, layers: Sequence[str]) -> Connectivity:
    """Densities, dead units, collapsed layers, and inputs and outputs that are cut off.

    Works under jit and vmap, and does not warn of masks that leave no path.

    Args:
      masks: Masks of a sequential network, as in `live`.
      layers: The path of every kernel, from the input to the output.

    Raises:
      ValueError: If `layers` does not fit the masks; the message names the leaf.

    Example:
      >>> import numpy as np
      >>> from nopr import surgery
      >>> kept = {"a": np.array([[1, 0, 1], [0, 0, 1]], bool), "b": np.array([[1], [1], [0]], bool)}
      >>> found = surgery.connectivity(kept, ["a", "b"])  # unit 0 alone is on a path
      >>> int(found.dead_units["a"]), int(found.disconnected_inputs)
      (2, 1)
      >>> f"{found.density:.2f}, of which live: {found.effective_density:.2f}"
      '0.56, of which live: 0.22'
    """
    kernels = _kernels(masks, layers)
    paths = _on_a_path(kernels)
    live = {path: _count(kernel) for path, kernel in zip(layers, paths, strict=True)}
    units = [jnp.any(kernel, axis=tuple(range(kernel.ndim - 1))) for kernel in paths]
    inputs = jnp.any(paths[0], axis=(*range(paths[0].ndim - 2), paths[0].ndim - 1))
    cut = [jnp.sum(~reached, dtype=jnp.int32) for reached in (*units, inputs)]
    size = max(masks_.size(masks), 1)
    empty = masks_.emptied(masks)
    return Connectivity(
        density=masks_.count(masks) / size,
        effective_density=sum(live.values(), jnp.int32(0)) / size,
        live=live,
        collapsed={path: empty[path] for path in layers},
        dead_units=dict(zip(layers[:-1], cut, strict=False)),
        disconnected_inputs=cut[-1],
        disconnected_outputs=cut[-2],
    )


def remove(
    params: Params,
    masks: Masks,
    layers: Sequence[str],
    *,
    keep_constant: bool = False,
) -> tuple[Params, Masks]:
    """Removes the units that cannot matter from a sequential dense network.

    The masks are applied. A hidden unit is removed if no path leads from it to an output, or if
    its value is always 0: it has no kept weight from a unit that is not itself 0, and its bias is
    absent or 0. A unit that is constant but not 0 stays. The inputs and outputs of the network
    stay, and a layer that would lose every unit keeps its first one. If `apply` works with any
    widths, the outputs are those of the masked network to rounding.

    Args:
      params: A kernel [in, out] at each of `layers`, each with an optional bias [out] at the path
        that has "bias" in place of "kernel", and no other leaf.
      masks: Masks of `params`; concrete, since they determine the shapes.
      layers: The path of every kernel, from the input to the output.
      keep_constant: Whether to keep units whose input is always 0. This is needed for activations
        that are not 0 at 0 (sigmoid, softplus), but not for linear, ReLU, tanh or GELU.

    Returns:
      The smaller params, masks applied, and the smaller masks.

    Raises:
      ValueError: If the trees or `layers` do not match, a kernel is not dense, `params` has a
        leaf that belongs to no layer, or an array is traced; the message names the leaf.

    Warns:
      UserWarning: If the masks leave no path; the message names the layer where it breaks.
    """
    check_flags(keep_constant=keep_constant)
    trees.check_matches(masks, params)
    kernels = [np.asarray(_concrete(leaf, path)) for path, leaf in _checked(masks, layers)]
    _warn_if_broken(kernels, layers, stacklevel=3)
    found = trees.by_path(params, "params")
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


def _kernels(masks: Masks, layers: Sequence[str]) -> list[Any]:
    """The masks of the kernels, in order."""
    masks_.check_bool(masks)
    return chain(masks, layers)


def _live(masks: Masks, layers: Sequence[str], *, stacklevel: int = 4) -> Masks:
    kernels = _kernels(masks, layers)
    _warn_if_broken(kernels, layers, stacklevel=stacklevel)
    alive = dict(zip(layers, _on_a_path(kernels), strict=True))
    return tree_map_with_path(lambda path, _: alive[trees.path_string(path)], masks)


def _on_a_path(kernels: Sequence[Any]) -> list[Array]:
    """For each kernel, its weights on a path of kept weights from an input to an output."""
    rows = zip(kernels, _forward(kernels), _backward(kernels), strict=True)
    return [jnp.asarray(kernel) & ins[:, None] & outs for kernel, ins, outs in rows]


def _count(masks: Masks) -> Int[Array, ""]:
    return sum((jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(masks)), jnp.int32(0))


def _warn_if_broken(kernels: Sequence[Any], layers: Sequence[str], *, stacklevel: int) -> None:
    """Warns of the first layer that no input reaches, if the masks are concrete."""
    if any(isinstance(kernel, jax.core.Tracer) for kernel in kernels):
        return
    with jax.ensure_compile_time_eval():  # the masks may be constants inside a trace
        reached = [bool(flag) for flag in _reached(kernels)]
    if not all(reached):
        warnings.warn(
            "The masks leave no path from the inputs to the outputs, which are constants; it "
            f"breaks at {layers[reached.index(False)]!r}. Keep more weights, or choose them by "
            'layer (`scope="layer"`).',
            UserWarning,
            stacklevel=stacklevel,
        )


def _reached(kernels: Sequence[Any]) -> list[Bool[Array, ""]]:
    """For each kernel, whether an input of the network reaches any of its outputs."""
    return [
        jnp.any(kernel & ins[:, None])
        for kernel, ins in zip(kernels, _forward(kernels), strict=True)
    ]


def _forward(kernels: Sequence[Any]) -> list[Bool[Array, " in"]]:
    """For each kernel, the inputs that an input of the network reaches."""
    reached, outs = [], None
    for kernel in kernels:
        reached.append(inputs_from(outs, kernel.shape))
        outs = jnp.any(kernel & reached[-1][:, None], axis=tuple(range(kernel.ndim - 1)))
    return reached


def _backward(kernels: Sequence[Any]) -> list[Bool[Array, " out"]]:
    """For each kernel, the outputs that reach an output of the network."""
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
        stays = np.flatnonzero(reaching & (nonzero | bool(keep_constant)))
        kept.append(stays if stays.size else np.arange(1))
    return [*kept, np.arange(kernels[-1].shape[1])]


def _checked(masks: Masks, layers: Sequence[str]) -> list[tuple[str, Any]]:
    kernels = _kernels(masks, layers)
    for path, kernel in zip(layers, kernels, strict=True):
        if kernel.ndim != 2:
            raise ValueError(
                f"`remove` takes dense kernels [in, out] only, got shape {kernel.shape} at "
                f"{path!r}. For masks of convolutions, use `live`."
            )
    return list(zip(layers, kernels, strict=True))


def _concrete(leaf: Any, path: str) -> Any:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            f"`remove` cannot be traced, since the masks determine the shapes, but the leaf at "
            f"{path!r} is a tracer. Call it outside jit and vmap."
        )
    return leaf


def _bias_path(path: str) -> str | None:
    """The path of the bias of a kernel; None for a kernel of another name."""
    parts = path.split("/")
    if "kernel" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("kernel")
    return "/".join([*parts[:last], "bias", *parts[last + 1 :]])


def _bias(found: dict[str, Any], path: str, kernel: np.ndarray) -> np.ndarray:
    """The bias of a kernel; zeros if it has none."""
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
                "bias of one, so `remove` cannot give it a fitting shape. Name every kernel."
            )
