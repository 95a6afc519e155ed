"""Leaves: as rows of the manifest, as arrays on the host, and back as what they were."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nopr import trees


class Stored(NamedTuple):
    """The array that stands for a leaf, and the generator of a typed PRNG key."""

    array: np.ndarray
    generator: str | None


def rows(tree: PyTree) -> list[dict[str, Any]]:
    """What the manifest says of each leaf, and what a target must agree with."""
    return [_row(path, leaf) for path, leaf in _named(tree)]


def on_host(tree: PyTree) -> list[Stored]:
    """Copies of the leaves that nothing else writes to.

    Raises:
      ValueError: If a leaf is spread over processes; names it.
    """
    for path, leaf in _named(tree):
        if isinstance(leaf, jax.Array):
            if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                raise ValueError(
                    f"`tree` has a leaf at {path!r} that is spread over processes "
                    f"({leaf.sharding}). Replicate it, or gather it, before it is saved."
                )
            if not _is_key(leaf):
                leaf.copy_to_host_async()  # All leaves on their way at once.
    return [_stored(leaf) for leaf in jax.tree.leaves(tree)]


def check_rows(there: list[dict[str, Any]], target: PyTree, *, name: str) -> None:
    """Checks that the rows of a checkpoint are those of `target`.

    Raises:
      ValueError: Naming the first leaf in which they differ.
    """
    for old, new in itertools.zip_longest(there, rows(target)):
        if old != new:
            raise ValueError(
                f"The checkpoint {name!r} does not match `target`: it has "
                f"{_phrase(old)}, where `target` has {_phrase(new)}."
            )


def as_target(values: list[np.ndarray], generators: list[str | None], target: PyTree) -> PyTree:
    """The stored arrays as a tree like `target`, each the kind of thing that the target has."""
    leaves = [
        _like(value, generator, leaf)
        for value, generator, leaf in zip(values, generators, jax.tree.leaves(target), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(trees.path_string(path), leaf) for path, leaf in found]


def _row(path: str, leaf: Any) -> dict[str, Any]:
    like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if not (_is_key(like) or jnp.issubdtype(like.dtype, np.number) or like.dtype == bool):
        raise ValueError(
            f"`tree` must hold arrays and numbers, got {type(leaf).__name__} at {path!r}."
        )
    if 0 in like.shape:
        raise ValueError(
            f"`tree` has a leaf of size 0 at {path!r} (shape {tuple(like.shape)}), which a "
            "checkpoint cannot hold. Leave it out, or put None there."
        )
    return {"path": path, "shape": list(like.shape), "dtype": str(like.dtype)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Stored:
    if _is_key(leaf):
        return Stored(_owned(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    return Stored(_owned(leaf), None)


def _owned(leaf: Any) -> np.ndarray:
    """A copy; on the CPU NumPy looks into the buffer of jax itself, elsewhere it has its own."""
    found = np.asarray(leaf)
    return found if isinstance(leaf, jax.Array) and found.flags.owndata else np.array(found)


def _like(value: np.ndarray, generator: str | None, leaf: Any) -> Any:
    if generator is not None:
        return jax.random.wrap_key_data(_placed(value, leaf), impl=generator)
    if isinstance(leaf, np.generic):
        return np.asarray(value)[()]
    if isinstance(leaf, np.ndarray):
        return np.asarray(value)
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(np.asarray(value).item())
    return _placed(value, leaf)


def _placed(value: Any, leaf: Any) -> jax.Array:
    """A JAX array as `leaf` is: where it is, free to move if that is, and weak if that is."""
    if getattr(leaf, "weak_type", False) and value.shape == ():
        weak = jnp.asarray(value.item())  # A number of Python's is weak: it takes others' dtypes.
        value = weak if weak.dtype == value.dtype else value
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _phrase(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no such leaf"
    return f"{row['dtype']}{row['shape']} at {row['path']!r}"
