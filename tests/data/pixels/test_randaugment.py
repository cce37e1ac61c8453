"""Each operation is compared with NumPy in float64 or with PIL. RandAugment is a pure function of its draws."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageEnhance, ImageOps

from mixer.config import recipe
from mixer.data.pixels import augmentations
from mixer.data.pixels.randaugment import OPERATIONS, randaugment

NAMES = list(OPERATIONS)
MAGNITUDES = (0.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
GEOMETRIC = ("Rotate", "ShearX", "ShearY")
# Before truncation, float32 may be on the other side of a whole number than float64.
TOLERANCE = {"AutoContrast": 1, "Color": 1, "Contrast": 1, "Brightness": 1, "Sharpness": 1}


def photo(height: int = 224, width: int = 224, seed: int = 0) -> np.ndarray:
    """Returns a smooth picture with some noise, with a different range in each channel: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * y + 3 * x), np.cos(4 * x - y), np.sin(7 * x * y)]
    noise = rng.normal(0, 9, (height, width, 3))
    return np.clip(np.stack(waves, -1) * [60, 90, 30] + [90, 140, 100] + noise, 8, 240).astype(np.uint8)


def gray(image: np.ndarray) -> np.ndarray:
    return np.floor(image @ np.array([0.2989, 0.5870, 0.1140]) / 255 * 255.5)


def blend(degenerate: np.ndarray, image: np.ndarray, level: float) -> np.ndarray:
    factor = level * 1.8 + 0.1
    return np.clip(degenerate * (1 - factor) + image * factor, 0, 255)


def smooth(image: np.ndarray) -> np.ndarray:
    """Smooths with the weights 1 and 5 over 13, and truncates. The border stays as it is."""
    out, (height, width, _) = image.astype(np.float64), image.shape
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            window = image[y - 1 : y + 2, x - 1 : x + 2].astype(int)
            out[y, x] = (window.sum((0, 1)) + 4 * window[1, 1]) // 13
    return out


