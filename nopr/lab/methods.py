"""The pruners that experiments compare, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import checkify

from nopr import criteria, densities, granularity, pruning, schedules, sweeps, trees
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
"""The name of each method in tables and figures, in their order there."""

AT_INIT = ("random", "magnitude_init", "snip", "grasp", "synflow")
"""Methods that choose their mask before training."""

AFTER_TRAINING = ("magnitude_after", "units_after")
"""Methods that choose their mask on the trained dense network and continue from it."""


class Problem(NamedTuple):
    """What a pruner needs to know about its network.

    Attributes:
      apply: `apply(params, inputs) -> outputs`.
      loss: Loss that SNIP differentiates.
      grasp_loss: Loss that GraSP differentiates; the paper divides the logits by 200.
      input_shape: Shape of one input, for SynFlow.
      layers: Paths of the kernels from input to output, for whole units.
      like: Shapes of the prunable leaves, None elsewhere; see `trees.select`.
      where: Predicate for prunable leaves.
    """

    apply: Apply
    loss: Loss
    grasp_loss: Loss
    input_shape: tuple[int, ...]
    layers: tuple[str, ...]
    like: Any
    where: Where = trees.is_prunable

    @property
    def shapes(self) -> Shapes:
        """Shapes of the prunable leaves, in leaf order."""
        return trees.shapes(self.like)

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs, in the order of the network."""
        found = dict(zip(trees.paths(self.like), self.shapes, strict=True))
        kernels = [found[path] for path in self.layers]
        return (kernels[0][-2], *(shape[-1] for shape in kernels))

    @property
    def size(self) -> int:
        """The number of prunable weights."""
        return sum(math.prod(shape) for shape in self.shapes)


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
    """The pruner of a method; its counts are given in each call, see `plan`."""
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
      Kept weights: one count; one per layer for random masks, by ERK; one per round for SynFlow.
      For whole units, the kept units of each hidden layer in leaf order, where layer_10 precedes
      layer_2.
    """
    if name == "units_after":
        units = granularity.sizes(granularity.units(problem.layers), trees.select(problem.like))
        return np.array([kept_units(tuple(units.values()), density)], np.int32)
    if name == "random":
        return np.array([densities.erk(problem.shapes, density=density)], np.int32)
    if name != "synflow":
        return np.array(round(density * problem.size), np.int32)
    at = schedules.exponential(density=density, steps=synflow_rounds)
    return pruning.level_counts(problem.size, [at(step) for step in range(1, synflow_rounds + 1)])


def kept_units(widths: Sequence[int], density: float) -> tuple[int, ...]:
    """Units left in hidden layers of these widths after whole units are pruned."""
    return tuple(round(density * width) for width in widths)


def imp_levels(targets: Sequence[float], *, removal: float) -> tuple[list[float], list[int]]:
    """Densities of the IMP rounds, and the indices of the targets among them.

    Between one target and the next the rounds are geometric and remove at most `removal` of the
    weights that are left.
    """
    levels, hits, last = [], [], 1.0
    for target in targets:
        rounds = max(1, math.ceil(math.log(target / last) / math.log(1 - removal) - 1e-9))
        at = schedules.exponential(density=target / last, steps=rounds)
        levels += [last * at(step) for step in range(1, rounds)] + [target]
        hits.append(len(levels) - 1)
        last = target
    return levels, hits


def trainings(name: str, density: float, *, densities: Sequence[float], removal: float) -> int:
    """The number of trainings before a method has its mask at one of the densities."""
    if name == "imp":
        _, hits = imp_levels(list(densities), removal=removal)
        return hits[list(densities).index(density)] + 1
    return 1 if name in AFTER_TRAINING else 0


def checked_text(checked: int, initializations: int) -> str:
    """States on how many initializations `information.exact` confirmed H(m | D) = 0."""
    return f"H(m | D) = 0 checked on {min(checked, initializations)} of {initializations}"


def over_seeds(
    name: str, function: Any, cases: Any, *, shared: Any = None, block: int | None = None
) -> Any:
    """Sweeps `function` over seeds; a failed check raises an error with the method's name.

    In a compiled program `masks.top` cannot raise for scores that are not finite: uncaught, they
    would give a mask like any other.

    Args:
      name: Name of the method.
      function: `function(case)`, or `function(case, shared)`.
      cases: Cases, stacked over seeds.
      shared: Arrays that all seeds read.
      block: Seeds in one vmapped call on a device; see `sweeps.run`.
    """
    check = checkify.checkify(function, errors=checkify.user_checks)
    error, found = sweeps.run(check, cases, shared=shared, block=block).values
    raise_failed(error, repr(TITLES[name]))
    return found


def raise_failed(error: checkify.Error, networks: str) -> None:
    """Raises the first failed check of a program that chose masks.

    Args:
      error: Error of a function made by `checkify.checkify`, which may be batched.
      networks: What has no mask, for the message.

    Raises:
      ValueError: If a check failed.
    """
    failed = error.get()
    if failed is not None:
        first = failed.splitlines()[0].removesuffix("(`check` failed)").strip().rstrip(".")
        raise ValueError(f"No mask for {networks}: {first}.")
