import numpy as np
import pytest
import tensorflow_datasets as tfds

from mixer.data.datasets import leaves
from mixer.data.datasets.dead_leaves import picture


def small(image, factor):
    """Means of squares of pixels."""
    size = len(image) // factor
    return image.reshape(size, factor, size, factor, 3).mean((1, 3))


def test_seeds_and_numbers_give_other_pictures_each_time_the_same():
    assert picture(0, 3, 16).shape == (16, 16, 3)
    assert len({picture(seed, number, 16).tobytes() for seed in range(3) for number in range(20)}) == 60
    np.testing.assert_array_equal(picture(2, 5, 32), picture(2, 5, 32))


def test_every_picture_shows_something_and_they_have_all_colours():
    pictures = np.stack([picture(0, number, 24) for number in range(60)]).astype(np.float64)
    assert pictures.std((1, 2)).max(-1).min() > 5
    means = pictures.mean((1, 2))
    assert (means.std(0) > 25).all()  # of 73.6, if they were uniform
    assert np.abs(means.mean(0) - 127.5).max() < 25
    distances = np.linalg.norm(means[:, None] - means, axis=-1) + np.diag([np.inf] * 60)
    assert np.median(distances.min(1)) > 5  # two pictures seldom have the same mean colour


def test_a_size_changes_the_pixels_and_not_the_picture():
    for number in range(12):
        large, fine = picture(1, number, 32), picture(1, number, 128)
        difference = np.abs(small(fine, 4) - large)
        assert np.median(difference) < 6  # fine textures differ by what is smaller than a pixel
        assert np.corrcoef(small(fine, 16).ravel(), small(large, 4).ravel())[0, 1] > 0.98


def test_leaves_have_edges():
    """Neighbouring pixels are alike, as in photographs, but for few: a heavy tail of differences."""
    pictures = np.stack([picture(0, number, 64) for number in range(40)]).astype(np.float64).mean(-1)
    steps = np.diff(pictures, axis=2).ravel()
    kurtosis = np.mean(steps**4) / np.mean(steps**2) ** 2
    assert kurtosis > 6  # 3 for noise


def test_dataset_reads_back(tmp_path):
    leaves.Leaves(config="5x16-seed2", data_dir=tmp_path).download_and_prepare()
    builder = tfds.builder("leaves/5x16-seed2", data_dir=tmp_path)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 5}
    assert builder.info.features["label"].num_classes == 5
    found = {int(e["label"]): e["image"] for e in builder.as_dataset(split="train").as_numpy_iterator()}
    assert sorted(found) == list(range(5))
    for label, image in found.items():
        np.testing.assert_array_equal(image, picture(2, label, 16))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("5x4", "leaves/5x4: the size must be from 8 to 1024 pixels"),
        ("5x2000", "leaves/5x2000: the size must be from 8 to 1024 pixels"),
        ("1x16", "leaves/1x16: needs at least 2 pictures, since each is a category"),
        ("0x16", "leaves/0x16: name it pictures (2 to 999999) x pixels, as in leaves/2000x48 or leaves/2000x48-seed1"),
        ("1000000x16", "leaves/1000000x16: name it pictures (2 to 999999) x pixels"),
        ("3x40x16", "leaves/3x40x16: name it pictures (2 to 999999) x pixels"),
        ("5x16-seed0", "leaves/5x16-seed0: name it pictures (2 to 999999) x pixels"),
    ],
)
def test_a_wrong_name_is_told(name, told):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (its text is compared below)
        leaves.Shape.parse(name)
    assert str(error.value).startswith(told)


def test_names():
    assert leaves.Shape.parse("2000x48").name == "2000x48"
    assert leaves.Shape.parse("10x8-seed7") == leaves.Shape(10, 8, 7)
    assert leaves.Shape(10, 8, 7).name == "10x8-seed7"
