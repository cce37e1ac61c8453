"""From an encoded image to uint8 pixels of the model's size, in training and in evaluation.

TensorFlow decodes, because it can decode a part of a JPEG. NumPy and OpenCV crop and augment, two to three times as
fast as operations in TensorFlow's graph (docs/lab/input.md). The random numbers are drawn before (`order.uniform`), so
every function here is a pure function of image, draws and config.
"""

import functools
from collections.abc import Callable

import ml_collections
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from mixer.data.pixels import augmentations, crops, image_status, images
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


def cut_for_training(
    image: images.EncodedImage, draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict
) -> images.EncodedImage:
    """Cuts a narrow image (see `_cut_if_large`), if the crop of training is taken from the resized image.

    Args:
      image: from `images.inspect`.
      draws: as many as `augmentations.num_draws(config)`.
      config: `config.input`.
    """
    if not (image.is_narrow and crops.CROPS[config.crop].resized):
        return image
    crop_draws = draws[augmentations.draw_slices(config)["crop"]]
    return _cut_if_large(image, config, lambda size: crops.random_corner(size, crop_draws, config))


def cut_for_evaluation(
    image: images.EncodedImage, draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict
) -> images.EncodedImage:
    """Cuts a narrow image (see `_cut_if_large`). An evaluation needs no draws."""
    if not image.is_narrow:
        return image
    return _cut_if_large(image, config, lambda size: crops.central_corner(size, config))


def _cut_if_large(
    image: images.EncodedImage, config: ml_collections.ConfigDict, corner_of: Callable[[np.ndarray], np.ndarray]
) -> images.EncodedImage:
    """Resizes and cuts an image so narrow that, resized as a whole, it would take too much memory.

    One pixel by 30,000, whose shorter side is brought to 256, would be 256 x 7,680,000. Only its part around the later
    crop is resized here. The crop then has the pixels that it would have had, within a rounding error of one level.

    Args:
      image: a narrow one, see `EncodedImage.is_narrow`.
      config: `config.input`.
      corner_of: returns where the crop begins in a resized image, given its height and width. It rises with both, by
        at most as much as they do.

    Returns:
      The image, if its resized pixels in float32 take no more bytes than max_pixels do in uint8. Otherwise an image
      whose shorter side is the target already, or one that cannot be used.
    """
    crop = crops.EVAL_CROPS[config.eval_crop]
    resized = crops.eval_size(np.array([image.height, image.width]), config)
    if not crop.keeps_aspect or 4 * resized.prod() <= config.max_pixels:
        return image
    if crop.method != "area":
        return images.unusable(image_status.TOO_LARGE)
    # The whole is decoded, because TensorFlow's pixels at the edge of a part of a JPEG are others.
    pixels = decode_alone(image.data, image.encoding, (image.height, image.width))
    if pixels is None:
        return images.unusable(image_status.UNDECODABLE)
    kept = np.minimum(resized, crops.eval_resize(config))
    values = _area_resized(pixels, resized, corner_of(resized) - corner_of(kept), kept)
    found = crops.RESIZE_ROUNDINGS[config.resize_rounding](values).astype(np.uint8)
    return images.EncodedImage(found.tobytes(), images.RAW, int(kept[0]), int(kept[1]), image_status.OK)


def _area_resized(pixels: np.ndarray, resized: np.ndarray, start: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Resizes an image by areas to the height and width `resized`; returns the `kept` pixels that begin at `start`."""
    size = np.array(pixels.shape[:2])
    first, stop = start * size // resized, -(-(start + kept) * size // resized)
    rows, columns = (
        _area_weights(begin + np.arange(count), np.arange(low, high), scale)
        for begin, count, low, high, scale in zip(start, kept, first, stop, size / resized, strict=True)
    )
    part = pixels[first[0] : stop[0], first[1] : stop[1]]
    values: np.ndarray = np.einsum("yh,hwc,xw->yxc", rows, part, columns, optimize=True)
    return values


def _area_weights(
    resized: Int[np.ndarray, " resized"], source: Int[np.ndarray, " source"], scale: float
) -> Float[np.ndarray, "resized source"]:
    """Returns the share of source pixels in resized pixels, given their numbers. A resized pixel covers `scale`."""
    left = resized[:, None] * scale
    covered = np.minimum(left + scale, source + 1) - np.maximum(left, source)
    share: np.ndarray = np.maximum(covered, 0) / scale
    return share


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
    pixels = window_pixels(data, encoding, size, window, config)
    return _resize_for_crop(pixels, size, config) if crops.CROPS[config.crop].resized else pixels


def window_pixels(
    data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor, config: ml_collections.ConfigDict
) -> tf.Tensor:
    """Decodes a window of an image as training does; arguments and result are those of `train_pixels`.

    With `config.scaled_decoding`, a large JPEG comes out smaller. Not if what follows resizes it by a ratio of its own.
    """
    scaled = config.scaled_decoding and not crops.CROPS[config.crop].resized
    return decode(data, encoding, size, window, least=config.image_size if scaled else None)


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
    top, left = tf.unstack(crops.central_corner(tf.shape(image)[:2], config))
    return tf.slice(image, [top, left, 0], [config.image_size, config.image_size, 3])


def _resize_for_crop(image: tf.Tensor, size: tf.Tensor, config: ml_collections.ConfigDict) -> tf.Tensor:
    """Resizes an image by the config's entry in `crops.EVAL_CROPS`. The caller then takes a part of it."""
    crop, target = crops.EVAL_CROPS[config.eval_crop], crops.eval_resize(config)
    if not crop.keeps_aspect:
        return _resize(image, [target, target], crop.method, config.resize_rounding)
    scale = target / tf.cast(tf.reduce_min(size), tf.float64)
    resized = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32), target)
    return _resize(image, resized, crop.method, config.resize_rounding)


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
    """Returns whether an image can be decoded completely."""
    return decode_alone(data, encoding, size) is not None


def decode_alone(data: bytes, encoding: int, size: tuple[int, int]) -> np.ndarray | None:
    """Decodes an image outside tf.data, where an error ends no dataset: uint8 [height, width, 3].

    Returns:
      None if the image cannot be decoded completely.
    """
    try:
        arguments = tf.constant(data), tf.constant(encoding), tf.constant(size), tf.constant([0, 0, *size])
        decoded: np.ndarray = decode(*arguments).numpy()
        return decoded
    except tf.errors.InvalidArgumentError:
        return None


def resized_alone(pixels: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Resizes an image outside tf.data: float32 [height, width, 3], not yet rounded."""
    resized: np.ndarray = tf.image.resize(pixels, [height, width], method).numpy()
    return resized.astype(np.float32)


_ROUNDINGS = {"round": tf.round, "truncate": tf.floor}  # those of `crops.RESIZE_ROUNDINGS`


def _resize(image: tf.Tensor, size: tf.Tensor | list[int], method: str, rounding: str) -> tf.Tensor:
    def resized() -> tf.Tensor:
        return tf.saturate_cast(_ROUNDINGS[rounding](tf.image.resize(image, size, method)), tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(tf.shape(image)[:2], size)), lambda: image, resized)
