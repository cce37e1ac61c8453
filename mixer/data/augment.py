"""From an encoded image to uint8 pixels of the model's size, in training and in evaluation.

TensorFlow decodes, since it can decode a part of a JPEG; what training does to the pixels then is NumPy and OpenCV,
two to three times as fast as operations in TensorFlow's graph (docs/performance.md). Chance enters as numbers drawn
beforehand (`order.uniform`): every function here is a pure function of image and draws.
"""

import functools
import math

import cv2
import ml_collections
import numpy as np
import tensorflow as tf
from jaxtyping import Float32, UInt8

from mixer.data import images
from mixer.data.randaugment import randaugment

cv2.setNumThreads(0)  # the threads of `tf.data` are on every core already
cv2.ipp.setUseIPP(False)  # which would give other bytes on processors of another make

CROPS = ("inception", "random", "pad", "resize")
EVAL_CROPS = ("resize_small", "resize_square")

_JPEG_RATIOS = (1, 2, 4, 8)
_ATTEMPTS = 10  # at a crop window; the share of images for which all fail is below 1e-4 at the paper's 5-100%
_FLIP, _CORNER, _WINDOW = 0, slice(1, 3), slice(3, 5 + 2 * _ATTEMPTS)
_RANDAUGMENT = 5 + 2 * _ATTEMPTS


def num_draws(config: ml_collections.ConfigDict) -> int:
    """How many uniform numbers an example's augmentation takes; config is `config.input`."""
    return _RANDAUGMENT + 4 * config.randaugment.layers


def crop_windows(sizes: np.ndarray, draws: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """The part of each image that training looks at: int32 [n, 4] as (top, left, height, width).

    For crop="inception" a random window of 5-100% of the area and an aspect ratio of 3/4-4/3, drawn as TensorFlow's
    sample_distorted_bounding_box draws it (GoogLeNet, arXiv 1409.4842; the published Mixer code uses that operation):
    the aspect ratio first, then the height among those whose window fits. Otherwise the whole image.

    Args:
      sizes: int [n, 2], heights and widths in pixels.
      draws: float32 [n, num_draws].
      config: `config.input`.
    """
    whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int32)
    if config.crop != "inception":
        return whole
    draws = draws[:, _WINDOW].astype(np.float64)
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    area = (image_height * image_width).astype(np.float64)
    low, high = config.crop_aspect
    aspect = low + (high - low) * draws[:, :_ATTEMPTS]  # [n, attempts], as below
    smallest, largest = (np.sqrt(area * share / aspect) for share in config.crop_area)
    least = np.rint(smallest)
    most = np.minimum(np.rint(largest), np.minimum(np.floor((image_width + 0.499) / aspect), image_height))
    height = least + np.floor(draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * np.maximum(most - least + 1, 1))
    width = np.rint(height * aspect)
    share = height * width / area
    slack = 1.5 / np.minimum(image_height, image_width)  # rounding to pixels may leave the range by so much
    fits = (height <= image_height) & (width <= image_width) & (height >= 1) & (width >= 1)
    fits &= (share >= config.crop_area[0] - slack) & (share <= config.crop_area[1] + slack)

    rows = np.arange(len(sizes))
    first = fits.argmax(axis=1)
    size = np.stack([height[rows, first], width[rows, first]], axis=1)
    corner = np.floor(draws[:, 2 * _ATTEMPTS :] * (sizes - size + 1))
    windows = np.concatenate([corner, size], axis=1).astype(np.int32)
    return np.where(fits.any(axis=1, keepdims=True), windows, whole)


