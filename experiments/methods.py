"""The pruners that the experiments compare, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nopr import criteria, densities, granularity, pruning, schedules, trees
from nopr.typing import Apply, Criterion, Loss, Pruner, Shapes, Where

TITLES = {
    "imp": "IMP",
    "magnitude_after": "magnitude after training",
    "units_after": "units after training",
    "magnitude_init": "magnitude at init",
    "synflow": "SynFlow",
    "grasp": "GraSP",
    "snip": "SNIP",
    "random": "random (ERK)",
}
"""How each method is called in tables and figures, in their order there."""

AT_INIT = ("random", "magnitude_init", "snip", "grasp", "synflow")
"""The methods that choose their mask before training."""


class Problem(NamedTuple):
    """What a pruner has to be told of the network that it prunes.

    Attributes:
      apply: `apply(params, inputs) -> outputs`.
      loss: What SNIP differentiates.
      grasp_loss: What GraSP differentiates: the paper divides the logits by 200.
      input_shape: Of one input, for SynFlow.
      layers: The kernels from input to output, for whole units.
      shapes: Of the prunable leaves, in leaf order, for ERK.
      where: Which leaves are prunable.
    """

    apply: Apply
    loss: Loss
    grasp_loss: Loss
    input_shape: tuple[int, ...]
    layers: tuple[str, ...]
    shapes: Shapes
    where: Where = trees.is_prunable

    @property
    def size(self) -> int:
        """The number of prunable weights."""
        return sum(math.prod(shape) for shape in self.shapes)


def check(names: tuple[str, ...]) -> tuple[str, ...]:
    """Checks that there are names, and that every one is a method.

    Raises:
      ValueError: If there are none; else naming the first that is no method.
    """
    if not names:
        raise ValueError(f"`methods` must name at least one of {', '.join(sorted(TITLES))}.")
    for name in names:
        if name not in TITLES:
            raise ValueError(f"`methods` must be of {', '.join(sorted(TITLES))}, got {name!r}.")
    return tuple(names)


def criterion(name: str, problem: Problem) -> Criterion:
    """The criterion that a method scores with."""
    makers: dict[str, Callable[[], Criterion]] = {
        "random": lambda: criteria.random(where=problem.where),
        "snip": lambda: criteria.snip(problem.loss, where=problem.where),
        "grasp": lambda: criteria.grasp(problem.grasp_loss, where=problem.where),
        "synflow": lambda: criteria.synflow(
            problem.apply, input_shape=problem.input_shape, where=problem.where
        ),
    }
    return makers.get(name, lambda: criteria.magnitude(where=problem.where))()


def pruner(name: str, problem: Problem, *, synflow_rounds: int) -> Pruner:
    """The pruner of a method; its counts come with each call, see `plan`."""
    if name == "units_after":
        return pruning.pruner(
            criteria.magnitude(),
            scope="layer",
            granularity=granularity.units(problem.layers),
        )
    rounds = synflow_rounds if name == "synflow" else 1
    return pruning.pruner(criterion(name, problem), rounds=rounds)


def plan(name: str, density: float, problem: Problem, *, synflow_rounds: int) -> np.ndarray:
    """What a method's pruner keeps for a density of all prunable weights.

    Returns:
      Kept weights: a count; one a layer for random masks, by ERK; one a round for SynFlow.
    """
    if name == "random":
        return np.array([densities.erk(problem.shapes, density=density)], np.int32)
    if name != "synflow":
        return np.array(round(density * problem.size), np.int32)
    at = schedules.exponential(density=density, steps=synflow_rounds)
    return pruning.level_counts(problem.size, [at(step) for step in range(1, synflow_rounds + 1)])


def kept_units(widths: Sequence[int], density: float) -> tuple[int, ...]:
    """What is left of hidden layers of these widths when whole units are pruned."""
    return tuple(round(density * width) for width in widths)
