"""How many bits a mask knows about its data, computed exactly.

README.md has the paper, the command and the numbers to expect.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from ml_collections import ConfigDict

from nopr.lab import settings

VARIANTS = ("repetition",)

Initialization = Literal["torch", "he", "lecun"]


@dataclass(frozen=True)
class Cube:
    """The cube task: labeled corners of the cube, a ReLU net of one hidden layer."""

    law: Literal["distinct", "label_per_draw", "label_per_point"] = "distinct"  # of the datasets
    dimension: Annotated[int, settings.Range(1, 10)] = 3  # of the cube
    points: Annotated[int, settings.Range(1, 100)] = 6  # examples in a dataset
    width: Annotated[int, settings.Range(1, 1000)] = 4  # hidden units
    initialization: Initialization = "torch"  # open in the paper
    steps: settings.Count = 500  # full-batch gradient steps; open in the paper
    learning_rate: settings.Positive = 0.05  # open in the paper
    # How the datasets are batched: "lanes" is many times faster for such tiny nets; the two round
    # differently.
    batching: Literal["lanes", "vmap"] = "lanes"


@dataclass(frozen=True)
class Pruning:
    """How much is pruned, and in how many rounds."""

    most: settings.Count = 20  # weights pruned at most, of 21; IMP prunes one per round
    rounds: settings.Count = 100  # of SynFlow and other iterative methods


@dataclass(frozen=True)
class Sensitivity:
    """What the paper leaves open, one at a time from the values of `task`; empty for none."""

    initializations: settings.Count = 3
    initialization: tuple[Initialization, ...] = ("he", "lecun")
    learning_rate: tuple[settings.Positive, ...] = (0.01, 0.2)
    steps: tuple[settings.Count, ...] = (1000,)


@dataclass(frozen=True)
class Settings:
    """The whole experiment."""

    seed: settings.Seed = 0
    initializations: settings.Count = 5  # one key each; the interval is over them
    methods: settings.Methods = ("magnitude_after", "snip", "grasp", "synflow", "random", "imp")
    task: Cube = Cube()
    pruning: Pruning = Pruning()
    # Number of initializations on which `information.exact` checks that H(m | D) is 0.
    checked: Annotated[int, settings.Range(0)] = 1
    sensitivity: Sensitivity = Sensitivity()

    def __post_init__(self):
        for name in settings.WHOLE_UNITS:
            if name in self.methods:
                raise ValueError(
                    f"`methods` must prune one weight at a time, {name!r} does not. "
                    "The main job measures it."
                )
        weights = (self.task.dimension + 2) * self.task.width + 1
        if not self.pruning.most < weights:
            raise ValueError(
                f"`pruning.most` must be below the {weights} weights of the network, "
                f"got {self.pruning.most}."
            )


def get_config(variant: str = "") -> ConfigDict:
    """The config; `variant` is "" (distinct points) or "repetition"."""
    if variant not in ("", "repetition"):
        raise ValueError(f"The variant must be 'repetition' or left out, got {variant!r}.")
    usual = Settings()
    if variant:
        none = Sensitivity(initialization=(), learning_rate=(), steps=())
        usual = replace(usual, task=Cube(law="label_per_draw"), sensitivity=none)
    return settings.config(usual)
