"""Pixels in training and in evaluation, from every encoding, are those that NumPy and Pillow compute."""

import re

import numpy as np
import pytest
import tensorflow as tf
from making import encode, input_config, photo, wrong_checksum
from reference_pixels import (
    FIXED_POINT,
    FLOAT32,
    assert_rounded,
    averaged,
    bilinear,
    draws_of,
    evaluated,
    stored,
    train,
)

from mixer.data.pixels import augment, augmentations, crops, images
from mixer.data.pixels.image_status import OK, STATUSES

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
    ((0, 0, 160, 200), 8), ((8, 16, 96, 120), 4), ((3, 5, 39, 40), 2), ((3, 5, 32, 40), 2), ((3, 5, 31, 90), 1),
    ((129, 0, 31, 200), 1),
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


def test_windows_come_from_the_draws_of_the_crop():
    config = input_config()
    draws, sizes = draws_of(config, 20), np.array([[40, 60]] * 20)
    found = augment.crop_windows(sizes, draws, config)
    np.testing.assert_array_equal(found, crops.inception_window(sizes, draws[:, 1:], config))  # the flip has the first


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("encoding", [images.PNG, images.JPEG])
def test_a_grey_file_has_three_equal_channels(encoding, scaled):
    config = input_config(image_size=30, scaled_decoding=scaled)
    grey = photo(30, 30)[..., 0]
    data = encode(grey, {images.PNG: "PNG", images.JPEG: "JPEG"}[encoding])
    found = train(
        data, encoding, (30, 30), (0, 0, 30, 30), np.zeros(augmentations.num_draws(config), np.float32), config
    )
    assert (found == found[..., :1]).all()
    assert np.abs(found[..., 0].astype(int) - grey).max() <= (6 if encoding == images.JPEG else 0)


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


# -------------------------------------------------------------------------------------------- truncation, as published


def published(image, size, method):
    """The end of big_vision's ops `resize` and `resize_small`."""
    return tf.cast(tf.clip_by_value(tf.image.resize(image, size, method), 0, 255), tf.uint8).numpy()


@pytest.mark.parametrize("shape", [(40, 60), (33, 33), (7, 50), (100, 19)])
def test_evaluation_truncates_by_option(shape):
    _, pixels = stored(photo(*shape), images.RAW)
    height, width = (max(round(side * 18 / min(shape)), 18) for side in shape)
    top, left = (height - 16) // 2, (width - 16) // 2
    for crop, whole in (
        ({}, published(pixels, (height, width), "area")[top : top + 16, left : left + 16]),
        ({"eval_crop": "resize_square", "eval_resize": 16}, published(pixels, (16, 16), "bilinear")),
    ):
        config = input_config(resize_rounding="truncate", **crop)
        np.testing.assert_array_equal(evaluated(pixels.tobytes(), images.RAW, shape, config), whole)


@pytest.mark.parametrize("crop", ["inception", "resize"])
def test_training_truncates_by_option(crop):
    config = input_config(resize_rounding="truncate", crop=crop, flip=False, image_size=96)
    _, pixels = stored(photo(200, 150), images.RAW)
    found = train(pixels.tobytes(), images.RAW, (200, 150), (20, 10, 150, 140), draws_of(config, 1)[0], config)
    expected = published(pixels[20:170, 10:150], (96, 96), "bilinear")
    assert np.mean(found != expected) < 1e-3  # where float32 is a little above or below a whole number
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_truncation_changes_no_flat_colour_in_training(value):
    config = input_config(resize_rounding="truncate", crop="resize", image_size=96)
    pixels = np.full((131, 177, 3), value, np.uint8)
    found = train(pixels.tobytes(), images.RAW, (131, 177), (0, 0, 131, 177), draws_of(config, 1)[0], config)
    assert set(np.unique(found)) == {value}


def test_a_narrow_image_is_truncated_too():
    image = images.inspect(encode(photo(61, 1001)), 10**6)  # made smaller: where whole numbers stay, float32 decides
    whole, cut = (input_config(max_pixels=most, resize_rounding="truncate") for most in (LARGE, SMALL))
    small = augment.cut_for_evaluation(image, NO_DRAWS, cut)
    found, expected = evaluated(small.data, small.encoding, (18, 18), cut), evaluated(*image[:2], (61, 1001), whole)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found.astype(int) - expected) == pytest.approx(0, abs=0.05)


