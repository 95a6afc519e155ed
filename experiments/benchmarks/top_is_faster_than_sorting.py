"""An exact count by bisection costs a fraction of a sort.

`masks.top` keeps 5% of 14.7 million float32 scores in three leaves: exactly that many, even if all
scores tie. The alternatives are what one would write instead, on the scores already joined to a
vector. A threshold keeps too many where scores tie; only `argsort` is as exact. NumPy's partition
is the fastest way to a threshold, but leaves the device and cannot be jitted or vmapped. Goal:
within half a second on two cores. About a minute.

    python -m experiments.benchmarks.top_is_faster_than_sorting
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nopr import masks, trees

SHAPES = {"conv": (3, 3, 512, 512), "dense_0": (4096, 2048), "dense_1": (2048, 1953)}
DENSITY, REPEATS = 0.05, 3
REFERENCE = "masks.top"


def main(*, shapes: Mapping[str, tuple[int, ...]] = SHAPES, repeats: int = REPEATS) -> None:
    """Prints the tables.

    Args:
      shapes: Shape of each leaf of the scores.
      repeats: Timed calls of each way, after one that compiles.
    """
    rng = np.random.default_rng(0)
    noise = {
        name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()
    }
    ties = {name: jnp.ones(shape) for name, shape in shapes.items()}
    for title, scores in (("normal scores", noise), ("all scores equal", ties)):
        size = sum(math.prod(shape) for shape in shapes.values())
        wanted = round(DENSITY * size)
        print(f"{title}: keep {wanted:,} of {size:,} in {len(shapes)} leaves")
        _print_table(_ways(scores, wanted), repeats)
    print("goal: masks.top within 0.5 s")


def _ways(scores: dict[str, Any], k: int) -> dict[str, Callable[[], Any]]:
    """Ways to masks; each but the first gets the scores as one vector, joined beforehand."""
    vector, _ = trees.ravel(scores)
    host = np.asarray(vector)
    jitted = jax.jit(lambda scores: masks.top(scores, count=k, warn=False))
    by_sort = jax.jit(lambda v: v >= jnp.sort(v)[-k])
    by_top_k = jax.jit(lambda v: v >= jax.lax.top_k(v, k)[0][-1])
    by_argsort = jax.jit(lambda v: jnp.zeros(v.shape, bool).at[jnp.argsort(-v)[:k]].set(True))
    return {
        REFERENCE: lambda: masks.top(scores, density=DENSITY, warn=False),
        "masks.top under jit": lambda: jitted(scores),
        "np.partition threshold": lambda: host >= np.partition(host, -k)[-k],
        "jnp.sort threshold": lambda: by_sort(vector),
        "jax.lax.top_k threshold": lambda: by_top_k(vector),
        "jnp.argsort, scattered": lambda: by_argsort(vector),
    }


def _print_table(ways: dict[str, Callable[[], Any]], repeats: int) -> None:
    """The seconds of each way, their ratio to the first, and the number of scores kept.

    The ways take turns, so that a slow moment hits all of them.
    """
    kept = {name: _count(way()) for name, way in ways.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_seconds(way))
    reference = statistics.median(seconds[REFERENCE])
    print(f"{'':<25}{'min s':>8}{'median s':>10}{'ratio':>8}{'kept':>13}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:<25}{min(values):>8.3f}{median:>10.3f}{median / reference:>8.1f}"
            f"{kept[name]:>13,}"
        )
    print(f"median of {repeats} calls; ratio to {REFERENCE}")


def _count(kept: Any) -> int:
    return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(kept))


def _seconds(way: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(way())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
