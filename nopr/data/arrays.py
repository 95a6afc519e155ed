"""From raw pixels to arrays for training: split, padded and normalized."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from nopr import trees
from nopr.typing import is_real, shown, whole_number

Pixels: TypeAlias = UInt8[np.ndarray, "n height width channels"]
Labels: TypeAlias = Int32[np.ndarray, " n"]
Statistics: TypeAlias = tuple[float, ...]
"""One number per channel, for pixels scaled to [0, 1]."""


class Split(NamedTuple):
    """One part of an image set; unpacks as `(inputs, labels)`, the batch of a loss."""

    images: Float32[np.ndarray, "n height width channels"] | Pixels
    labels: Labels


class Images(NamedTuple):
    """An image set in memory.

    Attributes:
      name: The name of the set.
      train: The training part.
      validation: Examples held out of the official training part, for selection; may be empty.
      test: The test part, for reported results only.
      classes: Number of classes; labels start at 0.
      mean: Mean of each channel, for pixels in [0, 1], subtracted by normalization.
      std: Standard deviation of each channel, the divisor in normalization.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: Statistics
    std: Statistics


class Raw(NamedTuple):
    """An image set as published: raw pixels in the official parts, and known statistics."""

    train: Split
    test: Split
    classes: int
    white: int = 255
    mean: Statistics | None = None
    std: Statistics | None = None


def finish(
    name: str, raw: Raw, *, validation: int | float, normalize: bool, pad: int, seed: int
) -> Images:
    """Splits off the validation part, pads and normalizes.

    If `raw` has no statistics, they are those of the training part that remains.
    """
    held = holdout(raw.train.labels, held_count(len(raw.train.labels), validation), seed=seed)
    train, aside = _take(raw.train, ~held), _take(raw.train, held)
    mean, std = raw.mean, raw.std
    if mean is None or std is None:
        mean, std = statistics(train.images, white=raw.white)

    def dress(split: Split) -> Split:
        images = pad_sides(split.images, pad)
        if normalize:
            images = standardize(images, white=raw.white, mean=mean, std=std)
        return Split(images, split.labels)

    return Images(name, dress(train), dress(aside), dress(raw.test), raw.classes, mean, std)


def held_count(examples: int, validation: int | float) -> int:
    """The number of `examples` to hold out: `validation` itself, or that fraction of them.

    Raises:
      ValueError: If `validation` is negative or leaves nothing to train on.
    """
    good = is_real(validation) and validation >= 0
    whole = isinstance(validation, int | np.integer)
    count = int(validation if whole else round(validation * examples)) if good else -1
    if not 0 <= count < examples:
        raise ValueError(
            f"`validation` must be a count in [0, {examples}) or a fraction in [0, 1) that leaves "
            f"something to train on, got {shown(validation)}."
        )
    return count


def holdout(labels: Labels, count: int, *, seed: int) -> Bool[np.ndarray, " n"]:
    """Chooses `count` examples at random, in proportion to the classes.

    The share of each class is rounded by largest remainder. The choice depends on the raw stream of
    PCG64 alone, which NumPy guarantees to keep, unlike the methods of its generators.

    Returns:
      True on the chosen examples.

    Raises:
      ValueError: If `seed` is negative.
    """
    seed = whole_number("seed", seed, least=0)
    sizes = np.bincount(labels)
    quotas = [Fraction(size * count, len(labels)) for size in sizes.tolist()]
    wanted = trees.largest_remainder(quotas, count)
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    chosen = np.zeros(len(labels), bool)
    for label, many in enumerate(wanted):
        chosen[order[labels[order] == label][:many]] = True
    return chosen


def statistics(images: Pixels, *, white: int) -> tuple[Statistics, Statistics]:
    """Exact mean and standard deviation of each channel, for pixels scaled to [0, 1].

    Raises:
      ValueError: If a channel is constant.
    """
    levels = np.arange(256) / white
    shares = _histograms(images) / max(images[..., 0].size, 1)
    mean = shares @ levels
    std = np.sqrt(np.sum(shares * (levels - mean[:, None]) ** 2, axis=1))
    if not np.all(std > 0):
        raise ValueError(
            f"The training images have a constant channel (standard deviations {std.tolist()}) and "
            "cannot be normalized. Pass `normalize=False`."
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def pad_sides(
    images: Pixels, pad: int
) -> UInt8[np.ndarray, "n padded_height padded_width channels"]:
    """Adds `pad` black pixels on each of the four sides.

    Raises:
      ValueError: If `pad` is negative.
    """
    pad = whole_number("pad", pad, least=0)
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def standardize(
    images: Pixels, *, white: int, mean: Statistics, std: Statistics
) -> Float32[np.ndarray, "n height width channels"]:
    """`(images / white - mean) / std`, computed in place, since large sets take much memory."""
    values = images.astype(np.float32)
    values /= np.float32(white)
    values -= np.asarray(mean, np.float32)
    values /= np.asarray(std, np.float32)
    return values


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, without a final period."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _take(split: Split, chosen: Bool[np.ndarray, " n"]) -> Split:
    return Split(split.images[chosen], split.labels[chosen])


def _histograms(images: Pixels) -> Int[np.ndarray, "channels 256"]:
    channels = range(images.shape[-1])
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in channels])
