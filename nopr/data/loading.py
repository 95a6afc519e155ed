"""Image sets by name."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path

from nopr.data import archives, digits
from nopr.data.arrays import Images, Raw, finish
from nopr.data.catalogue import ARCHIVES
from nopr.typing import shown

NAMES: tuple[str, ...] = tuple(sorted(("digits", *ARCHIVES)))
"""The image sets that `load` reads without TensorFlow."""


def load(
    name: str,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    validation: int | float = 1 / 6,
    normalize: bool = True,
    pad: int = 0,
    seed: int = 0,
) -> Images:
    """Loads an image set into memory, split into training, validation and test parts.

    - `"digits"`: scikit-learn's 1,797 digits of 8x8, without network or setup. A fixed 360, in
      proportion to the classes, are for testing; by default 1,197 are for training and 240 for
      validation.
    - `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"cifar100"`: prepared once in `data_dir` with
      TensorFlow Datasets, from the original files in `manual_dir` or from the network, with their
      checksums verified; TensorFlow itself is not needed.
    - The name of any other image set of TensorFlow Datasets, if TensorFlow is installed.

    The validation part is taken from the official training part, in proportion to the classes; the
    test part is never used for statistics. Statistics are those of the training set: for the named
    archives the published constants (MNIST 0.1307 and 0.3081, Fashion-MNIST 0.2860 and 0.3530),
    otherwise computed per channel from the training part that remains.

    Args:
      name: The name of the image set.
      manual_dir: Folder with the original files, under their original names, in a folder of the
        set's name or directly. Default: the environment variable NOPR_MANUAL_DIR, if set.
      data_dir: Folder for prepared copies. Default: NOPR_DATA_DIR, else that of TensorFlow
        Datasets (TFDS_DATA_DIR, else `~/tensorflow_datasets`).
      validation: Number (an integer) or fraction (a float) of training examples to hold out. The
        default of one sixth splits MNIST's 60,000 into the usual 50,000 and 10,000.
      normalize: Whether images are float32, `(pixel / white - mean) / std`, instead of the raw
        uint8 pixels; white is 255, or 16 for digits.
      pad: Number of black pixels added on each side before normalization; 2 makes MNIST 32x32.
      seed: Seed for the choice of validation examples.

    Returns:
      The arrays: images [n, height, width, channels], labels int32 [n].

    Raises:
      ValueError: If the name is unknown, an option is out of range, or a file is damaged.
      FileNotFoundError: If original files are missing from `manual_dir`.
      ConnectionError: If the set must be downloaded and the network cannot be reached.
      OSError: If `data_dir` cannot be read or written.
      ModuleNotFoundError: If the extra `lab` is not installed, or the set needs TensorFlow, which
        is not installed.
    """
    manual = _folder(manual_dir, "NOPR_MANUAL_DIR")
    prepared = _folder(data_dir, "NOPR_DATA_DIR", "TFDS_DATA_DIR") or Path(
        os.path.expanduser("~/tensorflow_datasets")
    )
    raw = _raw(name, prepared, manual)
    return finish(name, raw, validation=validation, normalize=normalize, pad=pad, seed=seed)


def _raw(name: str, data_dir: Path, manual_dir: Path | None) -> Raw:
    if not isinstance(name, str):
        raise ValueError(f"`name` must be one of {', '.join(NAMES)}, got {shown(name)}.")
    if name == "digits":
        _check_installed(name, "sklearn", "scikit-learn")
        return digits.read()
    if name in ARCHIVES:
        return _archive(ARCHIVES[name], data_dir, manual_dir)
    if name.lower() in NAMES:
        raise ValueError(f"Unknown dataset {name!r}; did you mean {name.lower()!r}?")
    _check_installed(name, "tensorflow_datasets", "TensorFlow Datasets")
    from nopr.data import elsewhere  # imports tensorflow_datasets

    if not elsewhere.is_known(name):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        raise ValueError(
            f"Unknown dataset {name!r}; nearest is {near!r}. Known are {', '.join(NAMES)} and, "
            "with TensorFlow, the image sets of TensorFlow Datasets."
        )
    return elsewhere.read(name, data_dir, manual_dir=manual_dir)


def _archive(archive: archives.Archive, data_dir: Path, manual_dir: Path | None) -> Raw:
    """Reads the prepared copy, which is first prepared if there is none."""
    _check_installed(archive.name, "tensorflow_datasets", "TensorFlow Datasets")
    there, manual = archives.is_prepared(archive, data_dir), None
    if not there:
        # Missing files and networks are found here, before TFDS is imported and starts to retry.
        manual = _originals(archive, manual_dir)
    from nopr.data import prepared

    if not there:
        prepared.prepare(archive, data_dir, manual=manual)
    return prepared.read(archive, data_dir)


def _check_installed(name: str, module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"The dataset {name!r} needs {package}, which is not installed. "
            "It comes with the extra `lab`: pip install 'nopr[lab]'."
        )


def _originals(archive: archives.Archive, manual_dir: Path | None) -> Path | None:
    """The folder of the checked original files; None if they must be downloaded."""
    if manual_dir is None:
        urls = archive.urls
        archives.check_reachable(archive.name, next(iter(urls.values())), files=urls)
        return None
    folder = archives.find(archive, manual_dir)
    archives.check(archive, folder)
    return folder


def _folder(given: str | os.PathLike[str] | None, *variables: str) -> Path | None:
    for value in (given, *map(os.environ.get, variables)):
        if value:
            return Path(os.path.expanduser(value))  # leaves the ~ of an unknown user
    return None
