"""Prunes a real network on real data; shows what each mask knows and how trainable it is.

README.md has the paper, the command and the numbers to expect.
"""

from dataclasses import dataclass
from typing import Annotated

from ml_collections import ConfigDict

from experiments.mask_information.config import Cube, Initialization
from nopr.lab import settings


@dataclass(frozen=True)
class Network:
    """An MLP."""

    widths: settings.Widths = (300, 100)  # hidden units
    initialization: Initialization = "he"


@dataclass(frozen=True)
class Pruning:
    """How much is pruned, and how."""

    densities: settings.Densities = (0.2, 0.05, 0.02)  # kept / prunable; of units for whole units
    scoring_examples: settings.Count = 512  # training examples that SNIP and GraSP score on
    rounds: settings.Count = 100  # of SynFlow and other iterative methods
    # Largest share removed per round; the rounds hit every density.
    imp_removal: Annotated[float, settings.Range(0.001, 1, below=True)] = 0.2
    grasp_temperature: settings.Positive = 200.0

    def __post_init__(self):
        if sorted(self.densities, reverse=True) != list(self.densities):
            raise ValueError(
                f"`pruning.densities` must fall from left to right, got {self.densities}."
            )


@dataclass(frozen=True)
class Repair:
    """OrthP, on whole units."""

    density: float | None = None  # of units; by default the first of `densities`
    gain: settings.Positive = 2**0.5  # singular value of the new kernels; sqrt(2) suits ReLU


@dataclass(frozen=True)
class Measuring:
    """The inputs of the Jacobians."""

    inputs: settings.Count = 256  # training images


@dataclass(frozen=True)
class Information(Cube):
    """Exact information, on the cube task."""

    initializations: settings.Count = 10
    imp_initializations: settings.Count = 3  # IMP takes 20 times as long
    checked: Annotated[int, settings.Range(0)] = 1  # number on which H(m | D) = 0 is checked


@dataclass(frozen=True)
class Settings:
    """The main job."""

    seed: settings.Seed = 0
    seeds: settings.Count = 5  # initializations and data orders, vmapped
    # Seeds in one vmapped call on a device, all by default; it determines the last bits. With
    # fewer, devices and hosts share the seeds too, not only the methods and densities.
    block: settings.Count | None = None
    methods: settings.Methods = (
        "imp",
        "magnitude_after",
        "units_after",
        "magnitude_init",
        "synflow",
        "grasp",
        "snip",
        "random",
    )
    data: settings.Data = settings.Data()
    network: Network = Network()
    training: settings.Training = settings.Training()  # of the dense net, and after pruning
    pruning: Pruning = Pruning()
    repair: Repair = Repair()
    measuring: Measuring = Measuring()
    information: Information = Information()

    def __post_init__(self):
        whole = [name for name in settings.WHOLE_UNITS if name in self.methods]
        if not whole:
            return
        if self.repair.density not in (None, *self.pruning.densities):
            raise ValueError(
                f"`repair.density` must be one of `pruning.densities`, {self.pruning.densities}, "
                f"got {self.repair.density}."
            )
        if self.information.width < 2:
            raise ValueError(
                "`information.width` must be at least 2 for "
                f"{whole[0]!r} to have a unit to prune, "
                f"got {self.information.width}."
            )
        for density in self.pruning.densities:
            if not all(round(density * width) for width in self.network.widths):
                raise ValueError(
                    "`pruning.densities` must leave a unit in each of `network.widths`, "
                    f"{self.network.widths}, for {whole[0]!r}, got {density}."
                )

    @property
    def repaired_density(self) -> float:
        """The density at which OrthP is shown."""
        return self.pruning.densities[0] if self.repair.density is None else self.repair.density


def get_config() -> ConfigDict:
    """The config of the main job."""
    return settings.config(Settings())
