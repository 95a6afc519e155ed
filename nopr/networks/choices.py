"""Checks of the options that networks have in common."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Checks that `value` is one of the strings of the Literal type `choices`."""
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_at_least_one(**values: Any) -> None:
    """Checks that every value, passed by its name, is an integer of at least 1."""
    for name, value in values.items():
        if not is_positive_integer(value):
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def is_positive_integer(value: Any) -> bool:
    """Whether `value` is an integer (True and False are not) of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= 1


def check_images(input_shape: Any, width: float = 1.0) -> None:
    """Checks the shape of an image, and the width multiplier of a network for it."""
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(map(is_positive_integer, shape)):
        raise ValueError(
            f"`input_shape` must be (height, width, channels), positive integers, got {shape}."
        )
    if not 0 < width < float("inf"):
        raise ValueError(f"`width` must be a positive number, got {width}.")
