"""Image sets as original files: where they lie, whether they are what was published."""

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
"""Of the prepared form; a new one is prepared beside the old."""

Reader: TypeAlias = Callable[[Mapping[str, Path], str], tuple[Pixels, Labels]]
"""`read(files, split) -> (images, labels)`; `files` maps original names to where they lie."""


class File(NamedTuple):
    """An original file, as its publisher offers it."""

    name: str
    size_bytes: int
    sha256: str


class Archive(NamedTuple):
    """An image set as a handful of original files.

    Attributes:
      name: Its name, and that of its folder within `manual_dir`.
      url: The address that its file names complete.
      files: The original files.
      read: How to read them.
      sizes: Examples in each official part, `train` and `test`.
      shape: Height, width and channels of an image.
      classes: How many classes.
      mean: Mean of each channel over the training images, of pixels in [0, 1].
      std: Standard deviation, likewise.
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
        """Where each original file is on the network, by name."""
        return {file.name: self.url + file.name for file in self.files}


def prepared_folder(archive: Archive, data_dir: Path) -> Path:
    """Where the prepared copy lies; not where TFDS's own set of the same name would."""
    return data_dir / f"nopr_{archive.name}" / VERSION


def is_prepared(archive: Archive, data_dir: Path) -> bool:
    """Whether `data_dir` holds a prepared copy; it is moved there whole or not at all."""
    return prepared_folder(archive, data_dir).is_dir()


def find(archive: Archive, manual_dir: Path) -> Path:
    """The folder with the files of `archive`: the one of its name in `manual_dir`, or that itself.

    Raises:
      FileNotFoundError: Naming the missing files and the folders looked in.
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
        "unset it and NOPR_MANUAL_DIR to have them fetched."
    )


def check(archive: Archive, folder: Path) -> None:
    """Checks the SHA-256 of every original file in `folder`.

    Raises:
      ValueError: Naming the first file that is not what was published.
    """
    for file in archive.files:
        with open(folder / file.name, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise ValueError(
                f"{folder / file.name} is not the original of {archive.name!r}: its SHA-256 must "
                f"be {file.sha256}, found {found}. Fetch it again from {archive.url + file.name}."
            )


def check_reachable(name: str, url: str, *, files: Iterable[str]) -> None:
    """Asks once, briefly, whether `url` can be fetched; the downloader would try for minutes.

    Args:
      name: The image set, for the message.
      url: Where its first file is.
      files: The names of all its files, for the message.

    Raises:
      ConnectionError: If not, saying how to do without the network.
    """
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()
    except (OSError, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"{name!r} has to be fetched and {urlsplit(url).netloc} cannot be reached ({reason}). "
            f"Set `manual_dir` or NOPR_MANUAL_DIR to a folder in which {name}{os.sep} holds "
            f"{', '.join(files)}."
        ) from None
