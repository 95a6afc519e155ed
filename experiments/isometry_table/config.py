"""Filter pruning breaks dynamical isometry, and OrthP restores it: MLP-7 on MNIST.

README.md has the paper, the command and the numbers to expect.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ml_collections import ConfigDict

from nopr.lab import settings

VARIANTS = ("relu",)

Ratio = Annotated[float, settings.Range(0, 1, below=True)]


def _check_begin(name: str, rates: tuple[tuple[int, float], ...]) -> None:
    if 0 not in dict(rates):
        raise ValueError(f"`{name}` must have a rate for epoch 0, got {rates}.")


Rates = Annotated[
    tuple[tuple[Annotated[int, settings.Range(0, 10_000)], settings.Positive], ...], _check_begin
]
"""Pairs of an epoch and the learning rate from it on."""


@dataclass(frozen=True)
class Network:
    """An MLP whose hidden layers are equally wide."""

    activation: Literal["linear", "relu", "tanh"] = "linear"
    width: settings.Width = 100  # units of each hidden layer
    hidden: Annotated[int, settings.Range(1, 1000)] = 6  # hidden layers


@dataclass(frozen=True)
class Training:
    """Training of the dense network; its recipe is not published, so its mean JSV is matched."""

    batch_size: settings.Count = 100
    momentum: Annotated[float, settings.Range(0, 1, below=True)] = 0.9
    weight_decay: settings.NotNegative = 1e-4
    length: settings.Length = "54ep"
    dense_rates: Rates = ((0, 1e-2), (18, 1e-3), (36, 1e-4))
    checkpoint_every: settings.Length = "10ep"


@dataclass(frozen=True)
class Pruning:
    """The share of units that each hidden layer loses."""

    ratio: Ratio = 0.8
    ratios: tuple[Ratio, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # for the mean JSV after pruning


@dataclass(frozen=True)
class Finetuning:
    """Finetuning of the pruned network, at two learning rates."""

    length: settings.Length = "90ep"
    large_rates: Rates = ((0, 1e-2), (30, 1e-3), (60, 1e-4))
    small_rates: Rates = ((0, 1e-3), (45, 1e-4))


@dataclass(frozen=True)
class Measuring:
    """The inputs of the Jacobians."""

    inputs: settings.Count = 1000  # training images; 10 batches of 100 in the paper


@dataclass(frozen=True)
class Settings:
    """The whole experiment."""

    seed: settings.Seed = 0
    seeds: settings.Count = 3
    data: settings.Data = settings.Data("mnist", validation=5000, pad=2)  # 28x28 becomes 32x32
    network: Network = Network()
    training: Training = Training()
    pruning: Pruning = Pruning()
    finetuning: Finetuning = Finetuning()
    measuring: Measuring = Measuring()

    def __post_init__(self):
        width = self.network.width
        for name, ratios in (
            ("pruning.ratio", [self.pruning.ratio]),
            ("pruning.ratios", self.pruning.ratios),
        ):
            for ratio in ratios:
                if kept_units(width, ratio) < 1:
                    raise ValueError(f"`{name}` must leave a unit of {width}, got {ratio}.")


def kept_units(width: int, ratio: float) -> int:
    """Units left in a layer; ceil(ratio * width) of them are removed."""
    return width - math.ceil(ratio * width - 1e-9)


def get_config(variant: str = "") -> ConfigDict:
    """The config; `variant` is "" (MLP-7-Linear) or "relu"."""
    if variant not in ("", "relu"):
        raise ValueError(f"The variant must be 'relu' or left out, got {variant!r}.")
    relu = Settings(network=Network("relu"), pruning=Pruning(0.9))
    return settings.config(relu if variant else Settings())
