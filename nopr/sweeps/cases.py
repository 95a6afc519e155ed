"""Cases on the host: their number, their rows, and the shapes of a single case."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from nopr import trees
from nopr.typing import is_key

_PACKED = {"int2", "uint2", "int4", "uint4", "float4_e2m1fn"}  # by XLA, in parts of bytes


class Hosted(NamedTuple):
    """A pytree on the host, with typed keys as their data."""

    leaves: list[np.ndarray]
    generators: tuple[Any, ...]
    """For each leaf, the implementation of its typed keys, or None."""
    treedef: Any

    def rows(self, index: np.ndarray) -> list[np.ndarray]:
        """The leaves of some cases."""
        return [leaf[index] for leaf in self.leaves]


def case_count(cases: PyTree, *, name: str = "cases") -> int:
    """The length of the leading axis that all leaves of `cases` share.

    Raises:
      ValueError: If there are no cases, or the leading axes differ; the message names the leaf, and
        calls the cases `name`.
    """
    leaves = jax.tree.leaves(cases)
    if not leaves:
        raise ValueError(f"`{name}` must have at least one array, got none.")
    for path, leaf in trees.by_path(cases, name).items():
        shape = np.shape(leaf)
        if not shape or not shape[0]:
            raise ValueError(
                f"`{name}` must have a leading axis of at least one case, got shape {shape} at "
                f"{path!r}. Stack the cases, or split a key."
            )
        if shape[0] != len(leaves[0]):
            raise ValueError(
                f"`{name}` must share one leading axis, got {shape[0]} cases at {path!r} and "
                f"{len(leaves[0])} at {trees.paths(cases)[0]!r}. Close over what all cases share."
            )
    return len(leaves[0])


def hosted(tree: PyTree) -> Hosted:
    """Brings a tree to the host, in the dtypes in which JAX computes."""
    leaves, treedef = jax.tree.flatten(tree)
    generators = tuple(jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in leaves)
    data = [
        np.asarray(jax.random.key_data(leaf)) if is_key(leaf) else _canonical(leaf)
        for leaf in leaves
    ]
    return Hosted(data, generators, treedef)


def rebuilt(like: Hosted, leaves: list[Any]) -> PyTree:
    """Rebuilds a tree from leaves like the hosted ones; also works under a trace."""
    values = [
        leaf if generator is None else jax.random.wrap_key_data(leaf, impl=generator)
        for leaf, generator in zip(leaves, like.generators, strict=True)
    ]
    return jax.tree.unflatten(like.treedef, values)


def shape_of_one(cases: Hosted) -> PyTree:
    """The shapes and dtypes of a single case."""
    return jax.eval_shape(
        lambda leaves: rebuilt(cases, leaves),
        [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in cases.leaves],
    )


def _canonical(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.name in _PACKED:
        raise ValueError(
            f"`cases` and `shared` must have dtypes of whole bytes, got {array.dtype}. "
            "Convert it to int8 or a float8."
        )
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
