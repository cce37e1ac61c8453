"""The registries of crops: which part of an image training and evaluation use, and how it is resized.

The random numbers are drawn before (`order.uniform`), so every function here is a pure function of image sizes or
pixels, draws and config. This file needs NumPy and OpenCV, and no TensorFlow.

To add a crop, write its functions and put it into `CROPS`. Every crop gets `NUM_DRAWS` draws for an image.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float32, Int32, UInt8

cv2.setNumThreads(0)  # the threads of tf.data already use every core
cv2.ipp.setUseIPP(False)  # IPP computes different bytes on processors of different makers

# Attempts to find a crop window. With the paper's 5 to 100% of the area, all fail for less than 1 image in 10,000.
_ATTEMPTS = 10
NUM_DRAWS = 4 + 2 * _ATTEMPTS
_CORNER, _WINDOW = slice(0, 2), slice(2, NUM_DRAWS)

# How values of a resized image, 0 to 255, become whole numbers.
RESIZE_ROUNDINGS = {"round": np.rint, "truncate": np.floor}

Pixels = UInt8[np.ndarray, "height width 3"]
Square = UInt8[np.ndarray, "size size 3"]
Sizes = np.ndarray  # int [n, 2], heights and widths in pixels
Windows = Int32[np.ndarray, "n 4"]  # top, left, height and width in pixels


class Crop(NamedTuple):
    """A way to take the model's input from an image in training.

    Attributes:
      described: a few words for model cards.
      window: returns the part of each image to decode, given (sizes, draws [n, NUM_DRAWS], `config.input`).
      cut: returns image_size x image_size pixels, given (pixels of that part, draws [NUM_DRAWS], `config.input`).
      resized: whether the decoded image is resized as in evaluation before `cut`.
    """

    described: str
    window: Callable[[Sizes, np.ndarray, ml_collections.ConfigDict], Windows]
    cut: Callable[[Pixels, np.ndarray, ml_collections.ConfigDict], Square]
    resized: bool = False


def whole(sizes: Sizes, draws: np.ndarray, config: ml_collections.ConfigDict) -> Windows:
    """Returns the whole image as the window of each image."""
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int32)


def inception_window(sizes: Sizes, draws: np.ndarray, config: ml_collections.ConfigDict) -> Windows:
    """Draws a window of config.crop_area of the image's area, with an aspect ratio in config.crop_aspect.

    The aspect ratio is drawn first, then the height among those with which the window fits. Sizes have the distribution
    of TensorFlow's sample_distorted_bounding_box, which the published Mixer code uses (from GoogLeNet, arXiv
    1409.4842), but for the rounding of the sides. Corners are uniform; TensorFlow never takes the last one, so its
    windows do not reach the last row and column (docs/fidelity.md). If every attempt fails, the window is the whole
    image.

    Args:
      sizes: of n images.
      draws: float32 [n, NUM_DRAWS], uniform in [0, 1).
      config: `config.input`.
    """
    draws = draws[:, _WINDOW].astype(np.float64)
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    area = (image_height * image_width).astype(np.float64)
    low, high = config.crop_aspect
    aspect = low + (high - low) * draws[:, :_ATTEMPTS]  # [n, attempts], as the arrays below
    smallest, largest = (np.sqrt(area * share / aspect) for share in config.crop_area)
    least = np.rint(smallest)
    most = np.minimum(np.rint(largest), np.minimum(np.floor((image_width + 0.499) / aspect), image_height))
    height = least + np.floor(draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * np.maximum(most - least + 1, 1))
    width = np.rint(height * aspect)
    # The share of the area needs no check: only the rounding of both sides can move it out of the range.
    fits = (height <= image_height) & (width <= image_width) & (height >= 1) & (width >= 1)

    image = np.arange(len(sizes))
    first = fits.argmax(axis=1)  # the first attempt that fits
    size = np.stack([height[image, first], width[image, first]], axis=1)
    corner = np.floor(draws[:, 2 * _ATTEMPTS :] * (sizes - size + 1))
    windows = np.concatenate([corner, size], axis=1).astype(np.int32)
    return np.where(fits.any(axis=1, keepdims=True), windows, whole(sizes, draws, config))


def resize(pixels: Pixels, draws: np.ndarray, config: ml_collections.ConfigDict) -> Square:
    """Resizes bilinearly to image_size x image_size. The result is within one level of TensorFlow's.

    OpenCV rounds what it resizes in uint8. To truncate, it resizes in float32, which takes twice as long; one value in
    8,000 of photographs then differs from TensorFlow's.
    """
    size = config.image_size
    if pixels.shape[:2] == (size, size):
        return pixels
    if config.resize_rounding == "truncate":
        resized = cv2.resize(pixels.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
        return np.clip(resized, 0, 255).astype(np.uint8)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)


def shift(pixels: Pixels, draws: np.ndarray, config: ml_collections.ConfigDict) -> Square:
    """Resizes to image_size x image_size, pads each side by an eighth (reflected), and takes a random part."""
    margin = math.ceil(config.image_size / 8)  # 4 pixels for CIFAR's 32
    padded = cv2.copyMakeBorder(resize(pixels, draws, config), margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    return random_part(padded, draws, config)


def random_part(pixels: Pixels, draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict) -> Square:
    """Takes a random part of image_size x image_size pixels."""
    size = config.image_size
    top, left = random_corner(np.array(pixels.shape[:2]), draws, config)
    return pixels[top : top + size, left : left + size]


def random_corner(
    size: np.ndarray, draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict
) -> np.ndarray:
    """Returns top and left of a random part of image_size x image_size pixels; `size` is the image's."""
    corner: np.ndarray = draws[_CORNER] * (size - config.image_size + 1)
    return corner.astype(int)


def central_corner(size: Any, config: ml_collections.ConfigDict) -> Any:
    """Returns top and left of the central image_size x image_size pixels; `size` is the image's, also as a tensor."""
    return (size - config.image_size) // 2


CROPS = {
    "inception": Crop("Inception crops", inception_window, resize),
    "random": Crop("random crops", whole, random_part, resized=True),
    "pad": Crop("random shifts", whole, shift),
    "resize": Crop("no crops", whole, resize),
}


class EvalCrop(NamedTuple):
    """A way to resize an image in evaluation. Its central image_size x image_size pixels are then taken.

    Attributes:
      described: a few words for model cards; {size} stands for `eval_resize(config)`.
      keeps_aspect: True resizes the shorter side to `eval_resize(config)` pixels, False both sides.
      method: of tf.image.resize.
    """

    described: str
    keeps_aspect: bool
    method: str


EVAL_CROPS = {
    "resize_small": EvalCrop("the shorter side brought to {size} pixels", keeps_aspect=True, method="area"),
    "resize_square": EvalCrop("brought to {size}x{size} pixels", keeps_aspect=False, method="bilinear"),
}


def eval_resize(config: ml_collections.ConfigDict) -> int:
    """Returns the size in pixels to which evaluation resizes before it crops.

    This is `config.eval_resize`, or 8/7 of the image size if that is not set: 256 for 224.

    Args:
      config: `config.input`.
    """
    return int(config.eval_resize or round(config.image_size * 8 / 7))


def eval_size(size: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """Returns the height and width to which evaluation resizes an image of this height and width."""
    target = eval_resize(config)
    if not EVAL_CROPS[config.eval_crop].keeps_aspect:
        return np.array([target, target])
    resized: np.ndarray = np.maximum(np.rint(size * (target / size.min())), target).astype(int)
    return resized
