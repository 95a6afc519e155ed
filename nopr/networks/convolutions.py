"""Two-dimensional convolutions, computed by XLA or as one matrix product of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from nopr.networks.choices import check_choice

Implementation: TypeAlias = Literal["patches", "xla"]
"""How a convolution is computed; see `Conv`."""

Padding: TypeAlias = str | int | Sequence[tuple[int, int]]
"""`"VALID"`, `"SAME"`, zeros on every side, or (before, after) for height and for width."""

Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


def resolved(implementation: str | None) -> Implementation:
    """The implementation that is meant: None is "patches" on a CPU and "xla" elsewhere."""
    if implementation is None:
        return "patches" if jax.default_backend() == "cpu" else "xla"
    check_choice("implementation", implementation, Implementation)
    return "patches" if implementation == "patches" else "xla"


def convolve(
    inputs: Num[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns group_channels features"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    implementation: str | None = None,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves images, channels last, with a kernel; `Conv` describes the options.

    Raises:
      ValueError: If an option is unknown or does not fit the channels of the images and the kernel.
    """
    channels, features = inputs.shape[-1], kernel.shape[-1]
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(
            f"`groups` must divide the {channels} input channels and the {features} features, "
            f"got {groups}."
        )
    pads = _pads(padding, inputs.shape[1:3], kernel.shape[:2], strides)
    if resolved(implementation) == "patches":
        return _as_patches(inputs, kernel, strides, pads, groups)
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    return jax.lax.conv_general_dilated(
        inputs.astype(dtype),
        kernel.astype(dtype),
        window_strides=strides,
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pads(
    padding: Padding, image: Sequence[int], window: Sequence[int], strides: tuple[int, int]
) -> Pads:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"`padding` must be 'SAME', 'VALID' or numbers, got {padding!r}.")
        (top, bottom), (left, right) = jax.lax.padtype_to_pads(image, window, strides, padding)
        return (top, bottom), (left, right)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def _as_patches(
    inputs: Array, kernel: Array, strides: tuple[int, int], pads: Pads, groups: int
) -> Array:
    if any(before or after for before, after in pads):
        inputs = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    rows, columns, _, features = kernel.shape
    height = (inputs.shape[1] - rows) // strides[0] + 1
    width = (inputs.shape[2] - columns) // strides[1] + 1
    # In two stages, which takes 2 sqrt(n) slices instead of n: first along a row, then down.
    strip = _joined(inputs, 2, columns, strides[1], width)
    patches = _joined(strip, 1, rows, strides[0], height)
    if groups == 1:
        flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    else:
        flat = jnp.einsum(
            "pkgc,kcgf->pgf",
            patches.reshape(-1, rows * columns, groups, inputs.shape[-1] // groups),
            kernel.reshape(rows * columns, -1, groups, features // groups),
        )
    return flat.reshape(-1, height, width, features)


def _joined(values: Array, axis: int, offsets: int, stride: int, length: int) -> Array:
    """The slices of `values` that begin at each offset, joined along the channels."""
    reach = (length - 1) * stride + 1
    slices = [
        jax.lax.slice_in_dim(values, offset, offset + reach, stride, axis)
        for offset in range(offsets)
    ]
    return jnp.concatenate(slices, axis=-1)
