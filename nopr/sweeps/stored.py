"""Chunks of a sweep in its store, each sealed with what it was computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from nopr.sweeps import lanes
from nopr.sweeps.cases import Hosted
from nopr.sweeps.plans import Plan

PLAN = "plan"


@runtime_checkable
class Store(Protocol):
    """Where finished chunks are kept, by name."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """The arrays stored under `name`, or None where there are none that can be trusted."""
        ...

    def put(self, name: str, arrays: Mapping[str, Any], /) -> Any:
        """Stores arrays under `name`, whole or not at all."""
        ...


def seal(*, function: str, shared: Hosted, plan: Plan, batching: str) -> dict[str, str]:
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
    store: Store, name: str, seal: Mapping[str, str], shapes: list[jax.ShapeDtypeStruct], count: int
) -> tuple[list[np.ndarray] | None, str]:
    """The chunk under `name`, or None and what is wrong with it (nothing, where there is none)."""
    found = store.get(name)
    if found is None:
        return None, ""
    for key, value in seal.items():
        if str(found.get(key)) != value:
            return None, _difference(key, str(found.get(key)), value)
    names = [f"leaf_{i}" for i in range(len(shapes))]
    if set(found) != {*seal, *names}:
        return None, "of other results"
    leaves = [np.asarray(found[name]) for name in names]
    for leaf, like in zip(leaves, shapes, strict=True):
        if leaf.shape != (count, *like.shape) or leaf.dtype != like.dtype:
            return None, "of other results"
    return leaves, ""


def save(store: Store, name: str, seal: Mapping[str, str], leaves: list[np.ndarray]) -> None:
    """Keeps a finished chunk."""
    store.put(name, {**seal, **{f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}})


def load_plan(store: Store, function: str, cases: str) -> Plan | None:
    """The sizes that an earlier run of this sweep settled."""
    found = store.get(PLAN)
    if found is None or (str(found.get("function")), str(found.get("cases"))) != (function, cases):
        return None
    try:
        block, chunk = int(found["block"]), int(found["chunk"])
    except (KeyError, TypeError, ValueError):
        return None
    return Plan(block, chunk) if 1 <= block <= chunk and chunk % block == 0 else None


def save_plan(store: Store, function: str, cases: str, plan: Plan) -> None:
    """Keeps the sizes, so that a run that goes on has the same."""
    store.put(PLAN, {"function": function, "cases": cases, **plan._asdict()})


def _difference(key: str, there: str, here: str) -> str:
    if key in ("block", "batching"):
        return f"of another {key} ({there} there, {here} here)"
    return "of other cases" if key == "cases" else f"of another `{key}`"
