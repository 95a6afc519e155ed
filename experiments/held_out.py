"""Image sets as the experiments load them: always with examples held out to select an epoch on."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from nopr import data


def load(config: ConfigDict, **options: Any) -> data.Images:
    """Loads `config.data.name`.

    Args:
      config: Its `data.validation` is a count from 1 on, else a fraction. A flag makes 5000 out of
        5000.0 or the other way around, so that the type does not tell.
      options: Of `data.load`.

    Raises:
      ValueError: If nothing would be held out, naming the key; else as `data.load` does.
    """
    asked = config.data.validation
    count = int(asked) if asked >= 1 and float(asked).is_integer() else asked
    images = data.load(config.data.name, validation=count, seed=config.seed, **options)
    if not len(images.validation.labels):
        raise ValueError(
            f"`data.validation` must hold out at least one example to select an epoch on, "
            f"got {asked}."
        )
    return images
