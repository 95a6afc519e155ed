"""What the main job can be asked for, refused at once where it would fail after minutes."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import methods


def check(config: ConfigDict) -> None:
    """Refuses what would otherwise fail only after minutes."""
    methods.check(config.methods)
    _check_densities(config)
    _check_widths(config)
    if not config.repair.gain > 0:
        raise ValueError(f"`repair.gain` must be positive, got {config.repair.gain}.")
    counts = {
        "seeds": config.seeds,
        "block": block(config),
        "information.initializations": config.information.initializations,
        "information.imp_initializations": config.information.imp_initializations,
        "measuring.inputs": config.measuring.inputs,
        "pruning.scoring_examples": config.pruning.scoring_examples,
        "pruning.synflow_rounds": config.pruning.synflow_rounds,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def block(config: ConfigDict) -> int:
    """Seeds in one vmapped call on a device."""
    return config.seeds if config.block is None else config.block


def _check_widths(config: ConfigDict) -> None:
    widths = tuple(config.network.widths)
    if not widths:
        raise ValueError("`network.widths` must name at least one hidden layer, got none.")
    if not all(isinstance(width, int) and width >= 1 for width in widths):
        raise ValueError(f"`network.widths` must be positive integers, got {widths}.")
    if "units_after" in config.methods and config.information.width < 2:
        raise ValueError(
            "`information.width` must be at least 2 for 'units_after' to have a unit to prune, "
            f"got {config.information.width}."
        )


def _check_densities(config: ConfigDict) -> None:
    densities = config.pruning.densities
    if not densities:
        raise ValueError("`pruning.densities` must name at least one density, got none.")
    for density in densities:
        if not isinstance(density, int | float):
            raise ValueError(f"`pruning.densities` must be numbers, got {density!r}.")
        if not 0 < density <= 1:
            raise ValueError(f"`pruning.densities` must be in (0, 1], got {density}.")
    methods.imp_levels(list(densities), removal=config.pruning.imp_removal)
    asked = config.repair.density
    if "units_after" in config.methods and asked is not None and asked not in densities:
        raise ValueError(
            f"`repair.density` must be one of `pruning.densities`, {tuple(densities)}, "
            f"got {config.repair.density}."
        )
