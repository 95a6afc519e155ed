"""The image sets that are prepared here: their files, statistics and readers."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nopr.data.archives import Archive, File, Reader
from nopr.data.arrays import Labels, Pixels

# SHA-256, bytes, and name without "-ubyte.gz".
_MNIST_FILES = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 9912422 train-images-idx3
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 28881 train-labels-idx1
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 1648877 t10k-images-idx3
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 4542 t10k-labels-idx1
"""
_FASHION_MNIST_FILES = """
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 26421880 train-images-idx3
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 29515 train-labels-idx1
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 4422102 t10k-images-idx3
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 5148 t10k-labels-idx1
"""


def read_idx(files: Mapping[str, Path], split: str) -> tuple[Pixels, Labels]:
    """Reads the gzipped idx files of the MNIST family."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = _idx(files[f"{stem}-images-idx3-ubyte.gz"])
    labels = _idx(files[f"{stem}-labels-idx1-ubyte.gz"])
    return images[..., None], labels.astype(np.int32)


def cifar_reader(folder: str, parts: Mapping[str, tuple[str, ...]], *, skip: int) -> Reader:
    """A reader of the binary CIFAR archives.

    A record has `skip` bytes of coarse labels, the label, and 1,024 bytes each of red, green and
    blue.

    Args:
      folder: The folder within the archive.
      parts: The files of each official part, in order.
      skip: Number of bytes before the label.
    """

    def read(files: Mapping[str, Path], split: str) -> tuple[Pixels, Labels]:
        (path,) = files.values()
        with tarfile.open(path) as archive:
            members = [archive.extractfile(f"{folder}/{part}") for part in parts[split]]
            content = b"".join(member.read() for member in members if member)
        records = np.frombuffer(content, np.uint8).reshape(-1, skip + 1 + 3 * 32 * 32)
        planes = records[:, skip + 1 :].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), records[:, skip].astype(np.int32)

    return read


def _idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def mnist_like(name: str, url: str, table: str, *, mean: float, std: float) -> Archive:
    """An archive of four idx files, given as lines of SHA-256, size in bytes and stem."""
    rows = [line.split() for line in table.split("\n") if line]
    files = tuple(File(f"{stem}-ubyte.gz", int(size), sha256) for sha256, size, stem in rows)
    return Archive(
        name,
        url,
        files,
        read_idx,
        sizes={"train": 60_000, "test": 10_000},
        shape=(28, 28, 1),
        classes=10,
        mean=(mean,),
        std=(std,),
    )


_MNIST = mnist_like(
    "mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    _MNIST_FILES,
    mean=0.1307,
    std=0.3081,
)
_FASHION_MNIST = mnist_like(
    "fashion_mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    _FASHION_MNIST_FILES,
    mean=0.2860,
    std=0.3530,
)
_CIFAR10 = Archive(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/",
    files=(
        File(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    read=cifar_reader(
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        skip=0,
    ),
    sizes={"train": 50_000, "test": 10_000},
    shape=(32, 32, 3),
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_CIFAR100 = _CIFAR10._replace(
    name="cifar100",
    files=(
        File(
            "cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    read=cifar_reader("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, skip=1),
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)

ARCHIVES: Mapping[str, Archive] = {
    archive.name: archive for archive in (_MNIST, _FASHION_MNIST, _CIFAR10, _CIFAR100)
}
"""Every image set that this package prepares itself, by name."""
