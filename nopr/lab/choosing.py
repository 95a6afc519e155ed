"""The masks of a method on every seed of a task, at many densities."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from nopr import algorithms, finetune, pruning, trees
from nopr.lab import methods, training
from nopr.typing import Algorithm, Criterion, Masks, Params


class Choice(NamedTuple):
    """How masks are chosen.

    Attributes:
      task: Network that is pruned, its data and its training.
      problem: Its description for the pruners.
      densities: Kept over prunable weights, falling; of the units for methods of whole units.
      rounds: Rounds of iterative methods.
      scoring_examples: Number of training examples that are scored on.
      imp_removal: Largest share that a round of IMP removes.
      block: Seeds in one vmapped call on a device; all by default.
    """

    task: training.Task
    problem: methods.Problem
    densities: tuple[float, ...]
    rounds: int
    scoring_examples: int
    imp_removal: float
    block: int | None = None

    def data(self, name: str) -> Any:
        """The data on which a method's algorithm is called."""
        return self.task.parts["train"] if name == "imp" else self.examples

    @property
    def examples(self) -> Any:
        """The examples that are scored on."""
        return self.task.examples(self.scoring_examples)


def choice(
    task: training.Task, pruning: Any, *, densities: tuple[float, ...], block: int | None
) -> Choice:
    """How masks are chosen by an experiment's settings of pruning.

    Args:
      task: Network, data and training.
      pruning: Settings with `rounds`, `scoring_examples`, `imp_removal` and `grasp_temperature`.
      densities: Kept over prunable weights, falling.
      block: Seeds in one vmapped call on a device; all by default.
    """
    return Choice(
        task,
        problem(task, pruning.grasp_temperature),
        densities=densities,
        rounds=pruning.rounds,
        scoring_examples=pruning.scoring_examples,
        imp_removal=pruning.imp_removal,
        block=block,
    )


def problem(task: training.Task, grasp_temperature: float) -> methods.Problem:
    """What the pruners need to know of a task."""
    apply = task.network.apply
    return methods.Problem(
        apply=apply,
        loss=task.loss,
        grasp_loss=finetune.cross_entropy(apply, temperature=grasp_temperature),
        input_shape=task.images.train.images.shape[1:],
        layers=task.network.layers,
        like=trees.select(jax.eval_shape(task.network.init, jax.random.key(0))),
    )


def algorithm(
    choice: Choice, name: str, *, trained: Params | None, criterion: Criterion | None = None
) -> Algorithm:
    """The algorithm of a method; its masks have a leading axis of densities.

    Args:
      choice: How masks are chosen.
      name: The method.
      trained: Params of the trained dense network, for methods that prune them; so it is not
        trained again.
      criterion: Criterion in place of the method's own, such as its inverse.
    """
    init = choice.task.network.init
    if name == "imp":
        return _imp(choice, criterion)
    prune = _at_every_density(choice, name, criterion)
    if name not in methods.AFTER_TRAINING:
        return algorithms.at_init(prune, init=init)
    return algorithms.at_init(prune, init=lambda key: trained)


def masks(choice: Choice, name: str, dense: Params) -> Masks:
    """The masks of a method, [seeds, densities, ...].

    Args:
      choice: How masks are chosen.
      name: The method.
      dense: Params of the trained dense networks, stacked over seeds.
    """

    def choose(case: Any, data: Any) -> Masks:
        return algorithm(choice, name, trained=case["params"])(data, key=case["key"])

    cases = {"params": dense, "key": choice.task.keys}
    block = choice.block or len(choice.task.keys)
    return methods.over_seeds(name, choose, cases, shared=choice.data(name), block=block)


def _at_every_density(choice: Choice, name: str, criterion: Criterion | None) -> Any:
    """A pruner of all densities, from one scoring where the method scores once."""
    each = [
        methods.plan(name, density, choice.problem, rounds=choice.rounds)
        for density in choice.densities
    ]
    prune = methods.pruner(name, choice.problem, rounds=choice.rounds, criterion=criterion)
    return pruning.levels(prune, np.stack(each))


def _imp(choice: Choice, criterion: Criterion | None) -> Algorithm:
    """Masks at the densities alone, from geometric rounds that hit each density."""
    levels, hits = methods.imp_levels(choice.densities, removal=choice.imp_removal)
    every = algorithms.imp(
        methods.pruner("imp", choice.problem, rounds=1, criterion=criterion),
        init=choice.task.network.init,
        train=choice.task.trainer(),
        counts=pruning.level_counts(choice.problem.size, levels),
        levels=True,
    )
    return lambda data, *, key: jax.tree.map(
        lambda leaf: leaf[np.array(hits)], every(data, key=key)
    )
