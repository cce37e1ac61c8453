"""From an encoded image to uint8 pixels of the model's size, in training and in evaluation.

TensorFlow decodes, because it can decode a part of a JPEG. NumPy and OpenCV crop and augment, two to three times as
fast as operations in TensorFlow's graph (docs/lab/input.md). The random numbers are drawn before (`order.uniform`), so
every function here is a pure function of image, draws and config.
"""

import functools

import ml_collections
import numpy as np
from jaxtyping import Float32, UInt8

from mixer.data import augmentations, crops, images
from mixer.data.tensorflow import tf

_JPEG_RATIOS = (1, 2, 4, 8)  # the scales 1/ratio at which a JPEG can be decoded


def crop_windows(sizes: np.ndarray, draws: np.ndarray, config: ml_collections.ConfigDict) -> crops.Windows:
    """Returns the part of each image that training decodes.

    Args:
      sizes: int [n, 2], heights and widths in pixels.
      draws: float32 [n, num_draws], see `augmentations.num_draws`.
      config: `config.input`.
    """
    crop_draws = draws[:, augmentations.draw_slices(config)["crop"]]
    return crops.CROPS[config.crop].window(sizes, crop_draws, config)


def train_pixels(
    data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
    """Decodes the part of an image that training uses: uint8 [height, width, 3].

    Args:
      data: string [], the image's bytes.
      encoding: int32 [], one of `images.RAW`, `images.JPEG` and `images.PNG`.
      size: int32 [2], the image's height and width in pixels.
      window: int32 [4], from `crop_windows`.
      config: `config.input`.
    """
    if crops.CROPS[config.crop].resized:
        return _resize_for_crop(decode(data, encoding, size, window), size, config)
    return decode(data, encoding, size, window, least=config.image_size if config.scaled_decoding else None)


def train_image(
    pixels: UInt8[np.ndarray, "height width 3"],
    draws: Float32[np.ndarray, " draws"],
    slices: augmentations.DrawSlices,
    config: ml_collections.ConfigDict,
    augmented: bool = True,
) -> UInt8[np.ndarray, "size size 3"]:
    """Crops the result of `train_pixels` to image_size x image_size pixels, and augments it.

    Args:
      pixels: at least 1 x 1 pixels.
      draws: uniform in [0, 1), as many as `augmentations.num_draws(config)`.
      slices: from `augmentations.draw_slices(config)`, which is too slow to call for every image.
      config: `config.input`.
      augmented: False only crops.
    """
    image = crops.CROPS[config.crop].cut(pixels, draws[slices["crop"]], config)
    return np.ascontiguousarray(augmentations.augment(image, draws, slices, config) if augmented else image)


def eval_image(data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
    """Decodes an image, resizes it and takes its centre, as in Section 3 of the paper.

    The arguments are those of `train_pixels`.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    image = decode(data, encoding, size, tf.concat([[0, 0], size], axis=0))
    image = _resize_for_crop(image, size, config)
    top, left = tf.unstack((tf.shape(image)[:2] - config.image_size) // 2)
    return tf.slice(image, [top, left, 0], [config.image_size, config.image_size, 3])


def _resize_for_crop(image: tf.Tensor, size: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
    """Resizes an image by the config's entry in `crops.EVAL_CROPS`. The caller then takes a part of it."""
    crop, target = crops.EVAL_CROPS[config.eval_crop], crops.eval_resize(config)
    if not crop.keeps_aspect:
        return _resize(image, [target, target], crop.method)
    scale = target / tf.cast(tf.reduce_min(size), tf.float64)
    resized = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32), target)
    return _resize(image, resized, crop.method)


def decode(
    data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor, least: int | None = None
) -> tf.Tensor:
    """Decodes a window of an image. Only those blocks of a JPEG are decoded that overlap the window.

    Args:
      least: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides of the window keep at
        least this many pixels. This averages pixels. It is faster, because the decoder computes fewer terms of each
        block's cosine transform. All other arguments are those of `train_pixels`.

    Returns:
      uint8 [height, width, 3]: of the window, or of the scaled window.
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


def can_decode(data: bytes, encoding: int, size: tuple[int, int]) -> bool:
    """Returns whether an image can be decoded completely. An error here, outside tf.data, ends no dataset."""
    try:
        decode(tf.constant(data), tf.constant(encoding), tf.constant(size), tf.constant([0, 0, *size]))
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _resize(image: tf.Tensor, size: tf.Tensor | list[int], method: str) -> tf.Tensor:
    def resized() -> tf.Tensor:
        return tf.saturate_cast(tf.round(tf.image.resize(image, size, method)), tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(tf.shape(image)[:2], size)), lambda: image, resized)
