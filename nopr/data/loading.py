"""Image sets by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from nopr.data import archives, digits
from nopr.data.arrays import Images, Raw, finish
from nopr.data.catalogue import ARCHIVES

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

    - `"digits"`: scikit-learn's 1,797 digits of 8x8, no network and no set-up. 360 are for testing,
      always the same, every class in proportion; by default 1,197 for training and 240 for
      validation.
    - `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"cifar100"`: prepared once in `data_dir` through
      TensorFlow Datasets, from the original files in `manual_dir` or else from the network, their
      checksums checked; TensorFlow itself is not needed.
    - The name of any other image set of TensorFlow Datasets, where TensorFlow is installed.

    The validation part is taken out of the official training part, every class in proportion;
    the test part is only ever normalised. Statistics are those of the training set: for the named
    archives the published constants (MNIST 0.1307 and 0.3081, Fashion-MNIST 0.2860 and 0.3530),
    else computed per channel from the training part that is left.

    Args:
      name: Which image set.
      manual_dir: Folder with the original files, under their original names in a folder of the
        set's name or directly. Default: the environment variable NOPR_MANUAL_DIR, if it is set.
      data_dir: Folder for prepared copies. Default: NOPR_DATA_DIR, else that of TensorFlow
        Datasets (TFDS_DATA_DIR, else `~/tensorflow_datasets`).
      validation: How many training examples to hold out if an integer, else which fraction. The
        default of one sixth makes MNIST's 60,000 the usual 50,000 and 10,000.
      normalize: Whether images are float32, `(pixel / white - mean) / std`, or the raw uint8
        pixels; white is 255, for digits 16.
      pad: Black pixels put on each side before normalising; 2 makes MNIST 32x32.
      seed: Chooses the validation examples.

    Returns:
      The arrays: images [n, height, width, channels], labels int32 [n].

    Raises:
      ValueError: For an unknown name, an option out of range, or a damaged file.
      FileNotFoundError: If original files are missing in `manual_dir`.
      ConnectionError: If the set must be fetched and the network cannot be reached.
      OSError: If `data_dir` cannot be read or written.
      ModuleNotFoundError: If the set needs TensorFlow and that is not installed.
    """
    manual = _folder(manual_dir, "NOPR_MANUAL_DIR")
    prepared = _folder(data_dir, "NOPR_DATA_DIR", "TFDS_DATA_DIR") or Path(
        os.path.expanduser("~/tensorflow_datasets")
    )
    raw = _raw(name, prepared, manual)
    return finish(name, raw, validation=validation, normalize=normalize, pad=pad, seed=seed)


def _raw(name: str, data_dir: Path, manual_dir: Path | None) -> Raw:
    if name == "digits":
        return digits.read()
    if name in ARCHIVES:
        return _archive(ARCHIVES[name], data_dir, manual_dir)
    if name.lower() in NAMES:
        raise ValueError(f"Unknown data set {name!r}; did you mean {name.lower()!r}?")
    from nopr.data import elsewhere  # imports tensorflow_datasets

    if not elsewhere.is_known(name):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        raise ValueError(
            f"Unknown data set {name!r}; nearest is {near!r}. Known are {', '.join(NAMES)} and, "
            "with TensorFlow, the image sets of TensorFlow Datasets."
        )
    return elsewhere.read(name, data_dir, manual_dir=manual_dir)


def _archive(archive: archives.Archive, data_dir: Path, manual_dir: Path | None) -> Raw:
    """Reads the prepared copy, preparing it first where there is none."""
    there, manual = archives.is_prepared(archive, data_dir), None
    if not there:
        # Whatever is bound to fail fails here, before TFDS is imported and begins its retries.
        manual = _originals(archive, manual_dir)
    from nopr.data import prepared

    if not there:
        prepared.prepare(archive, data_dir, manual=manual)
    return prepared.read(archive, data_dir)


def _originals(archive: archives.Archive, manual_dir: Path | None) -> Path | None:
    """The folder of the checked original files; None if they are to be fetched."""
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
            return Path(os.path.expanduser(value))  # which leaves a ~ that nobody knows
    return None
