"""The options that say which axes of a kernel play a part."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from nopr.typing import shown

Axes: TypeAlias = int | Sequence[int] | Mapping[str, Any] | None
"""The option of which axes play a part: one or several, or `{path: axes}`."""


def of_leaf(
    given: Any, path: str, shape: tuple[int, ...], *, default: Any, role: str, argument: str
) -> tuple[int, ...]:
    """The axes of one leaf, from an option for all leaves or `{path: axes}`, counted from 0.

    Args:
      given: An axis or several, `{path: axes}`, or None.
      path: The path of the leaf.
      shape: Its shape.
      default: The axes of a leaf for which none are given.
      role: What the axes do, for errors.
      argument: The name of the option.

    Raises:
      ValueError: If none are given for a leaf of three dimensions, or the leaf lacks one of them.
    """
    asked = given.get(path) if isinstance(given, Mapping) else given
    if asked is None and len(shape) == 3:
        raise ValueError(
            f"`{argument}` must be given for {path!r}: a kernel of three dimensions, {shape}, may "
            f"be one of a 1-D convolution or of attention. Pass `{argument}={{{path!r}: ...}}`, "
            f"{role}."
        )
    asked = default if asked is None else asked
    several = _several(asked)
    places = [int(a) % len(shape) for a in several if -len(shape) <= a < len(shape)]
    if len(set(places)) < len(several):
        raise ValueError(
            f"`{argument}` must be axes of the leaf at {path!r}, of shape {shape}, got "
            f"{shown(asked)}. Give others, or leave it out with `where`."
        )
    return tuple(places)


def check(given: Any, *, argument: str) -> tuple[str, ...]:
    """Checks that an option is axes, or `{path: axes}`, or None; returns the paths.

    Raises:
      ValueError: If it is something else.
    """
    named = dict(given) if isinstance(given, Mapping) else {}
    values = [given] if not isinstance(given, Mapping) and given is not None else named.values()
    if not all(isinstance(path, str) for path in named) or not all(map(_several, values)):
        raise ValueError(
            f"`{argument}` must be whole numbers, or {{path: whole numbers}}, got {shown(given)}."
        )
    return tuple(named)


def _several(axes: Any) -> tuple[int, ...]:
    """One axis or several as a tuple; empty if they are not whole numbers."""
    several = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    whole = [isinstance(a, int | np.integer) and not isinstance(a, bool) for a in several]
    return several if all(whole) else ()


def check_known(path: str, known: Iterable[str], *, argument: str, name: str) -> None:
    """Checks that a path that an argument names is one of a tree's.

    Raises:
      ValueError: If it is not; the message has the nearest path.
    """
    known = list(known)
    if path not in known:
        nearest = difflib.get_close_matches(path, known, n=1, cutoff=0)
        hint = f"The nearest of its paths is {nearest[0]!r}." if nearest else "It has no leaves."
        raise ValueError(f"`{argument}` names {path!r}, where `{name}` has no leaf. {hint}")
