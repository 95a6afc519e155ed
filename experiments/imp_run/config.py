"""Iterative magnitude pruning of one network, as a long run that survives being killed.

README.md has the paper, the command and the numbers to expect.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ml_collections import ConfigDict

from nopr.lab import settings


@dataclass(frozen=True)
class Network:
    """An MLP."""

    widths: settings.Widths = (300, 100)  # hidden units
    initialization: Literal["torch", "he", "lecun"] = "he"


@dataclass(frozen=True)
class Training(settings.Training):
    """Training of each level, including the epochs before the rewind epoch."""

    length: settings.Length | None = "60ep"
    checkpoint_every: settings.Length = "20ep"  # within a level, and at its end
    checkpoint_keep: settings.Count = 2  # number kept; with 2, one is left if the last is damaged


@dataclass(frozen=True)
class Pruning:
    """How much is pruned, and how."""

    levels: Annotated[int, settings.Range(1, 1000)] = 20  # rounds after the dense level 0
    removal: settings.Share = 0.2  # share of the remaining weights, per level
    scope: Literal["global", "layer"] = "layer"  # where weights compete
    rewind: settings.Length = "0ep"  # epoch to rewind to; 0ep is initialization
    # What goes back to that epoch: weights and learning rate, or the learning rate alone
    retrain: Literal["weight_rewinding", "learning_rate_rewinding"] = "weight_rewinding"


@dataclass(frozen=True)
class Settings:
    """The long run."""

    seed: settings.Seed = 0  # of the split, the initialization and the data order
    data: settings.Data = settings.Data()
    network: Network = Network()
    training: Training = Training()
    pruning: Pruning = Pruning()


def get_config() -> ConfigDict:
    """The config of the long run."""
    return settings.config(Settings())
