"""Any other image set of TensorFlow Datasets, by its name there; imports that package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nopr.data.archives import check_reachable
from nopr.data.arrays import Raw, Split, first_line


def is_known(name: str) -> bool:
    """Whether TensorFlow Datasets has a set of this name; does not need TensorFlow."""
    try:
        tfds.builder_cls(name)
    except ValueError:
        return False
    return True


def read(name: str, data_dir: Path, *, manual_dir: Path | None) -> Raw:
    """Loads the `train` and `test` parts of an image set through TensorFlow.

    Raises:
      ModuleNotFoundError: If TensorFlow is not installed.
      ConnectionError: If it must be downloaded and the network cannot be reached.
      OSError: If TensorFlow Datasets cannot prepare it.
      ValueError: If it is not a set of equal-sized labeled images with these parts.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            f"The dataset {name!r} can only be read with TensorFlow, which is not installed. "
            "Install it: pip install tensorflow."
        )
    if manual_dir and (manual_dir / name).is_dir():
        manual_dir = manual_dir / name
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        _check_source(name, builder, manual_dir)
        builder.download_and_prepare(download_config=config)
    except ConnectionError:
        raise
    except Exception as error:  # TFDS and TensorFlow raise many types of their own
        raise OSError(
            f"TensorFlow Datasets cannot prepare {name!r} in {data_dir}: {first_line(error)}."
        ) from error
    _check_parts(name, builder.info)
    train, test = (_read_split(name, builder, split) for split in ("train", "test"))
    return Raw(train, test, builder.info.features["label"].num_classes)


def _check_source(name: str, builder: Any, manual_dir: Path | None) -> None:
    if builder.is_prepared():
        return
    names = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    absent = {
        url: file or url
        for url, file in names.items()
        if not (manual_dir and file and (manual_dir / file).is_file())
    }
    if absent:
        check_reachable(name, next(iter(absent)), files=absent.values())


def _check_parts(name: str, info: Any) -> None:
    shape = info.features["image"].shape if "image" in info.features else ()
    if "label" not in info.features or len(shape) != 3 or None in shape:
        raise ValueError(
            f"{name!r} must be a set of equal-sized labeled images, got features "
            f"{', '.join(sorted(info.features))} and image shape {shape}."
        )
    if not {"train", "test"} <= set(info.splits):
        raise ValueError(
            f"{name!r} must have the parts train and test, got {', '.join(sorted(info.splits))}."
        )


def _read_split(name: str, builder: Any, split: str) -> Split:
    arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    if arrays["image"].dtype != np.uint8:
        raise ValueError(f"{name!r} must have uint8 images, got {arrays['image'].dtype}.")
    return Split(arrays["image"], arrays["label"].astype(np.int32))
