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


def test_coloured_digits_have_two_colours_that_differ_in_lightness(tmp_path, source):
    grey = digits.enlarge(source.images[5], 32)
    pictures = np.stack([digits.coloured(grey, number) for number in range(300)]).astype(np.float64)
    dark, light = pictures[:, grey[..., 0] == 0].mean(1), pictures[:, grey[..., 0] == 255].mean(1)
    lightness = (light - dark) @ [0.299, 0.587, 0.114]
    assert np.abs(lightness).min() > 59  # but for rounding
    assert 0.4 < (lightness > 0).mean() < 0.6  # the stroke is as often the darker one
    assert dark.std(0).min() > 60  # of 73.6 for uniform ones
    between = dark[:, None, None] + grey / 255 * (light - dark)[:, None, None]
    np.testing.assert_allclose(pictures, between, atol=1)
    np.testing.assert_array_equal(digits.coloured(grey, 7), pictures[7])


def test_the_coloured_dataset_has_the_same_digits(tmp_path):
    def examples(config):
        digits.Digits(config=config, data_dir=tmp_path).download_and_prepare()
        dataset = tfds.builder(f"digits/{config}", data_dir=tmp_path).as_dataset(split="train_seed0")
        return list(dataset.as_numpy_iterator())

    saturated = 0
    for plain, coloured in zip(examples("8"), examples("8-coloured"), strict=True):
        assert plain["label"] == coloured["label"]
        shape = np.corrcoef(plain["image"].mean(-1).ravel(), coloured["image"].mean(-1).ravel())[0, 1]
        assert abs(shape) > 0.9
        saturated += np.ptp(coloured["image"], axis=2).max() > 50
    assert saturated > 50


@pytest.mark.parametrize(
    "config", ["7", "x", "032", "2000", "32x32", "٣٢", "9" * 5000, "-coloured", "7-coloured", "32-color"]
)
def test_wrong_sizes_are_named(tmp_path, config):
    with pytest.raises(ValueError, match="a number of pixels from 8 to 1024"):
        digits.Digits(config=config, data_dir=tmp_path)


def test_without_scikit_learn_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "mixer-jax\[quickstart\]"'):
        digits.Digits(data_dir=tmp_path).download_and_prepare()
