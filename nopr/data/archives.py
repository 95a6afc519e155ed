"""Image sets as original files: finding them, and checking that they are intact."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.error import HTTPError
from urllib.parse import urlsplit

from nopr.data.arrays import Labels, Pixels, Statistics

PATIENCE_SECONDS = 5.0
VERSION = "1.0.0"
"""The version of the prepared form; a new version is prepared next to the old one."""

Reader: TypeAlias = Callable[[Mapping[str, Path], str], tuple[Pixels, Labels]]
"""`read(files, split) -> (images, labels)`; `files` maps original names to paths."""


class File(NamedTuple):
    """An original file, as published."""

    name: str
    size_bytes: int
    sha256: str


class Archive(NamedTuple):
    """An image set as a handful of original files.

    Attributes:
      name: The name of the set and of its folder within `manual_dir`.
      url: The address to which a file name is appended.
      files: The original files.
      read: The function that reads them.
      sizes: Number of examples in each official part, `train` and `test`.
      shape: Height, width and channels of an image.
      classes: Number of classes.
      mean: Mean of each channel over the training images, for pixels in [0, 1].
      std: Standard deviation of each channel, likewise.
    """

    name: str
    url: str
    files: tuple[File, ...]
    read: Reader
    sizes: Mapping[str, int]
    shape: tuple[int, int, int]
    classes: int
    mean: Statistics
    std: Statistics

    @property
    def urls(self) -> dict[str, str]:
        """The address of each original file, by name."""
        return {file.name: self.url + file.name for file in self.files}


def prepared_folder(archive: Archive, data_dir: Path) -> Path:
    """The folder of the prepared copy, apart from TFDS's own set of the same name."""
    return data_dir / f"nopr_{archive.name}" / VERSION


def is_prepared(archive: Archive, data_dir: Path) -> bool:
    """Whether `data_dir` has a prepared copy; copies are complete, since they are moved there."""
    return prepared_folder(archive, data_dir).is_dir()


def find(archive: Archive, manual_dir: Path) -> Path:
    """The folder with the files of `archive`: `manual_dir/NAME`, or `manual_dir` itself.

    Raises:
      FileNotFoundError: If files are missing; the message names them and the folders searched.
    """
    folders = (manual_dir / archive.name, manual_dir)
    missing = [[f.name for f in archive.files if not (d / f.name).is_file()] for d in folders]
    for folder, names in zip(folders, missing, strict=True):
        if not names:
            return folder
    nearest = int(len(missing[1]) < len(missing[0]))
    raise FileNotFoundError(
        f"`manual_dir` lacks {', '.join(missing[nearest])} of {archive.name!r}; looked in "
        f"{folders[0]} and {folders[1]}. Put the original files there (from {archive.url}), or "
        "unset `manual_dir` and NOPR_MANUAL_DIR to download them."
    )


def check(archive: Archive, folder: Path) -> None:
    """Checks the SHA-256 of every original file in `folder`.

    Raises:
      ValueError: If a file differs from the published one; the message names the first of them.
    """
    for file in archive.files:
        with open(folder / file.name, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise ValueError(
                f"{folder / file.name} is not the original of {archive.name!r}: its SHA-256 must "
                f"be {file.sha256}, found {found}. Download it again: {archive.url + file.name}."
            )


def check_reachable(name: str, url: str, *, files: Iterable[str]) -> None:
    """Checks once, briefly, whether `url` can be reached; the downloader would retry for minutes.

    Args:
      name: The name of the image set, for the message.
      url: The address of its first file.
      files: The names of all its files, for the message.

    Raises:
      ConnectionError: If it cannot; the message explains how to work offline.
    """
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()
    except (OSError, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"{name!r} must be downloaded, and {urlsplit(url).netloc} cannot be reached "
            f"({reason}). Set `manual_dir` or NOPR_MANUAL_DIR to a folder in which "
            f"{name}{os.sep} holds {', '.join(files)}."
        ) from None
