"""Chunks of a sweep in its store, each sealed with what it was computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from nopr.sweeps import lanes
from nopr.sweeps.cases import Hosted
from nopr.sweeps.plans import Plan
from nopr.sweeps.programs import Batching

PLAN = "plan"


@runtime_checkable
class Store(Protocol):
    """Where finished chunks are kept, by name."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """The arrays stored under `name`, or None where there are none that can be trusted."""
        ...

    def put(self, name: str, arrays: Mapping[str, Any], /) -> Any:
        """Stores arrays under `name`, whole or not at all; called from a thread, one at a time."""
        ...


def seal(*, function: str, shared: Hosted, plan: Plan, batching: Batching) -> dict[str, str]:
    """What all chunks of a sweep were computed from, in words that can be compared."""
    return {
        "function": function,
        "shared": bytes_digest(shared, shared.leaves),
        "block": str(plan.block),
        "batching": f"{batching}-{lanes.VERSION}" if batching == "lanes" else batching,
    }


def bytes_digest(like: Hosted, leaves: Iterable[np.ndarray]) -> str:
    """The SHA-256 of leaves: dtypes, shapes and bytes, and where they stand in their tree."""
    total = hashlib.sha256(f"{like.treedef} {like.generators}".encode())
    for leaf in leaves:
        total.update(f"{leaf.dtype} {leaf.shape}\n".encode())
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def chunk_name(chunk: range) -> str:
    """Such as `chunk-00000000-00000128`."""
    return f"chunk-{chunk.start:08d}-{chunk.stop:08d}"


def load(
    store: Store,
    name: str,
    seal: Callable[[], Mapping[str, str]],
    shapes: list[jax.ShapeDtypeStruct],
    count: int,
) -> tuple[list[np.ndarray] | None, str]:
    """The chunk under `name`, or None and what is wrong with it (nothing, where there is none)."""
    found = store.get(name)
    if found is None:
        return None, ""
    expected = seal()
    for key, value in expected.items():
        if str(found.get(key)) != value:
            return None, _difference(key, str(found.get(key)), value)
    names = [f"leaf_{i}" for i in range(len(shapes))]
    if set(found) != {*expected, *names}:
        return None, "of other results"
    leaves = [np.asarray(found[name]) for name in names]
    for leaf, like in zip(leaves, shapes, strict=True):
        if leaf.shape != (count, *like.shape) or leaf.dtype != like.dtype:
            return None, "of other results"
    return leaves, ""


class Writer:
    """Keeps finished chunks while the next ones are computed, one at a time and in order.

    The end of the `with` waits for the last chunk, however it comes, and raises what went wrong
    with it unless something else is being raised.
    """

    def __init__(self, store: Store | None):
        self._store = store
        self._thread = None if store is None else ThreadPoolExecutor(1, "chunks")
        self._last: Future[Any] | None = None

    def __enter__(self) -> Writer:
        return self

    def save(
        self, name: str, seal: Callable[[], Mapping[str, str]], leaves: list[np.ndarray]
    ) -> None:
        """Keeps a chunk; waits for the one before, and raises what went wrong with it."""
        if self._thread is not None:
            self._wait()
            self._last = self._thread.submit(self._put, name, seal, leaves)

    def _put(
        self, name: str, seal: Callable[[], Mapping[str, str]], leaves: list[np.ndarray]
    ) -> None:
        arrays = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
        if self._store is not None:
            self._store.put(name, {**seal(), **arrays})

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        self._thread.shutdown()
        if kind is None:
            self._wait()


def load_plan(store: Store, function: str, cases: int) -> Plan | None:
    """The sizes that an earlier run of this function over as many cases settled."""
    found = store.get(PLAN)
    try:
        if found is None or (str(found["function"]), int(found["cases"])) != (function, cases):
            return None
        block, chunk = int(found["block"]), int(found["chunk"])
    except (KeyError, TypeError, ValueError):
        return None
    return Plan(block, chunk) if 1 <= block <= chunk and chunk % block == 0 else None


def save_plan(store: Store, function: str, cases: int, plan: Plan) -> None:
    """Keeps the sizes, so that a run that goes on has the same."""
    store.put(PLAN, {"function": function, "cases": cases, **plan._asdict()})


def _difference(key: str, there: str, here: str) -> str:
    if key in ("block", "batching"):
        return f"of another {key} ({there} there, {here} here)"
    return "of other cases" if key == "cases" else f"of another `{key}`"
