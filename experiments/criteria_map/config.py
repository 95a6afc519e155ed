"""The map: what every criterion's mask knows of its data, and how well it keeps signals alive.

README.md has the command and the numbers to expect.
"""

from dataclasses import dataclass
from typing import Annotated

from ml_collections import ConfigDict

from experiments.mask_information.config import Cube
from experiments.quickstart import config as quickstart
from nopr.lab import settings

METHODS = (
    "imp",
    "magnitude_after",
    "lamp_after",
    "taylor_after",
    "obd_after",
    "woodfisher_after",
    "spectral_after",
    "wanda_after",
    "movement_after",
    "units_after",
    "fpgm_after",
    "apoz_after",
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
class Pruning:
    """How much is pruned, and how."""

    density: settings.Share = 0.031623  # of the kernels of the image net
    scoring_examples: settings.Count = 512
    rounds: settings.Count = 100  # of iterative methods
    imp_removal: Annotated[float, settings.Range(0.001, 1, below=True)] = 0.2
    grasp_temperature: settings.Positive = 200.0


@dataclass(frozen=True)
class Information(Cube):
    """Exact information, on the kernels of the cube task's net."""

    kept: settings.Count = 4  # of 16 kernel weights; one unit has 4
    initializations: settings.Count = 10


@dataclass(frozen=True)
class Measuring:
    """The inputs of the Jacobians."""

    inputs: settings.Count = 256  # training images


@dataclass(frozen=True)
class Settings:
    """The whole experiment."""

    seed: settings.Seed = 0
    seeds: settings.Count = 5  # initializations and data orders, vmapped
    block: settings.Count | None = None  # seeds in one vmapped call; determines the last bits
    methods: settings.Methods = METHODS
    data: settings.Data = settings.Data("mnist", validation=5000)
    network: Network = Network()
    training: settings.Training = settings.Training("2ep", batch_size=128, learning_rate=0.1)
    pruning: Pruning = Pruning()
    measuring: Measuring = Measuring()
    information: Information = Information()

    def __post_init__(self):
        weights = (self.information.dimension + 1) * self.information.width
        if not self.information.kept < weights:
            raise ValueError(
                f"`information.kept` must be below the {weights} kernel weights of the cube net, "
                f"got {self.information.kept}."
            )


def get_config() -> ConfigDict:
    """The config."""
    return settings.config(Settings())
