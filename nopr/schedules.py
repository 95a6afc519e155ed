"""Density schedules: a constructor takes the target and returns `step -> density`.

Steps run from 0 (the initial density) to `steps` (the target), where the density stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from nopr import budgets
from nopr.typing import whole_number

Schedule: TypeAlias = Callable[[float], float]


def one_shot(*, density: float, steps: int = 1, initial: float = 1.0) -> Schedule:
    """The initial density before the last step, the target from then on."""
    _check(density, steps, initial)
    return lambda step: density if step >= steps else initial


def linear(*, density: float, steps: int, initial: float = 1.0) -> Schedule:
    """Equal differences between steps."""
    _check(density, steps, initial)
    return _ending(density, steps, lambda t: initial + (density - initial) * t)


def exponential(*, density: float, steps: int, initial: float = 1.0) -> Schedule:
    r"""Equal ratios between steps: :math:`d_i (d_f / d_i)^{t/T}`.

    Source: SynFlow's schedule, Tanaka et al. 2020, arXiv:2006.05467.
    """
    _check(density, steps, initial)
    return _ending(density, steps, lambda t: initial * (density / initial) ** t)


def cubic(*, density: float, steps: int, initial: float = 1.0) -> Schedule:
    r"""Fast at first, slow at the end: sparsity :math:`s_f + (s_i - s_f)(1 - t/T)^3`.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.
    """
    _check(density, steps, initial)
    return _ending(density, steps, lambda t: density + (initial - density) * (1 - t) ** 3)


def _ending(density: float, steps: int, at: Schedule) -> Schedule:
    """A schedule that follows `at(progress)` and is exactly `density` from the last step on."""
    return lambda step: density if step >= steps else at(max(step / steps, 0.0))


def _check(density: float, steps: int, initial: float) -> None:
    budgets.check_density(density)
    budgets.check_density(initial, name="initial")
    if not density <= initial <= 1 or initial == 0:
        raise ValueError(f"`initial` must be in (0, 1] and at least `density`, got {initial}.")
    whole_number("steps", steps, most=budgets.MOST)
