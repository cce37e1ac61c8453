"""Crop windows have TensorFlow's distribution. Pixels are those that NumPy and Pillow compute."""

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from making import encode, input_config, photo
from PIL import Image as PillowImage
from scipy import stats

from mixer.data import augment, augmentations, crops, images, order
from mixer.data.randaugment import randaugment


def draws_of(config, count: int, seed: int = 0) -> np.ndarray:
    return order.uniform(seed, np.arange(count), augmentations.num_draws(config))


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes without antialiasing, with half-pixel centres: float64 [height, width, 3]."""

    def weights(size: int, target: int) -> np.ndarray:
        at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((target, size))
        np.add.at(matrix, (np.arange(target), low), 1 - (at - low))
        np.add.at(matrix, (np.arange(target), np.minimum(low + 1, size - 1)), at - low)
        return matrix

    return np.einsum(
        "yh,hwc,xw->yxc", weights(image.shape[0], height), image, weights(image.shape[1], width), optimize=True
    )


def averaged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes to the mean of the area that each new pixel covers: float64 [height, width, 3]."""

    def weights(size: int, target: int) -> np.ndarray:
        edges = np.arange(target + 1) * size / target
        covered = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
        return np.maximum(covered, 0) * target / size

    return np.einsum(
        "yh,hwc,xw->yxc", weights(image.shape[0], height), image, weights(image.shape[1], width), optimize=True
    )


FLOAT32, FIXED_POINT = 1e-3, 0.35  # error in levels besides rounding: of TensorFlow's resize, and of OpenCV's


def assert_rounded(found: np.ndarray, exact: np.ndarray, beyond: float) -> None:
    """Checks that the pixels are the exact values up to rounding and `beyond` levels."""
    assert found.dtype == np.uint8
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, atol=0.5 + beyond)


def stored(pixels: np.ndarray, encoding: int) -> tuple[bytes, np.ndarray]:
    """Encodes pixels. Returns the file, and the pixels that it has; Pillow decodes those of a JPEG."""
    if encoding == images.RAW:
        return pixels.tobytes(), pixels
    if encoding == images.PNG:
        return encode(pixels), pixels
    data = encode(pixels, "JPEG", quality=98, subsampling=0)
    return data, np.asarray(PillowImage.open(io.BytesIO(data)))


def train(data, encoding, size, window, draws, config) -> np.ndarray:
    of = [tf.constant(value) for value in (data, np.int32(encoding), np.int32(size), np.int32(window))]
    pixels = augment.train_pixels(*of, config).numpy()
    return augment.train_image(pixels, draws, augmentations.draw_slices(config), config)


def evaluated(data, encoding, size, config) -> np.ndarray:
    return augment.eval_image(
        tf.constant(data), tf.constant(np.int32(encoding)), tf.constant(np.int32(size)), config
    ).numpy()


# ------------------------------------------------------------------------------------------------------------- windows


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


@pytest.mark.parametrize("crop", ["pad", "resize"])
def test_other_crops_see_the_whole_image(crop):
    config = input_config(crop=crop)
    sizes = np.array([[7, 9], [100, 30]])
    np.testing.assert_array_equal(
        augment.crop_windows(sizes, draws_of(config, 2), config), [[0, 0, 7, 9], [0, 0, 100, 30]]
    )


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("encoding", [images.RAW, images.PNG, images.JPEG])
@pytest.mark.parametrize(
    ("shape", "window"),
    [((40, 60), (0, 0, 40, 60)), ((40, 60), (7, 11, 23, 31)), ((40, 60), (39, 0, 1, 60)), ((1, 1), (0, 0, 1, 1)),
     ((16, 16), (0, 0, 16, 16)), ((5, 90), (2, 50, 3, 4))],
)  # fmt: skip
def test_training_crops_resizes_and_flips(encoding, shape, window):
    config = input_config()
    data, pixels = stored(photo(*shape), encoding)
    top, left, height, width = window
    exact = bilinear(pixels[top : top + height, left : left + width], 16, 16)
    for draws in draws_of(config, 8):
        found = train(data, encoding, shape, window, draws, config)
        expected = exact if draws[0] < 0.5 else exact[:, ::-1]
        if encoding == images.JPEG:  # TensorFlow's decoder is some levels off, as in the published code
            assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)
            assert np.abs(found - expected).max() <= 10
            assert np.abs(found - expected).mean() < 2
        else:
            assert_rounded(found, expected, FIXED_POINT)


