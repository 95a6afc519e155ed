"""One pure function over many cases: seeds, datasets, densities.

Cases are vmapped in blocks of a fixed size, one compiled program for all of them; a finished block
goes to a store, if there is one, so that a sweep that is killed goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nopr import trees


@runtime_checkable
class Store(Protocol):
    """Where finished blocks are kept, by name."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """The arrays stored under `name`, or None where there are none that can be trusted."""
        ...

    def put(self, name: str, arrays: Mapping[str, Any], /) -> Any:
        """Stores arrays under `name`, whole or not at all."""
        ...


@runtime_checkable
class Progress(Protocol):
    """What is told after every block."""

    def __call__(self, done: int, total: int, failures: int, /) -> Any:
        """Takes the cases finished, all cases, and those that were not finite."""
        ...


class Swept(NamedTuple):
    """Results of a sweep."""

    values: PyTree
    """What the function returned, a leading case axis on every leaf; NumPy arrays."""
    finite: np.ndarray
    """bool [cases]: whether every floating or complex result of the case is finite."""

    @property
    def failures(self) -> list[int]:
        """The indices of the cases that gave NaN or infinity."""
        return np.flatnonzero(~self.finite).tolist()


def run(
    function: Callable[..., PyTree],
    cases: PyTree,
    *,
    shared: PyTree = None,
    block: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Runs `function` on every case, vmapped in blocks.

    The last block is padded with copies of its last case, so that every block is the same program;
    the copies' results are dropped. Results depend on `block` in the last bits (XLA vectorises
    another batch size in another way) and on nothing else.

    Args:
      function: `function(case) -> results`, or `function(case, shared)` with `shared`; pure;
        results are a pytree of arrays. It is compiled once for each function object, so pass the
        same one when you call again.
      cases: A pytree whose leaves share a leading case axis; typed keys are welcome.
      shared: Arrays that every case reads, such as a data set; passed to the compiled program
        rather than built into it.
      block: Cases per vmapped call; all of them by default.
      store: Keeps finished blocks; blocks found there are not computed again, unless they are of
        other cases, or of other shapes or dtypes. It must be one that only this function and this
        `shared` use.
      progress: Called after every block.

    Returns:
      The results in case order, and which of them are finite.

    Raises:
      ValueError: If there are no cases, their leading axes differ, or `block` is below 1.
    """
    n = case_count(cases)
    size = n if block is None else min(block, n)
    if size < 1:
        raise ValueError(f"`block` must be at least 1, got {block}.")
    program = _program(function, shared is not None)
    extra = () if shared is None else (shared,)
    parts, failures = [], 0
    for start in range(0, n, size):
        stop = min(start + size, n)
        name = f"block-{start:08d}-{stop:08d}"
        taken = _take(cases, np.minimum(np.arange(start, start + size), stop - 1))
        seal = "" if store is None else _digest(_take(cases, np.arange(start, stop)))
        part = _load(store, name, seal, stop - start, lambda t=taken: program.eval_shape(t, *extra))
        if part is None:
            values = program(taken, *extra)
            part = jax.tree.map(lambda leaf, k=stop - start: np.asarray(leaf)[:k], values)
            _save(store, name, seal, part)
        parts.append(part)
        failures += int((~_finite(part, stop - start)).sum())
        if progress is not None:
            progress(stop, n, failures)
    values = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return Swept(values, _finite(values, n))


def case_count(cases: PyTree) -> int:
    """The length of the leading axis that all leaves of `cases` share.

    Raises:
      ValueError: If there is none, or a leaf has another; the message names it.
    """
    leaves = jax.tree.leaves(cases)
    if not leaves or jnp.ndim(leaves[0]) == 0 or len(leaves[0]) == 0:
        raise ValueError("`cases` must have a leading axis of at least one case, got none.")
    n = len(leaves[0])
    for path, leaf in zip(trees.paths(cases), leaves, strict=True):
        if jnp.ndim(leaf) == 0 or len(leaf) != n:
            raise ValueError(
                f"`cases` must share their leading axis of {n}, got shape {jnp.shape(leaf)} "
                f"at {path!r}."
            )
    return n


@functools.lru_cache(maxsize=16)  # bounded, so that compiled programs are let go of
def _program(function: Callable[..., PyTree], shares: bool) -> Any:
    return jax.jit(jax.vmap(function, in_axes=(0, None) if shares else 0))


def _take(cases: PyTree, index: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], cases)


def _digest(cases: PyTree) -> str:
    """The SHA-256 of the cases of a block: paths, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for path, leaf in zip(trees.paths(cases), jax.tree.leaves(cases), strict=True):
        kind = str(leaf.dtype)  # of keys it names their implementation
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            array = np.asarray(jax.random.key_data(leaf))
        else:
            array = np.asarray(leaf)
        total.update(f"{path} {kind} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _load(
    store: Store | None, name: str, seal: str, count: int, shapes: Callable[[], PyTree]
) -> PyTree | None:
    """The block of `count` cases under `name`; None unless it is of these cases and shapes."""
    found = None if store is None else store.get(name)
    if found is None or str(found.get("cases")) != seal:
        return None
    likes, treedef = jax.tree.flatten(shapes())
    names = _leaf_names(len(likes))
    if set(found) != {"cases", *names}:
        return None
    leaves = [np.asarray(found[leaf]) for leaf in names]
    for leaf, like in zip(leaves, likes, strict=True):
        if leaf.shape != (count, *like.shape[1:]) or leaf.dtype != like.dtype:
            return None
    return jax.tree.unflatten(treedef, leaves)


def _save(store: Store | None, name: str, seal: str, part: PyTree) -> None:
    if store is not None:
        leaves = jax.tree.leaves(part)
        arrays = dict(zip(_leaf_names(len(leaves)), leaves, strict=True))
        store.put(name, {"cases": seal, **arrays})


def _leaf_names(count: int) -> list[str]:
    return [f"leaf_{i}" for i in range(count)]


def _finite(values: PyTree, n: int) -> np.ndarray:
    flags = np.ones(n, bool)
    for leaf in jax.tree.leaves(values):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):  # NumPy's own knows no bfloat16
            flags &= np.isfinite(leaf).reshape(n, -1).all(axis=1)
    return flags
