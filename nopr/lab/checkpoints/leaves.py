"""Leaves of a checkpoint: their description, their copies on the host, and their restoration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nopr import trees
from nopr.typing import is_key


def rows(tree: PyTree) -> list[dict[str, Any]]:
    """The path, shape and dtype of each leaf, which a target must match."""
    found = [_row(path, leaf) for path, leaf in _named(tree)]
    if not found:
        raise ValueError("`tree` must have at least one array, got none.")
    return found


def on_host(tree: PyTree) -> dict[str, Any]:
    """Copies of the leaves that nothing else writes to, and what is needed to read them.

    Raises:
      ValueError: If a leaf is spread over processes, or is not an array or number; the message
        names it.
    """
    described = json.dumps(rows(tree))
    for path, leaf in _named(tree):
        if isinstance(leaf, jax.Array):
            if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                raise ValueError(
                    f"`tree` has a leaf at {path!r} that is spread over processes "
                    f"({leaf.sharding}). Replicate it, or gather it, before it is saved."
                )
            if not is_key(leaf):
                leaf.copy_to_host_async()  # Copies all leaves at once.
    arrays, generators = {}, {}
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        arrays[str(index)] = _owned(leaf)
        if is_key(leaf):
            generators[str(index)] = str(jax.random.key_impl(leaf))
    return {"leaves": described, "generators": generators, "arrays": arrays}


def as_target(found: Mapping[str, Any], target: PyTree, *, name: str) -> PyTree:
    """The arrays of a checkpoint as a tree like `target`, each leaf of the same kind.

    Args:
      found: Result of `on_host`, as stored.
      target: Tree to match.
      name: Name of the checkpoint, for messages.

    Raises:
      ValueError: Naming the first leaf in which the checkpoint and `target` differ.
    """
    for old, new in itertools.zip_longest(json.loads(str(found["leaves"])), rows(target)):
        if old != new:
            raise ValueError(
                f"The checkpoint {name!r} does not match `target`: it has "
                f"{_phrase(old)}, where `target` has {_phrase(new)}."
            )
    leaves, structure = jax.tree.flatten(target)
    generators = found.get("generators", {})
    values = [
        _like(found["arrays"][str(index)], leaf, generators.get(str(index)))
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, values)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(trees.path_string(path), leaf) for path, leaf in found]


def _row(path: str, leaf: Any) -> dict[str, Any]:
    like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    known = is_key(like) or jnp.issubdtype(like.dtype, np.number) or like.dtype == bool
    if not known or np.ma.isMaskedArray(leaf):
        raise ValueError(
            f"`tree` must hold arrays and numbers, got {type(leaf).__name__} at {path!r}."
        )
    return {"path": path, "shape": list(like.shape), "dtype": str(like.dtype)}


def _owned(leaf: Any) -> np.ndarray:
    """A copy: on the CPU, NumPy views JAX's own buffer; elsewhere it owns one."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    found = np.asarray(leaf)
    return found if isinstance(leaf, jax.Array) and found.flags.owndata else np.array(found)


def _like(value: Any, leaf: Any, generator: Any) -> Any:
    if generator is not None:
        return jax.random.wrap_key_data(_placed(value, leaf), impl=str(generator))
    if isinstance(leaf, np.generic):
        return np.asarray(value)[()]
    if isinstance(leaf, np.ndarray):
        return np.asarray(value)
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(np.asarray(value).item())
    return _placed(value, leaf)


def _placed(value: Any, leaf: Any) -> jax.Array:
    """A JAX array with the sharding of `leaf`, uncommitted or weakly typed if `leaf` is."""
    if getattr(leaf, "weak_type", False) and value.shape == ():
        weak = jnp.asarray(value.item())  # A Python number is weakly typed.
        value = weak if weak.dtype == value.dtype else value
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _phrase(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no such leaf"
    return f"{row['dtype']}{row['shape']} at {row['path']!r}"
