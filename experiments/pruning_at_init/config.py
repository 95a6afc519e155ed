"""Every way to prune at initialization, beside its four controls: LeNet-300-100.

README.md has the paper, the command and the numbers to expect.
"""

from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from experiments.quickstart import config as quickstart
from nopr.lab import settings

VARIANTS = ("fashion_mnist",)

METHODS = (
    "imp",
    "magnitude_after",
    "magnitude_init",
    "lamp_init",
    "snip",
    "iterative_snip",
    "force",
    "grasp",
    "prospr",
    "synflow",
    "px",
    "px_paths",
    "ntk_sap",
    "random",
)


@dataclass(frozen=True)
class Network(quickstart.Network):
    """LeNet-300-100."""


@dataclass(frozen=True)
class Pruning(quickstart.Pruning):
    """How much is pruned, and how."""

    densities: settings.Densities = (0.31623, 0.1, 0.031623, 0.01, 0.0031623)


@dataclass(frozen=True)
class Settings:
    """The whole experiment."""

    seed: settings.Seed = 0
    seeds: settings.Count = 5  # initializations and data orders, vmapped
    # Seeds in one vmapped call on a device, all by default; it determines the last bits.
    block: settings.Count | None = None
    methods: settings.Methods = METHODS
    data: settings.Data = settings.Data("mnist", validation=5000)
    network: Network = Network()
    training: settings.Training = settings.Training("2ep", batch_size=128, learning_rate=0.1)
    pruning: Pruning = Pruning()

    def __post_init__(self):
        for name in settings.WHOLE_UNITS:
            if name in self.methods:
                raise ValueError(
                    f"`methods` must prune single weights, {name!r} does not. Leave it out: its "
                    "controls would break up the units."
                )


def get_config(variant: str = "") -> ConfigDict:
    """The config; `variant` is "" (MNIST) or "fashion_mnist"."""
    if variant not in ("", *VARIANTS):
        raise ValueError(f"The variant must be 'fashion_mnist' or left out, got {variant!r}.")
    usual = Settings()
    if variant:
        usual = replace(usual, data=replace(usual.data, name=variant))
    return settings.config(usual)
