"""Image sets through TensorFlow Datasets: tiny ones of our own, and the real ones."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import time

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from nopr import data
from nopr.data import archives, arrays, catalogue, prepared

SIZES = {"train": 30, "test": 20}
SHAPE = (4, 5, 1)
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once


def idx(array):
    """The bytes of an idx file: two zeros, 8 for uint8, the number of dimensions, their sizes."""
    shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write_tiny(folder, *, seed=0):
    """Four small idx files under MNIST's names; returns what they hold."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    parts = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (SIZES[split], 4, 5), dtype=np.uint8)
        labels = np.arange(SIZES[split], dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        parts[split] = (images[..., None], labels)
    return parts


def describe(folder, *, name="tiny", url=NOWHERE):
    files = tuple(
        archives.File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    statistics = {"mean": (0.5,), "std": (0.3,)}
    return archives.Archive(
        name, url, files, catalogue.read_idx, SIZES, SHAPE, classes=10, **statistics
    )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A set named "tiny" whose originals are in `tmp_path / "tiny"`."""
    monkeypatch.delenv("NOPR_MANUAL_DIR", raising=False)
    monkeypatch.setenv("NOPR_DATA_DIR", str(tmp_path / "prepared"))
    parts = write_tiny(tmp_path / "tiny")
    monkeypatch.setitem(catalogue.ARCHIVES, "tiny", describe(tmp_path / "tiny"))
    return parts


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path / "tiny"` on the loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "tiny"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


load_raw = functools.partial(data.load, "tiny", normalize=False, validation=0)


def assert_holds(images, parts):
    for split in SIZES:
        found, (pixels, labels) = getattr(images, split), parts[split]
        np.testing.assert_array_equal(found.images, pixels)
        np.testing.assert_array_equal(found.labels, labels)


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def flip_a_bit(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def test_what_is_prepared_from_original_files_reads_back_bit_for_bit(tiny, tmp_path, capfd):
    assert_holds(load_raw(manual_dir=tmp_path), tiny)
    assert capfd.readouterr() == ("", "")
    (folder,) = (tmp_path / "prepared" / "nopr_tiny").iterdir()
    assert folder.name == archives.VERSION


def test_a_prepared_copy_needs_no_original_files(tiny, tmp_path):
    load_raw(manual_dir=tmp_path)
    assert_holds(load_raw(manual_dir=tmp_path / "nowhere"), tiny)
    assert_holds(load_raw(), tiny)


def test_the_original_files_may_lie_in_the_folder_itself(tiny, tmp_path):
    assert_holds(load_raw(manual_dir=tmp_path / "tiny"), tiny)


def test_a_set_is_fetched_from_the_network(tiny, tmp_path, server, monkeypatch):
    archive = catalogue.ARCHIVES["tiny"]._replace(url=server)
    monkeypatch.setitem(catalogue.ARCHIVES, "tiny", archive)
    assert_holds(load_raw(), tiny)


def test_a_download_that_is_not_as_published_is_refused(tiny, tmp_path, server, monkeypatch):
    archive = catalogue.ARCHIVES["tiny"]._replace(url=server)
    monkeypatch.setitem(catalogue.ARCHIVES, "tiny", archive)
    flip_a_bit(tmp_path / "tiny" / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match=r"download of 'tiny' is damaged\..*t10k-labels"):
        load_raw()
    assert not any((tmp_path / "prepared" / "nopr_tiny").iterdir())


def test_a_file_that_the_server_lacks_is_reported_at_once(tiny, tmp_path, server, monkeypatch):
    archive = catalogue.ARCHIVES["tiny"]._replace(url=server + "moved/")
    monkeypatch.setitem(catalogue.ARCHIVES, "tiny", archive)
    with pytest.raises(ConnectionError, match="File not found"):
        load_raw()


def test_without_network_and_folder_it_reports_which_files_to_put_where(tiny, tmp_path):
    began = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"NOPR_MANUAL_DIR .*tiny.* holds t10k-images"):
        load_raw()
    assert time.perf_counter() - began < 2
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_one_flipped_bit_in_an_original_file_is_found(tiny, tmp_path, name):
    path = tmp_path / "tiny" / name
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    flip_a_bit(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"{name} is not .* must be {expected}, found {found}\."):
        load_raw(manual_dir=tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_a_manifest_that_cannot_be_read_is_damage(tiny, tmp_path):
    load_raw(manual_dir=tmp_path)
    (path,) = (tmp_path / "prepared").rglob("sha256.json")
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{path.parent} is damaged.* Delete that folder"):
        load_raw()


@pytest.mark.parametrize("pattern", ["*train.array_record*", "*test.array_record*", "dataset_*"])
def test_one_flipped_bit_in_a_prepared_copy_is_found(tiny, tmp_path, pattern):
    load_raw(manual_dir=tmp_path)
    (path,) = (tmp_path / "prepared").rglob(pattern)
    flip_a_bit(path)
    with pytest.raises(ValueError, match=rf"{path.parent} is damaged.* Delete that folder"):
        load_raw()
    assert path.exists()


def test_sets_with_files_of_the_same_names_do_not_mix(tiny, tmp_path, monkeypatch):
    other = write_tiny(tmp_path / "other", seed=1)
    monkeypatch.setitem(catalogue.ARCHIVES, "other", describe(tmp_path / "other", name="other"))
    load_raw(manual_dir=tmp_path)
    assert_holds(data.load("other", manual_dir=tmp_path, normalize=False, validation=0), other)
    assert_holds(load_raw(), tiny)


def test_the_second_of_two_preparations_at_once_leaves_the_first_alone(tiny, tmp_path):
    archive, data_dir = catalogue.ARCHIVES["tiny"], tmp_path / "prepared"
    prepared.prepare(archive, data_dir, manual=tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in leftovers(data_dir)}
    prepared.prepare(archive, data_dir, manual=tmp_path / "tiny")
    assert {path: path.stat().st_mtime_ns for path in leftovers(data_dir)} == before
    assert_holds(load_raw(), tiny)


def test_files_of_a_preparation_killed_a_day_ago_are_removed(tiny, tmp_path):
    old, new = (tmp_path / "prepared" / "nopr_tiny" / f".preparing-{n}" for n in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    load_raw(manual_dir=tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may be at work there


def test_a_data_dir_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"'tiny' cannot be prepared in `data_dir` {tmp_path}/file"):
        load_raw(manual_dir=tmp_path, data_dir=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_the_binary_cifar_records_are_coarse_label_then_red_green_blue(tmp_path, rng):
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)
    records = [
        bytes([99, label]) + b"".join(image[..., c].tobytes() for c in range(3))
        for image, label in zip(images, labels, strict=True)
    ]
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("a.bin", records[:4]), ("b.bin", records[4:])):
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(b"".join(content))
            archive.addfile(info, io.BytesIO(b"".join(content)))
    read = catalogue.cifar_reader("folder", {"train": ("a.bin", "b.bin")}, skip=1)
    found, found_labels = read({"cifar.tar.gz": path}, "train")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(found_labels, labels)


def test_the_checksums_are_those_that_tensorflow_datasets_knows():
    published = checksums.get_all_url_infos()
    for archive in catalogue.ARCHIVES.values():
        for file in archive.files:
            info = published[archive.url + file.name]
            assert (info.size, info.checksum) == (file.size_bytes, file.sha256)


REAL = {
    # Training labels of each class, and the first five of them.
    "mnist": ([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [5, 0, 4, 1, 9]),
    "fashion_mnist": ([6000] * 10, [9, 0, 0, 3, 0]),
}


@pytest.fixture(scope="module")
def real(manual_dir, tmp_path_factory):
    """Loads a real set raw and whole, once."""
    data_dir = tmp_path_factory.mktemp("data")

    @functools.cache
    def load(name):
        return data.load(
            name, manual_dir=manual_dir, data_dir=data_dir, validation=0, normalize=False
        )

    load.data_dir = data_dir
    return load


@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_are_the_original_files(real, name, manual_dir):
    images = real(name)
    for split, stem, size in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        folder = manual_dir / name if (manual_dir / name).is_dir() else manual_dir
        pixels = gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((folder / f"{stem}-labels-idx1-ubyte.gz").read_bytes())[8:]
        part = getattr(images, split)
        assert part.images.shape == (size, 28, 28, 1)
        assert part.images.tobytes() == pixels
        assert part.labels.astype(np.uint8).tobytes() == labels


@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_have_the_published_labels_and_statistics(real, name):
    images = real(name)
    counts, first = REAL[name]
    np.testing.assert_array_equal(np.bincount(images.train.labels), counts)
    np.testing.assert_array_equal(images.train.labels[:5], first)
    mean, std = arrays.statistics(images.train.images, white=255)
    np.testing.assert_allclose([images.mean, images.std], [mean, std], atol=5e-5)


def test_mnist_and_fashion_mnist_are_not_the_same_images(real):
    mnist, fashion = real("mnist"), real("fashion_mnist")
    same = np.all(mnist.train.images[:1000] == fashion.train.images[:1000], axis=(1, 2, 3))
    assert not same.any()


def test_mnist_padded_for_the_isometry_protocol_is_32_by_32_and_split_in_six(real):
    images = data.load("mnist", data_dir=real.data_dir, pad=2)
    assert images.train.images.shape == (50_000, 32, 32, 1)
    assert images.validation.images.shape == (10_000, 32, 32, 1)
    np.testing.assert_allclose(images.test.images.min(), -0.1307 / 0.3081, rtol=1e-5)
    np.testing.assert_allclose(images.test.images.max(), (1 - 0.1307) / 0.3081, rtol=1e-5)
    inner = images.train.images[:, 2:-2, 2:-2]
    np.testing.assert_allclose([inner.mean(), inner.std()], [0, 1], atol=2e-3)
