"""Paired comparisons over seeds, and their p-values corrected for how many were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from nopr.lab import tables


class Difference(NamedTuple):
    """A mean difference over seeds, with its 95% interval and the p-value of no difference."""

    interval: tables.Interval
    p_value: float


def paired(one: Any, other: Any) -> Difference:
    r"""The mean of `one - other` over seeds, tested by a paired t-test.

    Pairs that all differ by the same amount have a p-value of 0, or of 1 if that amount is 0; a
    single pair proves nothing and has a p-value of 1.

    Args:
      one: Results, one per seed.
      other: Results of the same seeds, in the same order.

    Returns:
      The difference; its p-value is two-sided.

    Raises:
      ValueError: If the shapes differ, or there is no seed or a number that is not finite.
    """
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"`one` and `other` must be vectors of one length, got shapes {first.shape} and "
            f"{second.shape}."
        )
    interval = tables.mean_interval(first - second)
    n = interval.n
    if n == 1 or interval.mean == 0:
        return Difference(interval, 1.0)
    error = float(np.std(first - second, ddof=1)) / n**0.5
    tail = 0.0 if error == 0 else special.stdtr(n - 1, -abs(interval.mean) / error)
    return Difference(interval, float(2 * tail))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values corrected by Holm's method, so that all claims below 5% hold together at 5%.

    Args:
      p_values: P-values of all tests that were made, each in [0, 1].

    Returns:
      The corrected p-values, in the same order.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected
