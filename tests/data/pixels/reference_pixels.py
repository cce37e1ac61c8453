"""Pixels and draws for the tests of crops and augmentations: exact resizing in float64, and calls of `augment`."""

import io

import numpy as np
import tensorflow as tf
from making import encode
from PIL import Image as PillowImage

from mixer.data import order
from mixer.data.pixels import augment, augmentations, images


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
