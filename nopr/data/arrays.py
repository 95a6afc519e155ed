"""From raw pixels to the arrays that training sees: padded, split and normalised."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from nopr import trees

Pixels: TypeAlias = UInt8[np.ndarray, "n height width channels"]
Labels: TypeAlias = Int32[np.ndarray, " n"]
Statistics: TypeAlias = tuple[float, ...]
"""One number a channel, of pixels scaled to [0, 1]."""


class Split(NamedTuple):
    """One part of an image set; unpacks as `(inputs, labels)`, the batch of every loss."""

    images: Float32[np.ndarray, "n height width channels"] | Pixels
    labels: Labels


class Images(NamedTuple):
    """An image set in memory.

    Attributes:
      name: The name it was loaded by.
      train: What training sees.
      validation: Held out of the training part, for selection; empty if asked so.
      test: Used for nothing but the number that is reported.
      classes: How many classes; labels run from 0.
      mean: Mean of each channel, of pixels in [0, 1], that normalising subtracts.
      std: Standard deviation of each channel, by which normalising divides.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: Statistics
    std: Statistics


class Raw(NamedTuple):
    """An image set as published: raw pixels, the official parts, and what is known of them."""

    train: Split
    test: Split
    classes: int
    white: int = 255
    mean: Statistics | None = None
    std: Statistics | None = None


def finish(
    name: str, raw: Raw, *, validation: int | float, normalize: bool, pad: int, seed: int
) -> Images:
    """Splits the validation part off, takes the statistics, pads and normalises.

    Where `raw` brings no statistics they are those of the training part that is left.
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
    """How many of `examples` to hold out: `validation` itself, or that fraction of them.

    Raises:
      ValueError: If that is negative or leaves nothing to train on.
    """
    count = validation if isinstance(validation, int) else round(validation * examples)
    if not 0 <= count < examples or validation < 0:
        raise ValueError(
            f"`validation` must be a count in [0, {examples}) or a fraction in [0, 1) that leaves "
            f"something to train on, got {validation!r}."
        )
    return count


def holdout(labels: Labels, count: int, *, seed: int) -> Bool[np.ndarray, " n"]:
    """Chooses `count` examples by chance, every class in proportion.

    The share of each class is rounded by largest remainder. The choice rests on the raw stream of
    PCG64, which NumPy keeps for ever, unlike the methods of its generators.

    Returns:
      True on the chosen examples.

    Raises:
      ValueError: If `seed` is negative.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be a whole number from 0 up, got {seed}.")
    sizes = np.bincount(labels)
    quotas = [Fraction(size * count, len(labels)) for size in sizes.tolist()]
    wanted = trees.largest_remainder(quotas, count)
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    chosen = np.zeros(len(labels), bool)
    for label, many in enumerate(wanted):
        chosen[order[labels[order] == label][:many]] = True
    return chosen


def statistics(images: Pixels, *, white: int) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]; exact.

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
            "cannot be normalised. Pass `normalize=False`."
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def pad_sides(
    images: Pixels, pad: int
) -> UInt8[np.ndarray, "n padded_height padded_width channels"]:
    """Puts `pad` black pixels on each of the four sides.

    Raises:
      ValueError: If `pad` is negative.
    """
    if pad < 0:
        raise ValueError(f"`pad` must be a number of pixels from 0 up, got {pad}.")
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def standardize(
    images: Pixels, *, white: int, mean: Statistics, std: Statistics
) -> Float32[np.ndarray, "n height width channels"]:
    """`(images / white - mean) / std`, worked in place: large sets fill much of the memory."""
    values = images.astype(np.float32)
    values /= np.float32(white)
    values -= np.asarray(mean, np.float32)
    values /= np.asarray(std, np.float32)
    return values


def first_line(error: BaseException) -> str:
    """The message of `error` as far as its first line break, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _take(split: Split, chosen: Bool[np.ndarray, " n"]) -> Split:
    return Split(split.images[chosen], split.labels[chosen])


def _histograms(images: Pixels) -> Int[np.ndarray, "channels 256"]:
    channels = range(images.shape[-1])
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in channels])
