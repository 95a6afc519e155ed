"""Exact mask information on the cube task of "No Free Prune", appendix C.2.

Six labeled corners of the cube and a ReLU net of one hidden layer, with every parameter prunable,
biases included. The datasets are so few that each pruning algorithm runs on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.mask_information.config import Cube
from nopr import algorithms, finetune, information, networks, pruning, sweeps, trees
from nopr.data import synthetic
from nopr.lab import methods, settings
from nopr.typing import Algorithm, Where


class Task(NamedTuple):
    """The enumerated data, the network, and how it is trained and batched."""

    data: synthetic.Enumeration
    network: networks.Network
    problem: methods.Problem
    train: Any
    size: int
    batching: sweeps.Batching


def task(asked: Cube, *, where: Where = trees.everything) -> Task:
    """Builds the cube task.

    Args:
      asked: Its settings.
      where: Predicate for prunable leaves; biases are prunable too in the paper.

    Raises:
      ValueError: If the datasets cannot be enumerated.
    """
    network = networks.mlp(
        (asked.width, 1), inputs=asked.dimension, initialization=asked.initialization
    )
    loss = finetune.squared_error(network.apply)
    like = jax.eval_shape(network.init, jax.random.key(0))
    problem = methods.Problem(
        apply=network.apply,
        loss=loss,
        grasp_loss=loss,
        input_shape=(asked.dimension,),
        layers=network.layers,
        like=trees.select(like, where),
        where=where,
    )
    return Task(
        data=synthetic.cube(dimension=asked.dimension, points=asked.points, law=asked.law),
        network=network,
        problem=problem,
        train=finetune.gradient_descent(loss, steps=asked.steps, learning_rate=asked.learning_rate),
        size=problem.size,
        batching=asked.batching,
    )


def pruned_counts(name: str, task: Task, pruned: Sequence[int]) -> tuple[int, ...]:
    """The number of weights that a method prunes at each level.

    Whole units are removed with all of their weights: incoming, outgoing and the bias.
    """
    if name not in settings.WHOLE_UNITS:
        return tuple(pruned)
    inputs, width = task.problem.shapes[1]
    return tuple((inputs + 2) * units for units in range(1, width))


def algorithm(name: str, task: Task, pruned: Sequence[int], *, rounds: int) -> Algorithm:
    """The algorithm of a method, its masks stacked over the levels of `pruned`."""
    kept = [task.size - count for count in pruned]
    if name == "imp":
        counts: Any = kept
    elif name in settings.WHOLE_UNITS:
        inputs, width = task.problem.shapes[1]
        counts = [width - count // (inputs + 2) for count in pruned]
    else:
        counts = [methods.plan(name, k / task.size, task.problem, rounds=rounds) for k in kept]
    return with_counts(name, task, counts, rounds=rounds)


def with_counts(name: str, task: Task, counts: Any, *, rounds: int) -> Algorithm:
    """The algorithm of a method that keeps these counts, by level; see `methods.plan`."""
    prune = methods.pruner(name, task.problem, rounds=rounds)
    init, train = task.network.init, task.train
    if name == "imp":
        return algorithms.imp(prune, init=init, train=train, counts=counts, levels=True)
    many = pruning.levels(prune, np.array(counts))
    if name in methods.AT_INIT:
        return algorithms.at_init(many, init=init)
    return algorithms.after_training(many, init=init, train=train)


def measure(
    algorithm: Algorithm, task: Task, *, check: bool = True, key: Any
) -> dict[str, np.ndarray]:
    """Exact bits, ceilings and number of masks, by level, for the initialization of `key`."""
    result = information.exact(
        algorithm,
        task.data.datasets,
        weights=task.data.weights,
        levels=True,
        check=check,
        batching=task.batching,
        key=key,
    )
    return {
        "bits": np.asarray(result.bits),
        "choice_ceiling_bits": np.asarray(result.choice_ceiling_bits),
        "distinct": np.asarray(result.distinct),
        "conditional_entropy_bits": np.asarray(result.conditional_entropy_bits),
    }
