import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets as sklearn_datasets

from mixer.data.datasets import digits


@pytest.fixture(scope="module")
def source():
    return sklearn_datasets.load_digits()


def test_splits_are_disjoint_balanced_and_complete(source):
    splits = digits.split_indices(source.target)
    assert list(splits) == ["train_seed0", "train_seed1", "train_seed2", "test"]
    for seed in range(3):
        assert np.bincount(source.target[splits[f"train_seed{seed}"]]).tolist() == [10] * 10
    assert len(splits["test"]) == 1797 - 300
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(1797))


def test_enlarge_is_bilinear_with_half_pixel_centres():
    image = np.random.default_rng(0).integers(0, 17, (8, 8)).astype(np.float32)
    size = 32

    def interpolate(row):  # np.interp repeats the end values, like the border of an image
        return np.interp((np.arange(size) + 0.5) * 8 / size - 0.5, np.arange(8), row)

    expected = np.apply_along_axis(interpolate, 0, np.apply_along_axis(interpolate, 1, image)) * 255 / 16
    enlarged = digits.enlarge(image, size)
    assert enlarged.shape == (32, 32, 3)
    assert np.ptp(enlarged, axis=2).max() == 0
    np.testing.assert_allclose(enlarged[:, :, 0], expected, atol=1.0)


def test_enlarge_keeps_the_range():
    assert digits.enlarge(np.full((8, 8), 16, np.float32), 20).min() == 255
    assert digits.enlarge(np.zeros((8, 8), np.float32), 20).max() == 0
    assert np.array_equal(digits.enlarge(np.eye(8, dtype=np.float32) * 16, 8)[:, :, 0], np.eye(8) * 255)


def test_dataset_reads_back(tmp_path, source):
    digits.Digits(config="8", data_dir=tmp_path).download_and_prepare()
    builder = tfds.builder("digits/8", data_dir=tmp_path)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train_seed0": 100,
        "train_seed1": 100,
        "train_seed2": 100,
        "test": 1497,
    }
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(source.images, source.target, strict=True)
    }
    examples = list(builder.as_dataset(split="train_seed1").as_numpy_iterator())
    assert all(known[example["image"][:, :, 0].tobytes()] == example["label"] for example in examples)


@pytest.mark.parametrize("config", ["7", "x", "032", "2000", "32x32", "٣٢", "9" * 5000])
def test_wrong_sizes_are_named(tmp_path, config):
    with pytest.raises(ValueError, match="a number of pixels from 8 to 1024"):
        digits.Digits(config=config, data_dir=tmp_path)


def test_without_scikit_learn_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "mixer-jax\[quickstart\]"'):
        digits.Digits(data_dir=tmp_path).download_and_prepare()
