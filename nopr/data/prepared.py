"""Preparing and reading image sets with TensorFlow Datasets (TFDS); imports that package.

TFDS's own builders of these sets need TensorFlow, so a small builder here writes them as
array_record, which `as_data_source` reads without it. A set is prepared in a scratch folder and
moved into place by one rename. The scratch folder has its own `download_dir`, because TFDS
identifies downloads by base name, and the files of MNIST and Fashion-MNIST have the same base
names. Reading checks the prepared files against their SHA-256, stored next to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from requests import RequestException
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from nopr.data.archives import VERSION, Archive, prepared_folder
from nopr.data.arrays import Raw, Split, first_line

_BLOCK = 1000
_MANIFEST = "sha256.json"
_SCRATCH = ".preparing-"
_STALE_SECONDS = 24 * 3600.0


class _Info(tfds.core.DatasetInfo):
    """The information of a set that is not in TFDS's public bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: uses no network, and leaves no temporary folder."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the images of an `Archive`; `_builder` makes a subclass for each."""

    VERSION = tfds.core.Version(VERSION)
    archive: Archive

    def _info(self):
        features = {
            "image": tfds.features.Tensor(
                shape=self.archive.shape, dtype=np.uint8, encoding="bytes"
            ),
            "label": tfds.features.ClassLabel(num_classes=self.archive.classes),
        }
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        # Not download_and_extract: TFDS would store the extracted files under base names.
        found = dl_manager.download(self.archive.urls)
        files = {name: Path(path) for name, path in found.items()}
        return {split: self._generate_examples(files, split) for split in self.archive.sizes}

    def _generate_examples(self, files, split):
        images, labels = self.archive.read(files, split)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}


def prepare(archive: Archive, data_dir: Path, *, manual: Path | None) -> None:
    """Prepares `archive`, from the original files in `manual` or from the network.

    No failure leaves an incomplete copy. Two processes may prepare at the same time; the second to
    finish discards its copy.

    Raises:
      OSError: If `data_dir` cannot be written, or the download fails.
      ValueError: If a downloaded file differs from the published one.
    """
    target = prepared_folder(archive, data_dir)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with _scratch_folder(target.parent) as scratch:
            ready = _generate(archive, scratch, manual)
            _write_manifest(ready)
            _publish(ready, target)
    except (RequestException, tfds.download.DownloadError) as error:
        raise ConnectionError(f"Cannot download {archive.name!r}: {first_line(error)}.") from None
    except NonMatchingChecksumError as error:
        found = str(error).replace("\n", " ")
        raise ValueError(f"The download of {archive.name!r} is damaged. {found}") from None
    except OSError as error:
        raise OSError(
            f"{archive.name!r} cannot be prepared in `data_dir` {data_dir}: {first_line(error)}. "
            "Pass another `data_dir` or set NOPR_DATA_DIR."
        ) from None


def read(archive: Archive, data_dir: Path) -> Raw:
    """Reads the prepared copy of `archive`.

    Raises:
      ValueError: If the copy is damaged; nothing is deleted.
    """
    folder = prepared_folder(archive, data_dir)
    _check_manifest(folder)
    builder = tfds.builder_from_directory(folder)
    train, test = (_read_split(archive, builder, split) for split in ("train", "test"))
    return Raw(train, test, archive.classes, mean=archive.mean, std=archive.std)


def _builder(archive: Archive, data_dir: Path) -> tfds.core.GeneratorBasedBuilder:
    infos = {
        archive.urls[name]: UrlInfo(tfds.core.utils.Size(size_bytes), sha256, name)
        for name, size_bytes, sha256 in archive.files
    }
    name = f"nopr_{archive.name}"
    members = {"name": name, "archive": archive, "url_infos": infos, "__module__": __name__}
    return type(name, (_Builder,), members, skip_registration=True)(data_dir=data_dir)


def _generate(archive: Archive, scratch: Path, manual: Path | None) -> Path:
    config = tfds.download.DownloadConfig(
        manual_dir=manual, try_download_gcs=False, force_checksums_validation=True
    )
    with _quiet(progress=manual is None):
        _builder(archive, scratch).download_and_prepare(
            download_dir=scratch / "downloads", download_config=config, file_format="array_record"
        )
    return prepared_folder(archive, scratch)


def _publish(ready: Path, target: Path) -> None:
    try:
        ready.rename(target)
    except OSError:
        if not target.is_dir():  # else another process finished first
            raise


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Generator[Path, None, None]:
    """A temporary folder, removed on exit even if downloads are still writing to it."""
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        yield scratch
    finally:
        for _ in range(50):
            shutil.rmtree(scratch, ignore_errors=True)
            if not scratch.exists():
                break
            time.sleep(0.1)


def _sweep(folder: Path) -> None:
    """Removes what preparations killed at least a day ago have left."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(scratch)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write_manifest(folder: Path) -> None:
    (folder / _MANIFEST).write_text(json.dumps(_digests(folder), indent=1))


def _check_manifest(folder: Path) -> None:
    try:
        intact = json.loads((folder / _MANIFEST).read_text()) == _digests(folder)
    except (OSError, ValueError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(
            f"The prepared copy in {folder} is damaged: its files do not have the SHA-256 listed "
            f"in {_MANIFEST}. Delete that folder, and it will be prepared again."
        )


def _read_split(archive: Archive, builder, split: str) -> Split:
    source = builder.as_data_source(split)
    size = archive.sizes[split]
    images = np.empty((size, *archive.shape), np.uint8)
    labels = np.empty(size, np.int32)
    for start in range(0, size, _BLOCK):
        # Reading records one by one takes four times as long.
        records = source.__getitems__(range(start, min(start + _BLOCK, size)))
        images[start : start + _BLOCK] = [record["image"] for record in records]
        labels[start : start + _BLOCK] = [record["label"] for record in records]
    return Split(images, labels)


@contextlib.contextmanager
def _quiet(*, progress: bool) -> Generator[None, None, None]:
    """Silences TFDS, except for its download bars on stderr if `progress`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not progress:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
