"""Splits, statistics, the embedded digits, and what `load` refuses."""

import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from nopr import data
from nopr.data import arrays

DIGITS = load_digits().images.astype(np.uint8)


@pytest.fixture(scope="module")
def raw_digits():
    return data.load("digits", normalize=False)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def parts(images):
    return images.train, images.validation, images.test


def test_the_digits_have_the_documented_sizes_shapes_and_types(digits):
    assert [len(part.labels) for part in parts(digits)] == [1197, 240, 360]
    assert digits.name == "digits"
    assert digits.classes == 10
    for part in parts(digits):
        assert part.images.shape == (len(part.labels), 8, 8, 1)
        assert part.images.dtype == np.float32
        assert part.labels.dtype == np.int32


def test_the_parts_of_the_digits_are_disjoint_and_complete(raw_digits):
    together = np.concatenate([part.images[..., 0] for part in parts(raw_digits)])
    # No two of the 1,797 images are equal, so equal sorted rows mean that each occurs once.
    assert len(np.unique(DIGITS.reshape(-1, 64), axis=0)) == len(DIGITS)
    np.testing.assert_array_equal(
        np.unique(together.reshape(-1, 64), axis=0), np.unique(DIGITS.reshape(-1, 64), axis=0)
    )
    assert len(together) == len(DIGITS)


def test_the_labels_stay_with_their_images(raw_digits):
    label_of = {
        image.tobytes(): label for image, label in zip(DIGITS, load_digits().target, strict=True)
    }
    for part in parts(raw_digits):
        found = [label_of[image.tobytes()] for image in part.images[..., 0]]
        np.testing.assert_array_equal(part.labels, found)


def test_every_part_of_the_digits_has_each_class_in_proportion(raw_digits):
    share = np.bincount(load_digits().target) / len(DIGITS)
    for part in parts(raw_digits):
        counts = np.bincount(part.labels, minlength=10)
        np.testing.assert_array_less(np.abs(counts - share * len(part.labels)), 1.5)


def test_the_seed_moves_the_validation_part_and_never_the_test_part(raw_digits):
    again = data.load("digits", normalize=False, seed=0)
    other = data.load("digits", normalize=False, seed=1)
    np.testing.assert_array_equal(again.train.images, raw_digits.train.images)
    np.testing.assert_array_equal(other.test.images, raw_digits.test.images)
    assert not np.array_equal(other.validation.images, raw_digits.validation.images)


def test_normalised_training_images_have_mean_0_and_deviation_1(digits):
    np.testing.assert_allclose(digits.train.images.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(digits.train.images.std(), 1, atol=1e-6)
    # The other parts are normalized by the training part's statistics, not by their own.
    assert abs(digits.test.images.mean()) > 1e-3


def test_normalising_undoes_to_the_raw_pixels(digits, raw_digits):
    pixels = (digits.test.images * digits.std[0] + digits.mean[0]) * 16
    np.testing.assert_allclose(pixels, raw_digits.test.images, atol=1e-5)


def test_padding_puts_black_pixels_around_before_normalizing(digits):
    padded = data.load("digits", pad=2)
    assert padded.train.images.shape == (1197, 12, 12, 1)
    assert padded.mean == digits.mean
    np.testing.assert_array_equal(padded.train.images[:, 2:-2, 2:-2], digits.train.images)
    black = np.float32(-digits.mean[0] / digits.std[0])
    np.testing.assert_allclose(padded.train.images[:, :2], black, rtol=1e-6)


@pytest.mark.parametrize(("validation", "held"), [(0, 0), (0.0, 0), (100, 100), (0.5, 718)])
def test_validation_is_a_count_or_a_fraction(validation, held):
    images = data.load("digits", validation=validation)
    assert len(images.validation.labels) == held
    assert len(images.train.labels) == 1437 - held


def test_statistics_are_those_of_each_channel(rng):
    images = rng.integers(0, 256, (7, 3, 5, 2), dtype=np.uint8)
    mean, std = arrays.statistics(images, white=255)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_cannot_be_normalized():
    with pytest.raises(ValueError, match="constant channel"):
        arrays.statistics(np.zeros((2, 3, 3, 1), np.uint8), white=255)


@given(
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=30),
    count=st.integers(0, 29),
    seed=st.integers(0, 9),
)
def test_holding_out_takes_exactly_the_count_and_each_class_in_proportion(labels, count, seed):
    labels = np.asarray(labels, np.int32)
    chosen = arrays.holdout(labels, count, seed=seed)
    assert chosen.sum() == count
    for label in range(5):
        share = np.sum(labels == label) * count / 30
        assert abs(np.sum(chosen & (labels == label)) - share) < 1


def test_every_example_is_as_likely_to_be_held_out():
    labels = np.repeat(np.arange(2, dtype=np.int32), [6, 12])
    often = np.mean([arrays.holdout(labels, 6, seed=seed) for seed in range(600)], axis=0)
    np.testing.assert_allclose(often, 1 / 3, atol=0.1)  # 5 standard deviations


@pytest.mark.parametrize("validation", [-1, -0.1, 1.0, 1437, 0.9999])
def test_a_validation_part_out_of_range_is_refused(validation):
    with pytest.raises(ValueError, match=r"`validation` must be .* got -?\d"):
        data.load("digits", validation=validation)


def test_negative_padding_and_seeds_are_refused():
    with pytest.raises(ValueError, match=r"`pad` must be .* got -1"):
        data.load("digits", pad=-1)
    with pytest.raises(ValueError, match=r"`seed` must be .* got -2"):
        data.load("digits", seed=-2)


@pytest.mark.long
def test_the_digits_need_no_tensorflow_datasets():
    code = (
        "import sys; from nopr import data; data.load('digits');"
        "assert not {'tensorflow_datasets', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "near"), [("mnsit", "mnist"), ("fashion-mnist", "fashion_mnist"), ("digit", "digits")]
)
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(name, near):
    known = "cifar10, cifar100, digits, fashion_mnist, mnist"
    with pytest.raises(ValueError, match=f"'{name}'; nearest is '{near}'. Known are {known}"):
        data.load(name)


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_set_that_needs_tensorflow_is_refused_where_there_is_none():
    with pytest.raises(ModuleNotFoundError, match=r"'svhn_cropped' .* TensorFlow.* pip install"):
        data.load("svhn_cropped")


def test_missing_original_files_are_named_at_once(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").touch()
    began = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", manual_dir=tmp_path, data_dir=tmp_path / "prepared")
    assert time.perf_counter() - began < 2
    message = str(caught.value)
    assert "train-images" not in message
    for stem in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{stem}-ubyte.gz" in message
    assert f"looked in {tmp_path / 'mnist'} and {tmp_path}." in message
    assert not (tmp_path / "prepared").exists()


def test_the_folder_of_originals_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NOPR_MANUAL_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("NOPR_DATA_DIR", str(tmp_path / "prepared"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load("fashion_mnist")


def test_a_name_in_the_wrong_case_gets_the_right_one_suggested():
    with pytest.raises(ValueError, match="Unknown dataset 'MNIST'; did you mean 'mnist'"):
        data.load("MNIST")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": None}, "`name` must be one of .*'?digits.*, got None"),
        ({"seed": "3"}, "`seed` must be a whole number of at least 0, got '3'"),
        ({"pad": []}, r"`pad` must be a whole number of at least 0, got \[\]"),
        ({"validation": np.array([0.5, 0.5])}, "`validation` must be a count .*, got array"),
        ({"validation": np.nan}, "`validation` must be a count .*, got nan"),
    ],
)
def test_options_of_another_type_are_refused(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "digits", **options})