def test_without_flip_none_is_flipped():
    config = input_config(flip=False)
    pixels = photo(16, 16)
    for draws in draws_of(config, 8):
        np.testing.assert_array_equal(
            train(encode(pixels), images.PNG, (16, 16), (0, 0, 16, 16), draws, config), pixels
        )


def test_half_are_flipped_whatever_the_window():
    config = input_config()
    draws = draws_of(config, 20_000)
    windows = augment.crop_windows(np.tile([300, 300], (20_000, 1)), draws, config)
    flipped = draws[:, 0] >= 0.5
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    for column in windows.T:
        assert abs(np.corrcoef(flipped, column)[0, 1]) < 5 / math.sqrt(20_000)


def test_a_part_of_a_jpeg_is_what_the_whole_has_there():
    """Only the outermost pixels of a window may differ: subsampled colours are smoothed with their neighbours."""
    config = input_config(flip=False, image_size=8)
    rng = np.random.default_rng(0)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            data = encode(photo(50, 70) + rng.integers(0, 20, (50, 70, 3), np.uint8), "JPEG", subsampling=subsampling,
                          progressive=progressive)  # fmt: skip
            whole = tf.io.decode_jpeg(data, channels=3).numpy()
            for top, left in rng.integers(0, (43, 63), (10, 2)):
                found = train(data, images.JPEG, (50, 70), (top, left, 8, 8), draws_of(config, 1)[0], config)
                inner = np.s_[1:-1, 1:-1] if subsampling else np.s_[:, :]
                np.testing.assert_array_equal(found[inner], whole[top : top + 8, left : left + 8][inner])


