"""Checks of the options that networks have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from nopr.typing import is_real, shown, whole_number

MOST_LAYERS = 10_000
"""The most layers that a network can have here; each is traced by itself."""


def check_at_least_one(**values: Any) -> list[int]:
    """The values as Python integers, each checked by its name to be at least 1."""
    return [whole_number(name, value) for name, value in values.items()]


def is_positive_integer(value: Any) -> bool:
    """Whether `value` is an integer (True and False are not) of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= 1


def check_images(input_shape: Any, width: float = 1.0) -> None:
    """Checks the shape of an image, and the width multiplier of a network for it."""
    shape = input_shape if isinstance(input_shape, tuple | list) else ()
    if len(shape) != 3 or not all(map(is_positive_integer, shape)):
        raise ValueError(
            "`input_shape` must be (height, width, channels), positive integers, got "
            f"{shown(input_shape)}."
        )
    if not is_real(width) or width <= 0:
        raise ValueError(f"`width` must be a positive number, got {shown(width)}.")
