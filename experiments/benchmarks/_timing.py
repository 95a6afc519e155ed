"""Ways to do the same work: checked for equal results, then timed in turns."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Trained nets: kernels [run, in, out] and biases [run, out] of each layer."""


class Way(NamedTuple):
    """One way to do the work.

    Attributes:
      run: Function that does it and returns the result on the host.
      times: Number of such calls in the whole work; above 1 the row is extrapolated.
      threads: Number of threads, if chosen for it.
    """

    run: Callable[[], Any]
    times: float = 1.0
    threads: int | None = None


class Row(NamedTuple):
    """Seconds of a way: the first call beyond the median, then least and median of the work."""

    compile_seconds: float
    least_seconds: float
    median_seconds: float


def first_calls(ways: Mapping[str, Way]) -> tuple[dict[str, Any], dict[str, float]]:
    """The result of each way, and the seconds of this call, which may compile."""
    found, taken = {}, {}
    for name, way in ways.items():
        begin = time.perf_counter()
        found[name] = way.run()
        taken[name] = time.perf_counter() - begin
    return found, taken


def take_turns(
    ways: Mapping[str, Way], firsts: Mapping[str, float], *, repeats: int
) -> dict[str, Row]:
    """Times each way `repeats` times after its first call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds(way.run))
    rows = {}
    for name, later in taken.items():
        median, times = statistics.median(later), ways[name].times
        compiling = max(firsts[name] - median, 0.0)
        rows[name] = Row(compiling, times * min(later), times * median)
    return rows


def print_table(ways: Mapping[str, Way], rows: Mapping[str, Row], *, runs: int) -> None:
    """Prints seconds, runs a second and the ratio to the first way."""
    reference = next(iter(rows.values())).median_seconds
    print(
        f"{'':31}{'compile':>9}{'min':>9}{'median':>9}{'runs/s':>11}{'ratio':>9}"
        f"{'threads':>9}{'timed on':>10}"
    )
    for name, row in rows.items():
        share = f"1/{ways[name].times:.0f}" if ways[name].times > 1 else "all"
        print(
            f"{name:31}{row.compile_seconds:9.2f}{row.least_seconds:9.3f}"
            f"{row.median_seconds:9.3f}{runs / row.median_seconds:11,.1f}"
            f"{row.median_seconds / reference:9,.1f}{ways[name].threads or '':>9}{share:>10}"
        )


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def check_agreement(found: Mapping[str, Layers], *, tolerance: float) -> float:
    """The largest difference of any weight from the first way's, over the runs in common.

    Raises:
      RuntimeError: If it exceeds `tolerance`; names the way, which cannot be compared.
    """
    (_, reference), *others = found.items()
    largest = 0.0
    for name, layers in others:
        difference = float(np.max(_differences(reference, layers)))  # NaN if one is
        if not difference <= tolerance:
            raise RuntimeError(
                f"{name!r} trained other nets: weights differ by {difference:.2g}, "
                f"above {tolerance:.2g}."
            )
        largest = max(largest, difference)
    return largest


def _differences(reference: Layers, layers: Layers) -> Sequence[float]:
    return [
        float(np.max(np.abs(theirs - ours[: len(theirs)])))
        for pair, other in zip(reference, layers, strict=True)
        for ours, theirs in zip(pair, other, strict=True)
    ]


def pytorch_or_say() -> ModuleType | None:
    """The ways in PyTorch, or None and one line where torch is not installed."""
    try:
        return importlib.import_module("experiments.benchmarks._pytorch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("torch is not installed, so its rows are left out: pip install -e '.[bench]'")
        return None
