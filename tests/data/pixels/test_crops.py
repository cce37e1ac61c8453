"""Each crop of training, and the registries of crops. Windows have the distribution of TensorFlow's."""

import math

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from making import encode, input_config, photo
from reference_pixels import FIXED_POINT, assert_rounded, bilinear, draws_of, train
from scipy import stats

from mixer.data import order
from mixer.data.pixels import augment, images
from mixer.data.pixels.crops import CROPS, EVAL_CROPS, NUM_DRAWS, eval_resize, inception_window, shift

# ------------------------------------------------------------------------------------------------------------- windows


def expected_window(height, width, draws, area, aspect):
    """The first of ten attempts that fits, in Python's own numbers: first the aspect ratio, then one of the heights."""
    for ratio_draw, height_draw in zip(draws[2:12], draws[12:22], strict=True):
        ratio = aspect[0] + (aspect[1] - aspect[0]) * ratio_draw
        smallest, largest = (math.sqrt(height * width * share / ratio) for share in area)
        heights = max(min(round(largest), math.floor((width + 0.499) / ratio), height) - round(smallest) + 1, 1)
        rows = round(smallest) + math.floor(height_draw * heights)
        columns = round(rows * ratio)
        slack = 1.5 / min(height, width)
        is_inside = 1 <= rows <= height and 1 <= columns <= width
        if is_inside and area[0] - slack <= rows * columns / (height * width) <= area[1] + slack:
            top, left = draws[22] * (height - rows + 1), draws[23] * (width - columns + 1)
            return [math.floor(top), math.floor(left), rows, columns]
    return [0, 0, height, width]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=60),
    seed=st.integers(0, 10**6),
    area=st.sampled_from([(0.05, 1.0), (0.5, 0.9), (0.001, 0.01), (0.99, 1.0), (0.2, 0.2)]),
    aspect=st.sampled_from([(0.75, 4 / 3), (0.3, 0.4), (3.0, 5.0), (1.0, 1.0)]),
)
def test_windows_are_their_definition(sizes, seed, area, aspect):
    config = input_config(crop_area=area, crop_aspect=aspect)
    draws = order.uniform(seed, np.arange(len(sizes)), NUM_DRAWS)
    found = inception_window(np.array(sizes), draws, config)
    assert found.dtype == np.int32
    expected = [
        expected_window(*size, row.astype(np.float64).tolist(), area, aspect)
        for size, row in zip(sizes, draws, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (1200, 90), (64, 64), (150, 1900)])
@pytest.mark.parametrize("area", [(0.05, 1.0), (0.3, 0.6)])
def test_windows_are_distributed_as_tensorflow_s(shape, area):
    config = input_config(crop_area=area)
    count = 2000
    height, width = shape
    ours = augment.crop_windows(np.tile(shape, (count, 1)), draws_of(config, count), config).astype(float)
    theirs = np.zeros((count, 4))
    for i in range(count):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [*shape, 3], tf.zeros([0, 0, 4]), seed=[i, 1], min_object_covered=0.0, area_range=area,
            aspect_ratio_range=config.crop_aspect, max_attempts=100, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        theirs[i] = [*begin.numpy()[:2], *size.numpy()[:2]]

    def measures(windows: np.ndarray, last_place: int) -> dict[str, np.ndarray]:
        top, left, h, w = windows.T
        within = np.random.default_rng(0).random(count)  # makes positions continuous, as the test needs
        return {
            "area": h * w / (height * width),
            "aspect": w / h,
            "height": h / height,
            "top": (top + within) / np.maximum(height - h + last_place, 1),
            "left": (left + within) / np.maximum(width - w + last_place, 1),
        }

    its = measures(theirs, 0)  # TensorFlow never uses the last position
    for name, mine in measures(ours, 1).items():
        assert stats.ks_2samp(mine, its[name]).pvalue > 1e-3, name
        assert np.abs(np.quantile(mine, [0, 0.5, 1]) - np.quantile(its[name], [0, 0.5, 1])).max() < 0.06, name


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20),
    st.integers(0, 1000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
)
def test_windows_are_inside_the_image(sizes, seed, area, aspect):
    config = input_config(crop_area=tuple(area), crop_aspect=tuple(aspect))
    sizes = np.array(sizes)
    windows = augment.crop_windows(sizes, draws_of(config, len(sizes), seed), config)
    assert windows.dtype == np.int32
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] >= 1).all()
    assert (windows[:, :2] + windows[:, 2:] <= sizes).all()
    # A window is the whole image, or it has the requested area and aspect up to rounding to pixels.
    share = windows[:, 2] * windows[:, 3] / sizes.prod(axis=1)
    slack = 1.5 / sizes.min(axis=1)
    is_whole = (windows[:, 2:] == sizes).all(axis=1)
    assert (is_whole | ((share >= area[0] - slack) & (share <= area[1] + slack))).all()
    height, width = windows[:, 2], windows[:, 3]
    assert (is_whole | ((width >= height * aspect[0] - 0.51) & (width <= height * aspect[1] + 0.51))).all()


def test_a_window_depends_on_its_image_alone():
    config = input_config()
    sizes = np.random.default_rng(0).integers(1, 900, (50, 2))
    draws = draws_of(config, 50)
    together = augment.crop_windows(sizes, draws, config)
    alone = [augment.crop_windows(sizes[i : i + 1], draws[i : i + 1], config)[0] for i in range(50)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (3000, 2)])
def test_where_no_window_fits_it_is_the_whole_image(shape):
    config = input_config()
    windows = augment.crop_windows(np.tile(shape, (200, 1)), draws_of(config, 200), config)
    np.testing.assert_array_equal(windows, np.tile([0, 0, *shape], (200, 1)))


