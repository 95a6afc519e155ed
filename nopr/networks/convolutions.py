"""Two-dimensional convolutions of images, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from nopr import convolutions

Padding: TypeAlias = str | int | Sequence[tuple[int, int]]
"""`"VALID"`, `"SAME"`, a number of zeros per side, or (before, after) for height and width."""


def convolve(
    inputs: Num[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns group_channels features"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    implementation: str = "auto",
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
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    layout = jax.lax.conv_dimension_numbers(inputs.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    chosen = convolutions.resolve(implementation, name="implementation")
    run = convolutions.convolve if chosen == "patches" else jax.lax.conv_general_dilated
    return run(
        inputs.astype(dtype),
        kernel.astype(dtype),
        window_strides=strides,
        padding=_pads(padding, inputs.shape[1:3], kernel.shape[:2], strides),
        dimension_numbers=layout,
        feature_group_count=groups,
    )


def _pads(
    padding: Padding, image: Sequence[int], window: Sequence[int], strides: tuple[int, int]
) -> Sequence[tuple[int, int]]:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"`padding` must be 'SAME', 'VALID' or numbers, got {padding!r}.")
        return jax.lax.padtype_to_pads(image, window, strides, padding)
    return [(padding, padding)] * 2 if isinstance(padding, int) else padding