def test_every_rounding_is_one_of_tensorflow_too():
    assert augment._ROUNDINGS.keys() == crops.RESIZE_ROUNDINGS.keys()


# ------------------------------------------------------------------------------------------------------ narrow pictures

NO_DRAWS = np.zeros(0, np.float32)
LARGE, SMALL = 10**9, 1000  # max_pixels with which a narrow image is resized as a whole, and with which it is cut


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 1001), (7, 333), (77, 2)])
def test_a_narrow_image_cut_before_it_is_resized_has_the_same_pixels(shape, file_format):
    image = images.inspect(encode(photo(*shape), file_format), 10**6)
    whole, cut = (input_config(max_pixels=most, crop="random") for most in (LARGE, SMALL))
    assert augment.cut_for_evaluation(image, NO_DRAWS, whole) == image
    small = augment.cut_for_evaluation(image, NO_DRAWS, cut)
    assert (small.encoding, small.height, small.width, small.status) == (images.RAW, 18, 18, OK)
    np.testing.assert_array_equal(
        evaluated(small.data, small.encoding, (18, 18), cut), evaluated(*image[:2], shape, whole)
    )
    seen = set()
    for draws in draws_of(whole, 8):
        small = augment.cut_for_training(image, draws, cut)
        found = train(small.data, small.encoding, (18, 18), (0, 0, 18, 18), draws, cut)
        np.testing.assert_array_equal(found, train(*image[:2], shape, (0, 0, *shape), draws, whole))
        seen.add(found.tobytes())
    assert len(seen) > 1


def test_thirty_thousand_pixels_in_a_row_take_little_memory():
    """Resized as a whole, 1 x 30,000 pixels would be 256 x 7,680,000, which took 23.6 GB."""
    row = np.random.default_rng(0).integers(0, 256, (1, 30_000, 3), np.uint8)
    image = images.inspect(encode(row), 10**8)
    config = input_config(image_size=224)
    small = augment.cut_for_evaluation(image, NO_DRAWS, config)
    found = evaluated(small.data, small.encoding, (small.height, small.width), config)
    # A pixel becomes 256, and the picture's middle is the border between two.
    np.testing.assert_array_equal(found, np.broadcast_to(np.repeat(row[:, 14_999:15_001], 112, axis=1), (224, 224, 3)))


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((8, 64), {}),  # not narrow, whatever the memory
        ((1, 500), {"crop": "inception"}),  # a window, which is not enlarged
        ((1, 500), {"crop": "random", "eval_crop": "resize_square"}),
    ],
)
def test_other_images_are_not_cut_before(shape, fields):
    image = images.inspect(encode(photo(*shape)), 10**6)
    config = input_config(max_pixels=SMALL, **fields)
    assert augment.cut_for_training(image, draws_of(config, 1)[0], config) == image


def test_a_narrow_image_that_cannot_be_decoded_has_a_status():
    image = images.inspect(wrong_checksum(encode(photo(1, 500))), 10**6)
    assert STATUSES[augment.cut_for_evaluation(image, NO_DRAWS, input_config(max_pixels=SMALL)).status] == "undecodable"


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


@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_before_the_end_of_a_jpeg_change_no_pixel(progressive, capfd):
    """The decoder skips them with a line on standard error, as docs/data.md says."""
    clean = encode(photo(40, 60), "JPEG", progressive=progressive)
    stray = clean[:-2] + b"\x11" * 29 + clean[-2:]
    found = images.inspect(stray, 10**6)
    assert found == (stray, images.JPEG, 40, 60, OK)
    expected = augment.decode_alone(clean, images.JPEG, (40, 60))
    capfd.readouterr()
    np.testing.assert_array_equal(augment.decode_alone(stray, images.JPEG, (40, 60)), expected)
    assert re.fullmatch(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9\n", capfd.readouterr().err)


@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_between_the_headers_of_a_jpeg_are_skipped_in_silence(progressive, capfd):
    clean = encode(photo(40, 60), "JPEG", progressive=progressive)
    found = images.inspect(clean[:20] + b"abc" + clean[20:], 10**6)
    assert (found.encoding, found.status) == (images.RAW, OK)
    assert capfd.readouterr().err == ""
