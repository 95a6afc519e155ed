"""Two-dimensional convolutions of images, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from nopr import convolutions, trees
from nopr.typing import shown, whole_number

Padding: TypeAlias = str | int | Sequence[tuple[int, int]]
"""`"VALID"`, `"SAME"`, a number of zeros per side, or (before, after) for height and width."""

_MOST_PIXELS = 2**16  # XLA ends the process where a size overflows


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
    inputs, kernel = (
        jnp.asarray(trees.numbers(value, name))
        for name, value in (("inputs", inputs), ("kernel", kernel))
    )
    for name, value in (("inputs", inputs), ("kernel", kernel)):
        if value.ndim != 4:
            raise ValueError(f"`{name}` must have four dimensions, got shape {value.shape}.")
    channels, features = inputs.shape[-1], kernel.shape[-1]
    groups = whole_number("groups", groups)
    if channels % groups or features % groups:
        raise ValueError(
            f"`groups` must divide the {channels} input channels and the {features} features, "
            f"got {groups}."
        )
    if kernel.shape[2] != channels // groups:
        raise ValueError(
            f"`kernel` must have {channels // groups} input channels, those of the images divided "
            f"by `groups`, got shape {kernel.shape}."
        )
    if not _are_pairs([strides], least=1):
        raise ValueError(
            f"`strides` must be two whole numbers of at least 1, got {shown(strides)}."
        )
    pads = _pads(padding, inputs.shape[1:3], kernel.shape[:2], strides)
    for size, taps, ends in zip(inputs.shape[1:], kernel.shape, pads, strict=False):
        if not 1 <= taps <= size + sum(ends):
            raise ValueError(
                f"`kernel` must fit into the images with their padding, got shape {kernel.shape} "
                f"for images of shape {inputs.shape} with `padding` {pads}."
            )
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    layout = jax.lax.conv_dimension_numbers(inputs.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    chosen = convolutions.resolve(implementation, name="implementation")
    patches = chosen == "patches" and inputs.size and kernel.size
    run = convolutions.convolve if patches else jax.lax.conv_general_dilated
    return run(
        inputs.astype(dtype),
        kernel.astype(dtype),
        window_strides=strides,
        padding=pads,
        dimension_numbers=layout,
        feature_group_count=groups,
    )


def _pads(
    padding: Padding, image: Sequence[int], window: Sequence[int], strides: tuple[int, int]
) -> Sequence[tuple[int, int]]:
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        return jax.lax.padtype_to_pads(image, window, strides, padding)
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    if not isinstance(pads, tuple | list) or len(pads) != 2 or not _are_pairs(pads, least=0):
        raise ValueError(
            "`padding` must be 'SAME', 'VALID' or numbers, (before, after) for height and for "
            f"width, got {shown(padding)}."
        )
    return pads


def _are_pairs(values: Sequence[Any], *, least: int) -> bool:
    """Whether every value is a pair of whole numbers from `least` to `_MOST_PIXELS`."""

    def good(number: Any) -> bool:
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        return whole and least <= int(number) <= _MOST_PIXELS

    return all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(map(good, pair))
        for pair in values
    )
