"""Lengths of training as people write them: `"10ep"` or `"500it"`, never two at once."""

from __future__ import annotations

from nopr import finetune
from nopr.lab.settings import parse_length


def per_epoch(examples: int, *, batch_size: int | None, remainder: bool = True) -> int:
    """The gradient steps in one pass over the data.

    Args:
      examples: Number of examples.
      batch_size: Examples per step; None for all at once.
      remainder: Whether the last, smaller batch counts as a step.

    Raises:
      ValueError: If a batch would be empty, or larger than the data.
    """
    size = examples if batch_size is None else batch_size
    if not 1 <= size <= examples:
        raise ValueError(f"`batch_size` must be in [1, {examples}], got {size}.")
    return finetune.steps_per_epoch(examples, batch_size=batch_size, remainder=remainder)


def iterations(length: str, *, steps_per_epoch: int) -> int:
    """The gradient steps that `length` stands for; part of an epoch is rounded to whole steps.

    Raises:
      ValueError: If `length` does not read like `"10ep"` or `"500it"`.
    """
    number, unit = parse_length(length)
    return round(number * steps_per_epoch) if unit == "ep" else int(number)


def epochs(length: str, *, steps_per_epoch: int | None = None, name: str = "length") -> int:
    """The whole epochs that `length` stands for.

    Args:
      length: Length such as `"10ep"`; `"500it"` if `steps_per_epoch` is given and divides it.
      steps_per_epoch: Gradient steps in one epoch.
      name: Name of the length in errors.

    Raises:
      ValueError: If `length` is not a whole number of epochs.
    """
    number, unit = parse_length(length)
    if unit == "it":
        if steps_per_epoch is None:
            raise ValueError(f"`{name}` must be in epochs, such as '10ep', got {length!r}.")
        number /= steps_per_epoch
    if number.denominator != 1:
        detail = f" at {steps_per_epoch} steps per epoch" if unit == "it" else ""
        raise ValueError(f"`{name}` must be a whole number of epochs, got {length!r}{detail}.")
    return int(number)
