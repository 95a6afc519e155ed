"""Converts what an experiment returned to a result that a store takes, and back.

Arrays are stored one by one; dicts, lists, tuples and plain values around them as one literal.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, type(None))


def flat(results: Any) -> dict[str, Any]:
    """The arrays by number, and the structure around them as text.

    Raises:
      ValueError: If there is anything but arrays, plain values, and dicts, lists and tuples of
        them; names its type.
    """
    arrays: dict[str, Any] = {}
    tree = repr(_node(results, arrays))
    try:
        ast.literal_eval(tree)
    except (ValueError, SyntaxError) as error:  # as of a key that is an object, or of NaN
        raise ValueError("Keys and numbers of results must be literals.") from error
    return {"tree": tree, "arrays": arrays}


def restored(stored: Mapping[str, Any]) -> Any:
    """The results that `flat` was given, with NumPy arrays."""
    return _value(ast.literal_eval(str(stored["tree"])), stored.get("arrays", {}))


def _node(value: Any, arrays: dict[str, Any]) -> Any:
    """A literal: plain values as they are, the rest as lists that begin with their kind."""
    if type(value) is dict:
        return ["dict", [(key, _node(below, arrays)) for key, below in value.items()]]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_node(below, arrays) for below in value]]
    if type(value) in _PLAIN:
        return value
    import jax  # late, so that the launcher starts without it

    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise ValueError(f"Results must be arrays and plain values, got {type(value).__name__}.")
    arrays[str(len(arrays))] = value
    return ["array", len(arrays) - 1]


def _value(node: Any, arrays: Mapping[str, Any]) -> Any:
    if not isinstance(node, list):
        return node
    kind, inside = node
    if kind == "array":
        return arrays[str(inside)]
    if kind == "dict":
        return {key: _value(below, arrays) for key, below in inside}
    return (list if kind == "list" else tuple)(_value(below, arrays) for below in inside)