def warp(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Warps an image: output pixel (x, y) is input pixel matrix · (x, y, 1), rounded: [4, height, width, 3].

    The four outputs differ only where a coordinate is halfway between two pixels. There, either pixel is right.
    """
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    at = np.array(matrix) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1).astype(np.float64)
    outputs = []
    for nudge in ([-1e-4, -1e-4], [-1e-4, 1e-4], [1e-4, -1e-4], [1e-4, 1e-4]):
        nearest = np.floor(at + 0.5 + np.array(nudge)[:, None]).astype(int)
        from_x, from_y = nearest.reshape(2, height, width)
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        found = image[from_y.clip(0, height - 1), from_x.clip(0, width - 1)]
        outputs.append(np.where(inside[..., None], found, 128))
    return np.stack(outputs)


def about_centre(image: np.ndarray, degrees: float) -> list[list[float]]:
    """Returns the matrix of a rotation about the centre of the image, as a product of three matrices."""
    height, width, _ = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    there = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (np.linalg.inv(there) @ turn @ there)[:2].tolist()


def cut(image: np.ndarray, half: int, y: float, x: float) -> np.ndarray:
    out, (height, width, _) = image.copy(), image.shape
    row, column = int(y * height), int(x * width)
    out[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 128
    return out


def shift(image: np.ndarray, pixels: float, axis: int) -> np.ndarray:
    matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    matrix[1 - axis][2] = math.floor(pixels * min(image.shape[:2]) / 224 + 0.5)
    return warp(image, matrix)[0]


def pil(operation, image: np.ndarray, *args) -> np.ndarray:
    return np.asarray(operation(Image.fromarray(image), *args))


def published_contrast_mean(image: np.ndarray) -> int:
    """The published steps: a histogram of the gray image, the sum of its counts over 256, clipped, as uint8."""
    counts, _ = np.histogram(gray(image), bins=256, range=(0, 256))
    return int(np.uint8(np.clip(counts.sum() / 256.0, 0, 255)))


def reference(name: str, image: np.ndarray, level: float, sign: float, place: tuple[float, float]) -> np.ndarray:
    """Applies the published operation: [height, width, 3] in float64 or uint8."""
    bits, threshold = min(max(int(level * 4), 1), 8), int(level * 256) % 256
    half = int(level * 40) * min(image.shape[:2]) // 224
    wide = image.astype(int)
    operations = {
        "AutoContrast": lambda: pil(ImageOps.autocontrast, image),
        "Equalize": lambda: pil(ImageOps.equalize, image),
        "Invert": lambda: pil(ImageOps.invert, image),
        "Rotate": lambda: warp(image, about_centre(image, sign * level * 30)),
        "Posterize": lambda: pil(ImageOps.posterize, image, bits),
        "Solarize": lambda: pil(ImageOps.solarize, image, threshold),
        "Color": lambda: blend(gray(image)[..., None], image, level),
        "Contrast": lambda: blend(np.floor(gray(image).mean()), image, level),
        "Brightness": lambda: blend(np.zeros(()), image, level),
        "Sharpness": lambda: blend(smooth(image), image, level),
        "ShearX": lambda: warp(image, [[1, sign * level * 0.3, 0], [0, 1, 0]]),
        "ShearY": lambda: warp(image, [[1, 0, 0], [sign * level * 0.3, 1, 0]]),
        "TranslateX": lambda: shift(image, sign * level * 100, 1),
        "TranslateY": lambda: shift(image, sign * level * 100, 0),
        "Cutout": lambda: cut(image, half, *place),
        "SolarizeAdd": lambda: np.where(wide < 128, np.minimum(wide + int(level * 110), 255), wide),
    }
    return operations[name]()


def apply(name: str, image: np.ndarray, magnitude: float, sign: float, place: tuple[float, float]) -> np.ndarray:
    operation = OPERATIONS[name]
    return operation(image, magnitude / 10, sign, np.array(place))


def assert_matches(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape[-3:]
    if name in GEOMETRIC:
        assert (actual == expected).all(-1).any(0).all()
    else:
        # The reference keeps the fraction that the operation truncates.
        difference = np.floor(expected).astype(int) - actual.astype(int)
        assert np.abs(difference).max() <= TOLERANCE.get(name, 0)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", NAMES)
def test_operation_matches_reference(name, magnitude):
    for image, sign, place in [
        (photo(40, 56, seed=1), 1.0, (0.1, 0.95)),
        (photo(57, 33, seed=2), -1.0, (0.6, 0.4)),
    ]:
        expected = reference(name, image, magnitude / 10, sign, place)
        assert_matches(name, apply(name, image, magnitude, sign, place), expected)


@pytest.mark.parametrize("name", NAMES)
def test_operation_matches_reference_at_published_size(name):
    image = photo()
    expected = reference(name, image, 1.5, -1.0, (0.3, 0.9))
    assert_matches(name, apply(name, image, 15.0, -1.0, (0.3, 0.9)), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (4, 1), (3, 3)])
def test_tiny_images(size):
    image = photo(*size)
    for name in NAMES:
        expected = reference(name, image, 1.5, 1.0, (0.5, 0.5))
        assert_matches(name, apply(name, image, 15.0, 1.0, (0.5, 0.5)), expected)


@pytest.mark.parametrize(
    ("name", "enhancer", "tolerance"),
    # PIL rounds the gray image, its mean and the smoothed image, where the published code truncates. The blend
    # multiplies this difference of one level by 0.9.
    [
        ("Brightness", ImageEnhance.Brightness, 1),
        ("Color", ImageEnhance.Color, 2),
        ("Contrast", ImageEnhance.Contrast, 2),
        ("Sharpness", ImageEnhance.Sharpness, 2),
    ],
)
def test_enhancements_are_pils_to_rounding(name, enhancer, tolerance):
    image = photo()
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(1.9)).astype(int)
    assert np.abs(apply(name, image, 10.0, 1.0, (0, 0)) - expected).max() <= tolerance


def contrast_by(kind: str, image: np.ndarray, magnitude: float) -> np.ndarray:
    draws = np.array([[NAMES.index("Contrast") / 16, 0, 0, 0]], np.float32)
    return randaugment(image, draws, magnitude, kind)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("side", [32, 224, 300])
def test_contrast_as_published_and_as_pil(side, magnitude):
    image = photo(side, side)
    published = published_contrast_mean(image)
    assert published == {32: 4, 224: 196, 300: 255}[side]  # whatever is in the image
    expected = blend(np.full((), published), image, magnitude / 10)
    assert np.abs(contrast_by("published", image, magnitude) - np.floor(expected)).max() <= TOLERANCE["Contrast"]
    expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(magnitude / 10 * 1.8 + 0.1)).astype(int)
    # PIL rounds the mean and the blend, and the factor multiplies the difference.
    assert np.abs(contrast_by("pil", image, magnitude) - expected).max() <= 2 + magnitude / 10 * 1.8


@pytest.mark.parametrize("contrast", ["published", "pil"])
def test_the_config_says_which_contrast(contrast):
    config = recipe.base().input
    config.randaugment.update(layers=1, magnitude=15.0, contrast=contrast)
    image, draws = photo(), np.array([NAMES.index("Contrast") / 16, 0, 0, 0], np.float32)
    found = augmentations.AUGMENTATIONS["randaugment"].apply(image, draws, config)
    np.testing.assert_array_equal(found, contrast_by(contrast, image, 15.0))


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_warp_matches_the_kernel_of_the_published_code(name, sign):
    image = photo(120, 90)
    matrix = {
        "Rotate": about_centre(image, sign * 45),
        "ShearX": [[1, sign * 0.45, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [sign * 0.45, 1, 0]],
    }[name]
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.constant([[*matrix[0], *matrix[1], 0, 0]], tf.float32),
        output_shape=image.shape[:2],
        fill_value=128.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0].numpy()
    differing = (apply(name, image, 15.0, sign, (0, 0)) != expected).any(-1)
    assert differing.mean() < 0.005  # where a coordinate is halfway between two pixels


def test_published_pixels_at_224():
    image = photo()
    moved = apply("TranslateX", image, 15.0, 1.0, (0, 0))
    np.testing.assert_array_equal(moved[:, :74], image[:, 150:])
    assert (moved[:, 74:] == 128).all()
    moved = apply("TranslateY", image, 10.0, -1.0, (0, 0))
    np.testing.assert_array_equal(moved[100:], image[:124])
    assert (moved[:100] == 128).all()
    hole = (apply("Cutout", np.zeros_like(image), 15.0, 1.0, (0.5, 0.5)) == 128).all(-1)
    assert hole.sum() == 120 * 120
    assert hole[52:172, 52:172].all()


def test_small_images_move_and_lose_the_same_share():
    image = np.zeros((32, 32, 3), np.uint8)
    moved = apply("TranslateX", image, 15.0, 1.0, (0, 0))
    assert (moved == 128).all((0, 2)).sum() == 21  # of 32, like 150 of 224
    assert (apply("Cutout", image, 15.0, 1.0, (0.5, 0.5)) == 128).all(-1).sum() == 16 * 16


def test_solarize_threshold_wraps_around_as_published():
    image = photo(16, 16)
    for magnitude in (0.0, 10.0, 20.0):
        np.testing.assert_array_equal(apply("Solarize", image, magnitude, 1.0, (0, 0)), 255 - image)
    expected = np.where(image < 128, image, 255 - image)
    np.testing.assert_array_equal(apply("Solarize", image, 15.0, 1.0, (0, 0)), expected)


def test_magnitude_zero():
    image = photo(48, 48)
    zero = {name: apply(name, image, 0.0, 1.0, (0.5, 0.5)) for name in NAMES}
    for name in (*GEOMETRIC, "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"):
        np.testing.assert_array_equal(zero[name], image)
    assert set(np.unique(zero["Posterize"])) == {0, 128}
    assert zero["Brightness"].max() <= 25
    assert np.ptp(zero["Contrast"].astype(int)) < 0.2 * np.ptp(image.astype(int))


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_constant_images(value):
    image = np.full((9, 7, 3), value, np.uint8)
    for name in ("AutoContrast", "Equalize", "Sharpness"):
        np.testing.assert_array_equal(apply(name, image, 15.0, 1.0, (0.5, 0.5)), image)
    for name in NAMES:
        assert apply(name, image, 15.0, 1.0, (0.5, 0.5)).shape == image.shape


def augment(image: np.ndarray, draws: object) -> np.ndarray:
    """Applies one layer at magnitude 15."""
    return randaugment(image, np.array(draws, np.float32), 15.0)


def test_choice_is_uniform():
    image = photo(24, 24)
    outputs = {name: apply(name, image, 15.0, -1.0, (0.5, 0.5)) for name in NAMES}
    # Each operation is replaced by one that leaves its own mark, so the output tells which one ran.
    assert len({output.tobytes() for output in outputs.values()}) == len(NAMES)
    below_one = np.nextafter(np.float32(1), np.float32(0))
    for draw in np.append(np.arange(16 * 8) / (16 * 8), below_one):
        output = augment(image, [[draw, 0.2, 0.5, 0.5]])
        np.testing.assert_array_equal(output, outputs[NAMES[int(draw * 16)]])


def test_sign_follows_the_second_draw():
    image = photo(24, 24)
    for name in (*GEOMETRIC, "TranslateX", "TranslateY"):
        for draw, sign in [(0.0, -1.0), (0.4999, -1.0), (0.5, 1.0), (0.99, 1.0)]:
            expected = apply(name, image, 15.0, sign, (0.0, 0.0))
            np.testing.assert_array_equal(augment(image, [[NAMES.index(name) / 16, draw, 0, 0]]), expected)


images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 64), st.integers(1, 64), st.just(3)))
draws = hnp.arrays(np.float32, (1, 4), elements=st.floats(0, 1, width=32, exclude_max=True))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(images, draws)
def test_any_image_any_draw(image, draws):
    before = image.copy()
    first = augment(image, draws)
    np.testing.assert_array_equal(augment(image, draws), first)
    np.testing.assert_array_equal(image, before)
    name = NAMES[int(draws[0, 0] * 16)]
    sign = -1.0 if draws[0, 1] < 0.5 else 1.0
    place = (float(draws[0, 2]), float(draws[0, 3]))
    assert_matches(name, first, reference(name, image, 1.5, sign, place))


def test_layers_apply_in_order():
    image, rng = photo(64, 64), np.random.default_rng(0)
    for rows in rng.uniform(size=(40, 2, 4)).astype(np.float32):
        expected = image
        for choice, draw, *place in rows.tolist():
            name, sign = NAMES[int(choice * 16)], -1.0 if draw < 0.5 else 1.0
            expected = apply(name, expected, 10.0, sign, tuple(place))
        np.testing.assert_array_equal(randaugment(image, rows, 10.0), expected)


def test_without_layers_the_image_stays():
    image = photo(8, 8)
    np.testing.assert_array_equal(randaugment(image, np.zeros((0, 4), np.float32), 10.0), image)