def train_pixels(
    data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
    """Decodes what training takes its image from: uint8 [height, width, 3].

    Args:
      data: string [], the image's bytes.
      encoding: int32 [], one of `images.RAW`, `JPEG` and `PNG`.
      size: int32 [2], its height and width.
      window: int32 [4], from `crop_windows`.
      config: `config.input`.
    """
    if config.crop == "random":
        return _resize_for_crop(decode(data, encoding, size, window), size, config)
    return decode(data, encoding, size, window, least=config.image_size if config.scaled_decoding else None)


def train_image(
    pixels: UInt8[np.ndarray, "height width 3"], draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict
) -> UInt8[np.ndarray, "size size 3"]:
    """Brings what `train_pixels` made to config.image_size, flips and augments it.

    Args:
      pixels: at least 1 x 1 px.
      draws: [num_draws], uniform in [0, 1).
      config: `config.input`.
    """
    size = config.image_size
    image = pixels
    if config.crop != "random" and image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)  # as TensorFlow's, within a level
    if config.crop == "pad":
        margin = math.ceil(size / 8)  # 4 pixels for CIFAR's 32
        image = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    if config.crop in ("random", "pad"):
        top, left = (draws[_CORNER] * (np.array(image.shape[:2]) - size + 1)).astype(int)
        image = image[top : top + size, left : left + size]
    if config.flip and draws[_FLIP] >= 0.5:
        image = cv2.flip(image, 1)
    if config.randaugment.layers:
        image = randaugment(image, draws[_RANDAUGMENT:].reshape(-1, 4), config.randaugment.magnitude)
    return np.ascontiguousarray(image)


def eval_image(data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
    """Decodes one image and crops its centre (Section 3 of the paper): uint8 [image_size, image_size, 3].

    eval_crop="resize_small" first brings the shorter side to `eval_resize` pixels, averaging areas as the published
    code does; "resize_square" both sides, bilinearly.
    """
    image = decode(data, encoding, size, tf.concat([[0, 0], size], axis=0))
    image = _resize_for_crop(image, size, config)
    top, left = tf.unstack((tf.shape(image)[:2] - config.image_size) // 2)
    return tf.slice(image, [top, left, 0], [config.image_size, config.image_size, 3])


def _resize_for_crop(image: tf.Tensor, size: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
    """Brings an image to the size of which evaluation takes the centre, and crop="random" any part."""
    target = config.eval_resize or round(config.image_size * 8 / 7)
    if config.eval_crop == "resize_square":
        return _resize(image, [target, target], "bilinear")
    scale = target / tf.cast(tf.reduce_min(size), tf.float64)
    resized = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32), target)
    return _resize(image, resized, "area")


def decode(
    data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor, least: int | None = None
) -> tf.Tensor:
    """The window's pixels, uint8 [height, width, 3]. Of a JPEG only the blocks that it touches are decoded.

    With `least`, a JPEG is decoded at a half, a quarter or an eighth of its size where both of the window's sides keep
    so many pixels: each block's cosine transform is cut short, which averages pixels and takes less time.
    """

    def cropped(image: tf.Tensor) -> tf.Tensor:
        return tf.slice(image, [window[0], window[1], 0], [window[2], window[3], 3])

    def jpeg() -> tf.Tensor:
        if least is None:
            return tf.io.decode_and_crop_jpeg(data, window, channels=3)
        fits = [tf.cast(tf.reduce_min(window[2:]) >= ratio * least, tf.int32) for ratio in _JPEG_RATIOS[1:]]
        scaled = [
            functools.partial(tf.io.decode_and_crop_jpeg, data, window // ratio, channels=3, ratio=ratio)
            for ratio in _JPEG_RATIOS
        ]
        return tf.switch_case(tf.add_n(fits), scaled)

    branches = {
        images.RAW: lambda: cropped(tf.reshape(tf.io.decode_raw(data, tf.uint8), [size[0], size[1], 3])),
        images.JPEG: jpeg,
        images.PNG: lambda: cropped(tf.io.decode_png(data, channels=3)),
    }
    image = tf.switch_case(encoding, branches)
    image.set_shape([None, None, 3])
    return image


def decodes(data: bytes, encoding: int, size: tuple[int, int]) -> bool:
    """Whether an image decodes to the end; run outside the graph, where a failure is an answer and not the end."""
    try:
        decode(tf.constant(data), tf.constant(encoding), tf.constant(size), tf.constant([0, 0, *size]))
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _resize(image: tf.Tensor, size: tf.Tensor | list[int], method: str) -> tf.Tensor:
    def resized() -> tf.Tensor:
        return tf.saturate_cast(tf.round(tf.image.resize(image, size, method)), tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(tf.shape(image)[:2], size)), lambda: image, resized)
