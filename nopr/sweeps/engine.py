"""The engine: cases in blocks on devices, blocks in chunks on disk, chunks over processes."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from nopr import jaxprs, processes, trees
from nopr.sweeps import memory, plans, programs, stored
from nopr.sweeps.cases import Hosted, case_count, hosted
from nopr.sweeps.plans import Plan
from nopr.sweeps.programs import Batching, Program
from nopr.sweeps.stored import Store
from nopr.typing import Progress, Status, check_choice, check_form, is_key


class Swept(NamedTuple):
    """Results of a sweep."""

    values: PyTree
    """The results of the function as NumPy arrays, with a leading axis of cases on every leaf."""
    finite: np.ndarray
    """bool [cases]: whether every floating or complex result of the case is finite."""

    @property
    def failures(self) -> list[int]:
        """The indices of the cases that gave NaN or infinity."""
        return np.flatnonzero(~self.finite).tolist()

    @property
    def finite_values(self) -> PyTree:
        """The results of all other cases, in their order."""
        return jax.tree.map(lambda leaf: leaf[self.finite], self.values)


class _Sweep(NamedTuple):
    """Everything fixed before the first block runs."""

    cases: Hosted
    traced: jaxprs.Traced
    program: Program
    shared: list[Any]
    plan: Plan
    seal: dict[str, str]
    store: Store | None

    def seal_of(self, chunk: range) -> dict[str, str]:
        """The seal of a chunk: digests of what it is computed from."""
        rows = self.cases.rows(np.arange(chunk.start, chunk.stop))
        return {**self.seal, "cases": stored.bytes_digest(self.cases, rows)}

    def keep(self, store: Store, chunk: range, leaves: list[np.ndarray]) -> None:
        """Stores the results of a chunk."""
        arrays = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
        store.put(stored.chunk_name(chunk), {**self.seal_of(chunk), **arrays})


def run(
    function: Callable[..., PyTree],
    cases: PyTree,
    *,
    shared: PyTree = None,
    block: int | None = None,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    mesh: Mesh | None = None,
    batching: Batching = "vmap",
    store: Store | None = None,
    progress: Progress | None = None,
    say: Callable[[str], Any] | None = None,
) -> Swept:
    """Runs `function` on every case: vmapped in blocks, over all devices and processes.

    Every block runs the same program, compiled once; the last block is padded with copies of its
    last case, whose results are dropped. For a given `block`, size of XLA's thread pool and kind of
    device, the bits of the results do not depend on the number of devices and processes, the chunk,
    the order of the cases or interruptions. Results of different blocks agree to within rounding,
    since XLA vectorizes them differently.

    Under `nopr.processes`, every process calls this with the same arguments, computes its share of
    the chunks and gets all results. Processes need not share a store: each reads its own.

    Args:
      function: `function(case) -> results`, or `function(case, shared)` with `shared`; pure;
        results are a pytree of arrays. It is traced once per function object, so pass the same
        object when you call again.
      cases: A pytree of arrays and typed keys that share a leading axis of cases. (Keys of JAX's
        `rbg` generators draw other numbers in a batch than alone, so with them results do depend
        on the block and on the order of the cases.)
      shared: Arrays that every case reads, such as a dataset; stored once per device.
      block: Cases per vmapped call on one device. By default each device's whole share (an eighth
        of it with a store, so that a kill cannot lose everything), and at most as many as fit in
        `memory_bytes`. With a store and no sizes given, the sizes of the previous run are used.
      chunk: Cases stored together, rounded up to whole blocks; by default one block, or more if
        there would be over 100 chunks.
      memory_bytes: Memory for a block on each device if `block` is not given: arguments, results
        and temporaries of the compiled program. By default 90% of the free memory of a GPU or TPU,
        and half of the free memory of a host, divided by its devices.
      mesh: A mesh with an axis `runs` of devices; work is repeated along other axes. All devices
        by default.
      batching: `"vmap"`, or `"lanes"` (`sweeps.vmap_lanes`), which puts the batch on the last axis
        and unrolls tiny contractions: many times faster for networks of a few dozen weights, with
        different last bits.
      store: Store of finished chunks. A stored chunk is not computed again if cases, function,
        `shared`, block, batching, shapes and dtypes are the same. The function must not call back
        Python code (`jax.pure_callback`), since a change there would go unnoticed.
      progress: Function of a `Status`, called after every block.
      say: Function of a line of text, called when stored chunks do not fit; prints to stderr by
        default.

    Returns:
      The results in the order of the cases, and which of them are finite.

    Raises:
      ValueError: If there are no cases or their leading axes differ; if an option is out of range,
        unknown or of the wrong type, or `mesh` has no axis `runs`; if `function` returns typed
        keys, or calls Python code with a `store`; if not even one case fits in memory; or if the
        processes sweep different cases.
      Exception: Any error of the store when it cannot keep a chunk; earlier chunks are kept.
      processes.Lost: If another process did not answer.

    Example:
      >>> import jax
      >>> from nopr import sweeps
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> swept = sweeps.run(lambda key: {"mean": jax.random.normal(key, (50,)).mean()}, keys)
      >>> swept.values["mean"].shape, swept.failures
      ((1000,), [])
    """
    check_choice("batching", batching, Batching)
    if store is not None and not isinstance(store, Store):
        raise ValueError(
            "`store` must have `get` and `put`, as `records.Store` has, "
            f"got {type(store).__name__}."
        )
    sizes = plans.checked_sizes(block=block, chunk=chunk, memory_bytes=memory_bytes)
    form = "(case)" if shared is None else "(case, shared)"
    check_form(function, form, name="function", remedy="It is called with each case.")
    for leaf in jax.tree.leaves(shared):
        if not is_key(leaf):
            trees.numbers(leaf, "shared")
    n, say = case_count(cases), say or partial(print, file=sys.stderr, flush=True)
    sweep = _settle(
        function,
        hosted(cases),
        shared,
        say=say,
        sizes=sizes,
        mesh=programs.runs_mesh(mesh),
        batching=batching,
        store=store,
    )
    every = sweep.plan.chunks(n)
    mine = every[processes.index() :: processes.count()]
    found = _from_store(sweep, mine, say)
    parts = _collected(sweep, mine, found, progress)
    leaves = _gathered(sweep, every, parts)
    values = jax.tree.unflatten(jax.tree.structure(sweep.traced.out_shape), leaves)
    return Swept(values, _finite(leaves, n))


def _settle(
    function: Callable[..., PyTree],
    cases: Hosted,
    shared: PyTree,
    *,
    sizes: tuple[int | None, ...],
    mesh: Mesh,
    batching: Batching,
    store: Store | None,
    say: Callable[[str], Any],
) -> _Sweep:
    n = len(cases.leaves[0])
    traced = programs.trace(function, cases, shared)
    block, chunk, memory_bytes = sizes
    calls = [] if store is None else jaxprs.opaque(traced.program)
    if calls:
        raise ValueError(
            f"`function` calls Python code ({', '.join(calls)}), and a change of that code would "
            "not invalidate stored results. Sweep without `store`, or write it in JAX."
        )

    def program(block: int) -> Program:
        return programs.compiled(traced, cases, shared, block=block, mesh=mesh, batching=batching)

    function_digest = "" if store is None else jaxprs.digest(traced.program)
    keeper = store if processes.index() == 0 else None  # of the sizes
    before = None if keeper is None else stored.load_plan(keeper, function_digest, n)
    plan = None if block is None else plans.plan(n, block=block, chunk=chunk)
    if plan is None and memory_bytes is None and chunk is None:
        plan = before
    _check_same(traced, cases)
    plan = _agreed(plan)
    if plan is None:
        devices = mesh.shape[programs.RUNS] * processes.count()
        fitting = plans.fitting_block(
            plans.largest_block(n, devices=devices, stored=store is not None),
            memory_bytes=memory.free_bytes(mesh) if memory_bytes is None else memory_bytes,
            needed=lambda size: program(size).memory_bytes,
        )
        plan = plans.plan(n, block=fitting, chunk=chunk)
        plan = _agreed(plan) or plan
    if keeper is not None and plan != before:
        if before is not None:
            say(
                f"The stored chunks have blocks of {before.block} in chunks of {before.chunk}, "
                f"not of {plan.block} in {plan.chunk}; computing the missing ones."
            )
        stored.save_plan(keeper, function_digest, n, plan)
    seal = {} if store is None else stored.seal(function_digest, hosted(shared), plan, batching)
    ready = program(plan.block)
    return _Sweep(cases, traced, ready, ready.place(shared), plan, seal, store)


def _check_same(traced: jaxprs.Traced, cases: Hosted) -> None:
    """Checks that all processes run the same sweep, since each computes only a share of it."""
    if processes.count() == 1:
        return
    here = jaxprs.digest(traced.program) + stored.bytes_digest(cases, cases.leaves)
    there = processes.gather(here.encode())
    differ = [i for i, found in enumerate(there) if found != there[0]]
    if differ:
        raise ValueError(
            "Every process must sweep the same function over the same cases, but those of process "
            f"{differ[0]} differ from those of process 0. Make them from the config and keys alone."
        )


def _agreed(plan: Plan | None) -> Plan | None:
    """The sizes that process 0 has chosen, in every process."""
    text = "" if plan is None else f"{plan.block} {plan.chunk}"
    words = processes.share(text.encode()).decode().split()
    return Plan(*map(int, words)) if words else None


def _from_store(
    sweep: _Sweep, chunks: list[range], say: Callable[[str], Any]
) -> dict[range, list[np.ndarray]]:
    """The stored chunks that fit; reports one line for each reason why others do not."""
    found: dict[range, list[np.ndarray]] = {}
    faults: dict[str, list[str]] = {}
    shapes = jax.tree.leaves(sweep.traced.out_shape)
    store = sweep.store
    if store is None:
        return found
    for chunk in chunks:
        name = stored.chunk_name(chunk)
        there = store.get(name)
        if there is None:
            continue
        try:
            found[chunk] = stored.fitting(there, sweep.seal_of(chunk), shapes, len(chunk))
        except stored.Misfit as fault:
            faults.setdefault(str(fault), []).append(name)
    for fault, names in faults.items():
        more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
        say(f"The stored {names[0]}{more} {fault}; computing again.")
    return found


def _computed(sweep: _Sweep, chunks: list[range]) -> Iterator[tuple[range, list[np.ndarray]]]:
    """Yields the blocks of these chunks and their results, one round over the devices at a time."""
    devices = sweep.program.mesh.shape[programs.RUNS]
    size = sweep.plan.block
    blocks = [block for chunk in chunks for block in sweep.plan.blocks(chunk)]
    for start in range(0, len(blocks), devices):
        taken = blocks[start : start + devices]
        # A partial block repeats its last case, and a partial round its last block.
        filled = taken + taken[-1:] * (devices - len(taken))
        rows = [np.minimum(np.arange(b.start, b.start + size), b.stop - 1) for b in filled]
        leaves = sweep.program(sweep.cases.rows(np.concatenate(rows)), sweep.shared)
        for i, block in enumerate(taken):
            yield block, [leaf[i * size : i * size + len(block)] for leaf in leaves]


def _collected(
    sweep: _Sweep,
    chunks: list[range],
    found: dict[range, list[np.ndarray]],
    progress: Progress | None,
) -> dict[range, list[np.ndarray]]:
    """All these chunks, each stored as soon as it is complete, while the next one is computed."""
    total, loaded = sum(map(len, chunks)), sum(map(len, found))
    failures = sum(int((~_finite(part, len(chunk))).sum()) for chunk, part in found.items())
    parts, done, started = dict(found), loaded, time.monotonic()
    missing = {chunk.stop: chunk for chunk in chunks if chunk not in found}
    pieces: list[list[np.ndarray]] = []
    last: Future[None] | None = None

    def report() -> None:
        if progress is not None:
            progress(Status(done, total, failures, loaded, time.monotonic() - started))

    if loaded:
        report()
    with ThreadPoolExecutor(1, "chunks") as thread:  # exiting waits for the last chunk
        for block, leaves in _computed(sweep, list(missing.values())):
            pieces.append(leaves)
            done += len(block)
            failures += int((~_finite(leaves, len(block))).sum())
            chunk = missing.get(block.stop)
            if chunk is not None:
                parts[chunk] = [np.concatenate(leaf) for leaf in zip(*pieces, strict=True)]
                pieces.clear()
                if last is not None:
                    last.result()
                if sweep.store is not None:
                    last = thread.submit(sweep.keep, sweep.store, chunk, parts[chunk])
            report()
        if last is not None:
            last.result()
    return parts


def _gathered(
    sweep: _Sweep, chunks: list[range], parts: dict[range, list[np.ndarray]]
) -> list[np.ndarray]:
    """The results of all processes, leaf by leaf, in the order of the cases."""
    count = processes.count()
    for start in range(0, len(chunks), count) if count > 1 else ():
        turn = chunks[start : start + count]
        mine = [parts.get(chunk) for chunk in turn[processes.index() :][:1]]
        for chunk, data in zip(turn, processes.gather(pickle.dumps(mine)), strict=False):
            (parts[chunk],) = pickle.loads(data)
    leaves = range(len(jax.tree.leaves(sweep.traced.out_shape)))
    return [np.concatenate([parts[chunk][i] for chunk in chunks]) for i in leaves]


def _finite(leaves: list[np.ndarray], n: int) -> np.ndarray:
    flags = np.ones(n, bool)
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):  # NumPy's does not know bfloat16
            flags &= np.isfinite(leaf).reshape(n, -1).all(axis=1)
    return flags
