"""Pruning at initialization on CIFAR-10, VGG-16 or ResNet-20, beside the Synaptic-Flow tables.

Days on a CPU and hours on a GPU: see README.md.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from ml_collections import ConfigDict

from nopr.lab import settings

VARIANTS = ("resnet20",)

Rates = tuple[tuple[Annotated[int, settings.Range(0, 10_000)], settings.Positive], ...]
"""Pairs of an epoch and the learning rate from it on."""


@dataclass(frozen=True)
class Network:
    """A convolutional network with batch norm."""

    name: Literal["vgg16", "resnet20"] = "vgg16"
    width: settings.Positive = 1.0  # multiplier of the channels


@dataclass(frozen=True)
class Training:
    """SGD with momentum, on shifted and mirrored images."""

    length: settings.Length = "160ep"
    rates: Rates = ((0, 0.1), (60, 0.01), (120, 0.001))
    batch_size: settings.Count = 128
    momentum: Annotated[float, settings.Range(0, 1, below=True)] = 0.9
    weight_decay: settings.NotNegative = 1e-4
    shift: Annotated[int, settings.Range(0, 8)] = 4  # most pixels that an image is shifted
    mirror: bool = True  # half of the images
    checkpoint_every: settings.Length = "20ep"


@dataclass(frozen=True)
class Pruning:
    """How much is pruned, and how."""

    densities: settings.Densities = (0.1, 0.01, 0.001)
    scoring_examples: settings.Count = 512
    rounds: settings.Count = 100  # of SynFlow
    grasp_temperature: settings.Positive = 200.0


@dataclass(frozen=True)
class Settings:
    """The whole experiment."""

    seed: settings.Seed = 0
    seeds: settings.Count = 3
    methods: settings.Methods = ("random", "magnitude_init", "snip", "grasp", "synflow")
    data: settings.Data = settings.Data("cifar10", validation=5000)
    network: Network = Network()
    training: Training = Training()
    pruning: Pruning = Pruning()

    def __post_init__(self):
        if 0 not in dict(self.training.rates):
            raise ValueError(
                f"`training.rates` must have a rate for epoch 0, got {self.training.rates}."
            )
        known = ("random", "magnitude_init", "lamp_init", "snip", "grasp", "synflow")
        for name in self.methods:
            if name not in known:
                raise ValueError(f"`methods` must be among {', '.join(known)}, got {name!r}.")


def get_config(variant: str = "") -> ConfigDict:
    """The config; `variant` is "" (VGG-16) or "resnet20"."""
    if variant not in ("", *VARIANTS):
        raise ValueError(f"The variant must be 'resnet20' or left out, got {variant!r}.")
    usual = Settings()
    return settings.config(replace(usual, network=Network("resnet20")) if variant else usual)
