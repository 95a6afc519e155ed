"""Storing a sweep costs at most 2% of it, and resuming from the store next to nothing.

A sweep of tiny nets (1,792 datasets x 64 initializations, 500 steps, 21 parameters each): without a
store; with `records.Store`, in a fresh directory each time; and again with every chunk stored.
Chunks take half a second of one core, the recommended minimum; then, as the worst case, each is one
block, and storing it takes about as long as training the nets. All three take turns and must give
the same bits. Goal: at most 2% at the larger chunks. Half a minute.

    python -m experiments.benchmarks.the_store_costs_little
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.exact_information_is_cheap import cube_datasets, initialize, step
from nopr import sweeps
from nopr.lab import records

STEPS, REPEATS = 500, 5
PLANS = {"32 blocks": (64, 32), "1 block": (32, 1)}
"""By size of a chunk: the number of blocks in the sweep and in a chunk."""


class Round(NamedTuple):
    """Seconds of one repeat.

    Attributes:
      without: Of the sweep without a store.
      stored: Of the sweep with one.
      inside: In its `get` and `put`, which may run while the next chunk is computed.
      resumed: Of the sweep with all its chunks in the store.
    """

    without: float
    stored: float
    inside: float
    resumed: float


class Clocked:
    """A store that measures its time and counts its chunks."""

    def __init__(self, store: sweeps.Store):
        self.seconds, self.found, self.written, self._store = 0.0, 0, 0, store

    def get(self, name: str, /) -> Mapping[str, Any] | None:
        """Calls the wrapped store."""
        begin = time.perf_counter()
        values = self._store.get(name)
        self.seconds += time.perf_counter() - begin
        self.found += values is not None and name.startswith("chunk")
        return values

    def put(self, name: str, arrays: Mapping[str, Any], /) -> None:
        """Calls the wrapped store."""
        begin = time.perf_counter()
        self._store.put(name, arrays)
        self.seconds += time.perf_counter() - begin
        self.written += name.startswith("chunk")


def main(
    *, steps: int = STEPS, plans: Mapping[str, tuple[int, int]] = PLANS, repeats: int = REPEATS
) -> None:
    """Prints the table.

    Args:
      steps: Gradient steps of each training.
      plans: Number of blocks in the sweep and in each chunk, by name of the row.
      repeats: Timed rounds, after one that compiles.
    """
    train = _training(steps)
    print(f"chunks of blocks of {len(cube_datasets()[1]):,} trainings of {steps} steps")
    print(f"{'':10}{'seconds a chunk':>29}{'the store costs':>30}{'resuming':>10}")
    print(
        f"{'a chunk':10}{'without':>9}{'stored':>10}{'resumed':>10}"
        f"{'median':>10}{'of mins':>10}{'inside':>10}{'costs':>10}"
    )
    for name, (blocks, chunk) in plans.items():
        sweep = _sweep(train, blocks, chunk)
        rounds = [_round(sweep, blocks // chunk) for _ in range(repeats + 1)][1:]
        _print_row(name, rounds, blocks // chunk)
    print(
        f"medians of {repeats} rounds; `of mins` compares the fastest sweeps, `inside` is in `put`"
    )
    print("goal: at most 2% at the larger chunks")


def _training(steps: int) -> Callable[..., Any]:
    def train(case: Any) -> Any:
        *data, key = case
        return jax.lax.scan(
            lambda params, _: (step(params, data), None), initialize(key), length=steps
        )[0]

    return train


def _sweep(train: Any, blocks: int, chunk: int) -> Callable[[Any], Any]:
    """A function from a store to the sweep; each block holds the datasets under its own key."""
    inputs, labels = cube_datasets()
    block = len(labels)
    keys = jax.numpy.repeat(jax.random.split(jax.random.key(0), blocks), block)
    cases = (np.tile(inputs, (blocks, 1, 1)), np.tile(labels, (blocks, 1)), keys)
    settings: Any = {"block": block, "chunk": chunk * block, "batching": "lanes"}
    return lambda store: sweeps.run(train, cases, store=store, **settings).values


def _round(sweep: Callable[[Any], Any], chunks: int) -> Round:
    """One sweep each way, in a temporary directory.

    Raises:
      RuntimeError: If their bits differ, or chunks were not written or found.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = records.Store(Path(directory), {"jax": jax.__version__})
        writing, reading = Clocked(store), Clocked(store)
        found, seconds = [], []
        for given in (None, writing, reading):
            begin = time.perf_counter()
            found.append(sweep(given))
            seconds.append(time.perf_counter() - begin)
    jax.tree.map(lambda *leaves: [_check_same(leaves[0], leaf) for leaf in leaves[1:]], *found)
    if (writing.written, reading.found, reading.written) != (chunks, chunks, 0):
        raise RuntimeError(
            f"Of {chunks} chunks {writing.written} were written, {reading.found} found again and "
            f"{reading.written} computed again."
        )
    without, stored, resumed = seconds
    return Round(without, stored, writing.seconds, resumed)


def _check_same(reference: np.ndarray, values: np.ndarray) -> None:
    if reference.tobytes() != values.tobytes():
        raise RuntimeError("The store changed the results.")


def _print_row(name: str, rounds: list[Round], chunks: int) -> None:
    def median(values: Any) -> float:
        return statistics.median(values)

    # Each is divided by the sweep beside it, so that a slow moment hits both.
    cost = median(each.stored / each.without for each in rounds) - 1
    least = min(each.stored for each in rounds) / min(each.without for each in rounds) - 1
    inside = median(each.inside / each.without for each in rounds)
    resuming = median(each.resumed / each.without for each in rounds)
    without, stored, resumed = (
        median(getattr(each, field) for each in rounds) / chunks
        for field in ("without", "stored", "resumed")
    )
    print(
        f"{name:10}{without:9.3f}{stored:10.3f}{resumed:10.4f}"
        f"{cost:10.1%}{least:10.1%}{inside:10.1%}{resuming:10.1%}"
    )


if __name__ == "__main__":
    main()