def test_at_the_paper_s_shares_a_window_is_nearly_always_found():
    config = input_config()
    sizes = np.tile([375, 500], (100_000, 1))
    windows = augment.crop_windows(sizes, draws_of(config, 100_000), config)
    assert np.mean((windows[:, 2:] == sizes).all(axis=1)) < 1e-4


def test_the_windows_are_those_of_earlier_versions():
    """A change here would change the batches of every run."""
    sizes = np.array([[375, 500], [500, 333], [64, 64], [1200, 90], [32, 32], [5, 7]])
    config = input_config()
    assert augment.crop_windows(sizes, draws_of(config, 6), config).tolist() == [
        [96, 128, 215, 221], [150, 181, 102, 130], [8, 14, 35, 46], [674, 6, 64, 84], [4, 4, 23, 28], [0, 2, 2, 2],
    ]  # fmt: skip
    sizes = 1 + np.stack([np.arange(1000) * 7 % 500, np.arange(1000) * 13 % 640], axis=1)
    windows = augment.crop_windows(sizes, draws_of(config, 1000), config)
    assert windows.sum(axis=0).tolist() == [61583, 87998, 124929, 134450]
    config = input_config(crop_area=(0.3, 0.6), crop_aspect=(0.5, 3.0))
    windows = augment.crop_windows(sizes, draws_of(config, 1000), config)
    assert windows.sum(axis=0).tolist() == [46720, 45884, 156500, 221547]


def test_opencv_computes_the_same_bytes_on_every_processor():
    assert not cv2.ipp.useIPP()


@pytest.mark.parametrize("crop", ["pad", "resize"])
def test_other_crops_see_the_whole_image(crop):
    config = input_config(crop=crop)
    sizes = np.array([[7, 9], [100, 30]])
    np.testing.assert_array_equal(
        augment.crop_windows(sizes, draws_of(config, 2), config), [[0, 0, 7, 9], [0, 0, 100, 30]]
    )


# -------------------------------------------------------------------------------------------------------------- pixels


def test_pad_shifts_by_an_eighth_in_every_direction():
    config = input_config(crop="pad")
    pixels = photo(16, 16)
    padded = np.pad(pixels, [(2, 2), (2, 2), (0, 0)], mode="reflect")
    possible = {}
    for top in range(5):
        for left in range(5):
            shifted = padded[top : top + 16, left : left + 16]
            possible[shifted.tobytes()] = (top, left, False)
            possible[shifted[:, ::-1].tobytes()] = (top, left, True)
    assert len(possible) == 50
    draws = draws_of(config, 600)
    seen = np.zeros(50, int)
    names = {name: i for i, name in enumerate(sorted(possible.values()))}
    for row in draws:
        seen[names[possible[train(pixels.tobytes(), images.RAW, (16, 16), (0, 0, 16, 16), row, config).tobytes()]]] += 1
    assert stats.chisquare(seen).pvalue > 1e-4


@pytest.mark.parametrize(("size", "margin"), [(32, 4), (33, 5), (224, 28)])
def test_the_margin_of_pad_is_an_eighth_of_the_size(size, margin):
    pixels = photo(size, size)
    found = shift(pixels, np.zeros(NUM_DRAWS, np.float32), input_config(crop="pad", image_size=size))
    np.testing.assert_array_equal(found[margin:, margin:], pixels[: size - margin, : size - margin])


@pytest.mark.parametrize("eval_crop", EVAL_CROPS)
def test_a_random_crop_is_any_part_of_what_evaluation_crops(eval_crop):
    config = input_config(crop="random", eval_crop=eval_crop)
    pixels = photo(18, 21)
    resized = pixels if eval_crop == "resize_small" else bilinear(pixels, 18, 18)
    parts = [
        resized[top : top + 16, left : left + 16][:, ::step]
        for top in range(3)
        for left in range(resized.shape[1] - 15)
        for step in (1, -1)
    ]
    seen = np.zeros(len(parts), int)
    for row in draws_of(config, 600):
        window = augment.crop_windows(np.array([[18, 21]]), row[None], config)[0]
        found = train(pixels.tobytes(), images.RAW, (18, 21), window, row, config)
        (place,) = [i for i, part in enumerate(parts) if np.abs(found - part).max() < 0.5 + 1e-3]
        seen[place] += 1
    assert stats.chisquare(seen).pvalue > 1e-4


def test_resize_squeezes_the_whole_image():
    config = input_config(crop="resize", flip=False)
    pixels = photo(20, 50)
    draws = draws_of(config, 1)
    window = augment.crop_windows(np.array([[20, 50]]), draws, config)[0]
    found = train(encode(pixels), images.PNG, (20, 50), window, draws[0], config)
    assert_rounded(found, bilinear(pixels, 16, 16), FIXED_POINT)


# ---------------------------------------------------------------------------------------------------------- registries


@pytest.mark.parametrize("crop", [*CROPS.values(), *EVAL_CROPS.values()], ids=[*CROPS, *EVAL_CROPS])
def test_every_crop_is_described(crop):
    described = crop.described.format(size=256)
    assert described.strip()
    assert "{" not in described


@pytest.mark.parametrize(("image_size", "size"), [(224, 256), (32, 37), (16, 18), (448, 512)])
def test_evaluation_resizes_to_eight_sevenths_unless_told_otherwise(image_size, size):
    assert eval_resize(input_config(image_size=image_size)) == size
    assert eval_resize(input_config(image_size=image_size, eval_resize=300)) == 300