@pytest.mark.parametrize(("window", "ratio"), [
    ((0, 0, 160, 200), 8), ((8, 16, 96, 120), 4), ((3, 5, 39, 40), 2), ((3, 5, 31, 90), 1), ((129, 0, 31, 200), 1),
])  # fmt: skip
def test_scaled_decoding_averages_what_a_crop_has_to_spare(window, ratio):
    smooth, config = photo(160, 200), input_config(flip=False, scaled_decoding=True, image_size=16)
    data = encode(smooth, "JPEG", quality=98, subsampling=0)
    top, left, height, width = window
    pixels = augment.train_pixels(*map(tf.constant, (data, images.JPEG, [160, 200], list(window))), config).numpy()
    assert pixels.shape == (height // ratio, width // ratio, 3)
    found = train(data, images.JPEG, (160, 200), window, draws_of(config, 1)[0], config)
    exact = bilinear(averaged(smooth[top : top + height, left : left + width], *pixels.shape[:2]), 16, 16)
    assert np.abs(found - exact).mean() < 4  # the scaled window begins at a whole pixel of the scaled image
    config.scaled_decoding = False
    whole = train(data, images.JPEG, (160, 200), window, draws_of(config, 1)[0], config)
    assert (found != whole).any() == (ratio > 1)


@pytest.mark.parametrize("encoding", [images.PNG, images.JPEG])
def test_a_grey_file_has_three_equal_channels(encoding):
    config = input_config(image_size=30)
    grey = photo(30, 30)[..., 0]
    data = encode(grey, {images.PNG: "PNG", images.JPEG: "JPEG"}[encoding])
    found = train(
        data, encoding, (30, 30), (0, 0, 30, 30), np.zeros(augmentations.num_draws(config), np.float32), config
    )
    assert (found == found[..., :1]).all()
    assert np.abs(found[..., 0].astype(int) - grey).max() <= (6 if encoding == images.JPEG else 0)


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


@pytest.mark.parametrize("eval_crop", crops.EVAL_CROPS)
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


def test_randaugment_comes_last_and_has_draws_of_its_own():
    plain, augmented = input_config(), input_config(randaugment=2)
    assert augmentations.num_draws(augmented) == augmentations.num_draws(plain) + 8
    file, of = encode(photo(40, 40)), (images.PNG, (40, 40), (3, 4, 30, 30))
    changed = 0
    for row in draws_of(augmented, 20):
        before = train(file, *of, row[: augmentations.num_draws(plain)], plain)
        found = train(file, *of, row, augmented)
        layers = row[augmentations.num_draws(plain) :].reshape(2, 4)
        np.testing.assert_array_equal(found, randaugment(before, layers, 10.0))
        changed += (found != before).any()
    assert changed > 10


# ---------------------------------------------------------------------------------------------------------- evaluation

SHAPES = [(40, 60), (60, 40), (33, 33), (18, 18), (7, 90), (1, 1), (100, 19), (5, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", [images.RAW, images.PNG])
def test_evaluation_averages_to_the_small_side_and_takes_the_centre(shape, encoding):
    config = input_config()
    data, pixels = stored(photo(*shape), encoding)
    small = 18  # 8/7 of 16
    height, width = (max(round(side * small / min(shape)), small) for side in shape)
    top, left = (height - 16) // 2, (width - 16) // 2
    found = evaluated(data, encoding, shape, config)
    assert_rounded(found, averaged(pixels, height, width)[top : top + 16, left : left + 16], FLOAT32)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_of_the_square_is_bilinear(shape):
    config = input_config(eval_crop="resize_square", eval_resize=20)
    data, pixels = stored(photo(*shape), images.PNG)
    assert_rounded(evaluated(data, images.PNG, shape, config), bilinear(pixels, 20, 20)[2:18, 2:18], FLOAT32)


@pytest.mark.parametrize("eval_crop", crops.EVAL_CROPS)
@pytest.mark.parametrize("encoding", [images.RAW, images.PNG, images.JPEG])
def test_an_image_of_the_size_stays_as_it_is(eval_crop, encoding):
    config = input_config(eval_crop=eval_crop, eval_resize=32, image_size=32)
    data, pixels = stored(photo(32, 32), encoding)
    found = evaluated(data, encoding, (32, 32), config)
    if encoding == images.JPEG:
        np.testing.assert_array_equal(found, tf.io.decode_jpeg(data, channels=3))
    else:
        np.testing.assert_array_equal(found, pixels)


def test_evaluation_of_a_jpeg():
    config = input_config(image_size=28)
    data, pixels = stored(photo(64, 32), images.JPEG)
    exact = averaged(pixels, 64, 32)[18:46, 2:30]
    assert np.abs(evaluated(data, images.JPEG, (64, 32), config) - exact).max() <= 8


@pytest.mark.parametrize("shape", [(64, 64), (50, 80)])
def test_the_paper_s_sizes(shape):
    """An image is resized to 256 pixels, and its central 224 are used."""
    config = input_config(image_size=224)
    data, pixels = stored(photo(*shape), images.RAW)
    height, width = (round(side * 256 / min(shape)) for side in shape)
    top, left = (height - 224) // 2, (width - 224) // 2
    found = evaluated(data, images.RAW, shape, config)
    assert_rounded(found, averaged(pixels, height, width)[top : top + 224, left : left + 224], FLOAT32)


# ----------------------------------------------------------------------------------------------------------- a last try


def test_can_decode_says_whether_the_pixels_are_those_of_the_header():
    data = encode(photo(20, 30), "JPEG")
    assert augment.can_decode(data, images.JPEG, (20, 30))
    assert not augment.can_decode(data, images.JPEG, (21, 30))
    assert not augment.can_decode(data[:-300], images.JPEG, (20, 30))
    png = encode(photo(20, 30))
    assert augment.can_decode(png, images.PNG, (20, 30))
    assert not augment.can_decode(png, images.PNG, (20, 31))
    assert not augment.can_decode(png[:-30], images.PNG, (20, 30))
