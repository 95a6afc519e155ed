"""Chunks of a sweep in its store, each with a seal: digests of what it was computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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
    """A store of finished chunks, by name."""

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """Returns the arrays stored under `name`, or None if there are none that are intact."""
        ...

    def put(self, name: str, arrays: Mapping[str, Any], /) -> Any:
        """Stores arrays under `name`, whole or not at all; called from a thread, one at a time."""
        ...


class Misfit(Exception):
    """A stored chunk belongs to another sweep; the message has the difference."""


def seal(function: str, shared: Hosted, plan: Plan, batching: Batching) -> dict[str, str]:
    """The part of the seal that all chunks of a sweep share."""
    return {
        "function": function,
        "shared": bytes_digest(shared, shared.leaves),
        "block": str(plan.block),
        "batching": f"{batching}-{lanes.VERSION}" if batching == "lanes" else batching,
    }


def bytes_digest(like: Hosted, leaves: Iterable[np.ndarray]) -> str:
    """The SHA-256 of leaves: dtypes, shapes, bytes, and the structure of their tree."""
    total = hashlib.sha256(f"{like.treedef} {like.generators}".encode())
    for leaf in leaves:
        total.update(f"{leaf.dtype} {leaf.shape}\n".encode())
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def chunk_name(chunk: range) -> str:
    """The name of a chunk, such as `chunk-00000000-00000128`."""
    return f"chunk-{chunk.start:08d}-{chunk.stop:08d}"


def fitting(
    found: Mapping[str, Any],
    seal: Mapping[str, str],
    shapes: list[jax.ShapeDtypeStruct],
    count: int,
) -> list[np.ndarray]:
    """The leaves of a stored chunk of `count` cases.

    Raises:
      Misfit: If the seal or the leaves differ.
    """
    for key, here in seal.items():
        there = str(found.get(key))
        if there == here:
            continue
        if key in ("block", "batching"):
            raise Misfit(f"for another {key} ({there} stored, {here} here)")
        raise Misfit("for other cases" if key == "cases" else f"for another `{key}`")
    names = [f"leaf_{i}" for i in range(len(shapes))]
    expected = [((count, *like.shape), like.dtype) for like in shapes]
    leaves = [np.asarray(found.get(name)) for name in names]
    if set(found) != {*seal, *names} or [(x.shape, x.dtype) for x in leaves] != expected:
        raise Misfit("for other results")
    return leaves


def load_plan(store: Store, function: str, cases: int) -> Plan | None:
    """The sizes that an earlier run of this function over as many cases chose, if any."""
    found = store.get(PLAN)
    try:
        if found is None or (str(found["function"]), int(found["cases"])) != (function, cases):
            return None
        block, chunk = int(found["block"]), int(found["chunk"])
    except (KeyError, TypeError, ValueError):
        return None
    return Plan(block, chunk) if 1 <= block <= chunk and chunk % block == 0 else None


def save_plan(store: Store, function: str, cases: int, plan: Plan) -> None:
    """Stores the sizes, so that a resumed run has the same."""
    store.put(PLAN, {"function": function, "cases": cases, **plan._asdict()})
