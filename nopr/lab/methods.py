"""The pruners that experiments compare, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.experimental import checkify

from nopr import criteria, densities, granularity, pruning, schedules, sweeps, trees
from nopr.lab import settings
from nopr.typing import (
    Apply,
    Criterion,
    Loss,
    Pruner,
    Scope,
    Shapes,
    Where,
)


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


class Method(NamedTuple):
    """A way to choose masks.

    Attributes:
      title: Name in tables and figures.
      criterion: `criterion(problem)`, what it scores with.
      when: Whether it prunes the initial network, the trained one, or alternates (IMP).
      iterative: Whether it scores and prunes in many rounds of an exponential schedule.
      regrow: Whether removed weights can return in a later round.
      erk: Whether its layers keep the counts of ERK, instead of competing with each other.
      scope: Where its weights compete.
    """

    title: str
    criterion: Callable[[Problem], Criterion]
    when: Literal["init", "trained", "imp"] = "init"
    iterative: bool = False
    regrow: bool = False
    erk: bool = False
    scope: Scope = "global"


def _magnitude(problem: Problem) -> Criterion:
    return criteria.magnitude(where=problem.where)


def _lamp(problem: Problem) -> Criterion:
    return criteria.lamp(where=problem.where)


def _snip(problem: Problem) -> Criterion:
    return criteria.snip(problem.loss, where=problem.where)


def _force(problem: Problem) -> Criterion:
    return criteria.force(problem.loss, where=problem.where)


def _prospr(problem: Problem) -> Criterion:
    return criteria.prospr(problem.loss, learning_rate=0.1, where=problem.where)


METHODS: Mapping[str, Method] = {
    "imp": Method("IMP", _magnitude, "imp"),
    "magnitude_after": Method("magnitude after training", _magnitude, "trained"),
    "units_after": Method("units after training", lambda _: criteria.magnitude(), "trained"),
    "magnitude_init": Method("magnitude at init", _magnitude),
    "synflow": Method(
        "SynFlow",
        lambda p: criteria.synflow(p.apply, input_shape=p.input_shape, where=p.where),
        iterative=True,
    ),
    "grasp": Method("GraSP", lambda p: criteria.grasp(p.grasp_loss, where=p.where)),
    "snip": Method("SNIP", _snip),
    "random": Method("random (ERK)", lambda p: criteria.random(where=p.where), erk=True),
    "lamp_init": Method("LAMP at init", _lamp),
    "iterative_snip": Method("iterative SNIP", _snip, iterative=True),
    "force": Method("FORCE", _force, iterative=True, regrow=True),
    "prospr": Method("ProsPr", _prospr),
    "px": Method("PX", lambda p: criteria.px(p.apply, where=p.where), iterative=True),
    "px_paths": Method(
        "PX, gates of paths",
        lambda p: criteria.px(p.apply, gates="paths", where=p.where),
        iterative=True,
    ),
    "ntk_sap": Method(
        "NTK-SAP",
        lambda p: criteria.ntk_sap(p.apply, input_shape=p.input_shape, where=p.where),
        iterative=True,
    ),
    "lamp_after": Method("LAMP after training", _lamp, "trained"),
    "taylor_after": Method(
        "Taylor after training", lambda p: criteria.taylor(p.loss, where=p.where), "trained"
    ),
    "obd_after": Method(
        "OBD after training", lambda p: criteria.obd(p.loss, where=p.where), "trained"
    ),
    "woodfisher_after": Method(
        "WoodFisher after training",
        lambda p: criteria.woodfisher(p.loss, where=p.where),
        "trained",
    ),
    "spectral_after": Method(
        "spectral after training", lambda p: criteria.spectral(where=p.where), "trained"
    ),
    "wanda_after": Method(
        "Wanda after training",
        lambda p: criteria.wanda(p.apply, where=p.where),
        "trained",
        scope="output",
    ),
    "movement_after": Method(
        "movement after training", lambda p: criteria.movement(p.loss, where=p.where), "trained"
    ),
    "fpgm_after": Method("FPGM after training", lambda _: criteria.fpgm(), "trained"),
    "apoz_after": Method(
        "APoZ after training", lambda p: criteria.apoz(p.apply, layers=p.layers), "trained"
    ),
}
"""The methods that experiments compare, by name, in their order in tables and figures."""

TITLES = {name: method.title for name, method in METHODS.items()}
"""The name of each method in tables and figures."""

AT_INIT = tuple(name for name, method in METHODS.items() if method.when == "init")
"""Methods that choose their mask before training."""

AFTER_TRAINING = tuple(name for name, method in METHODS.items() if method.when == "trained")
"""Methods that choose their mask on the trained dense network and continue from it."""


def pruner(
    name: str, problem: Problem, *, rounds: int, criterion: Criterion | None = None
) -> Pruner:
    """The pruner of a method; its counts are given in each call, see `plan`.

    Args:
      name: The method.
      problem: What it prunes.
      rounds: Rounds of an iterative method; the others take one.
      criterion: Criterion in place of the method's own, such as its inverse.
    """
    method, whole = METHODS[name], name in settings.WHOLE_UNITS
    return pruning.pruner(
        criterion or method.criterion(problem),
        scope="layer" if whole else method.scope,
        granularity=granularity.units(problem.layers) if whole else None,
        rounds=rounds if method.iterative else 1,
        regrow=method.regrow,
    )


def plan(name: str, density: float, problem: Problem, *, rounds: int) -> np.ndarray:
    """What a method's pruner keeps for a density of all prunable weights.

    Returns:
      Kept weights: one count; one per layer for random masks, by ERK; one per round for iterative
      methods. For whole units, the kept units of each hidden layer in leaf order, where layer_10
      precedes layer_2; within outputs, the weights that each output of a layer keeps.
    """
    method = METHODS[name]
    if name in settings.WHOLE_UNITS:
        units = granularity.sizes(granularity.units(problem.layers), trees.select(problem.like))
        return np.array([kept_units(tuple(units.values()), density)], np.int32)
    if method.scope == "output":
        fan_ins = [math.prod(shape[:-1]) for shape in problem.shapes]
        return np.array([[round(density * fan_in) for fan_in in fan_ins]], np.int32)
    if method.erk:
        return np.array([densities.erk(problem.shapes, density=density)], np.int32)
    if not method.iterative:
        return np.array(round(density * problem.size), np.int32)
    at = schedules.exponential(density=density, steps=rounds)
    return pruning.level_counts(problem.size, [at(step) for step in range(1, rounds + 1)])


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
