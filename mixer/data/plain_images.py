"""Evaluation images without TensorFlow, whose import takes longer than a few hundred images.

Every pixel is that of `pipeline.eval_batches`: the same decoder of JPEG with the same cosine transform, and
TensorFlow's resizing in the same order of float32 operations. Damaged and very narrow images are left to TensorFlow.
"""

import concurrent.futures
import functools
import io
import itertools
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import PIL.Image
from etils import epy
from jaxtyping import UInt8

from mixer.data import unusable
from mixer.data.pixels import crops, image_status, images, permutation
from mixer.data.sources import Source
from mixer.runtime import machine

with epy.lazy_imports():
    import simplejpeg  # where it is missing, TensorFlow decodes

    from mixer.data.pixels import augment  # imports TensorFlow

Pixels = UInt8[np.ndarray, "_ _ 3"]  # of any height and width


def eval_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    rows: slice,
    records: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `pipeline.eval_batches` yields, by threads of Python.

    Args:
      source: the split.
      config: `config.input`.
      batch_size: of the global batch.
      rows: this host's rows of the global batch.
      records: the record numbers of the examples, in their order, int64 [n]; all examples if not given.
    """
    records = np.arange(source.num_examples) if records is None else records
    with concurrent.futures.ThreadPoolExecutor(machine.processors()) as pool:
        for start in range(0, len(records), batch_size):
            numbers = records[start : start + batch_size][rows]
            yield _batch(source, config, numbers, len(range(batch_size)[rows]), pool)


def _batch(
    source: Source,
    config: ml_collections.ConfigDict,
    numbers: np.ndarray,
    count: int,
    pool: concurrent.futures.Executor,
) -> dict[str, np.ndarray]:
    """Returns `count` rows: the records with these numbers, and padding."""
    size = config.image_size
    batch = {
        "image": np.zeros((count, size, size, 3), np.uint8),
        "labels": np.full((count, source.max_labels), -1, np.int32),
        "weight": np.zeros(count, np.float32),
        "status": np.full(count, image_status.OK, np.int32),
    }
    examples = source.fetch(numbers)
    made = pool.map(eval_image, (example.image for example in examples), itertools.repeat(config))
    for slot, (number, example, (pixels, status)) in enumerate(zip(numbers, examples, made, strict=True)):
        batch["image"][slot], batch["status"][slot] = pixels, status
        if status != image_status.OK:
            unusable.tell(source, int(number), status)
        else:
            batch["labels"][slot, : len(example.labels)] = example.labels
            batch["weight"][slot] = 1
    return batch


def eval_image(data: bytes | None, config: ml_collections.ConfigDict) -> tuple[Pixels, int]:
    """Decodes an image, resizes it, takes its centre and permutes it.

    Args:
      data: the file's bytes, or None for a record that cannot be read.
      config: `config.input`.

    Returns:
      uint8 [image_size, image_size, 3], black if the image cannot be used; and its status.
    """
    image = images.inspect(data, config.max_pixels, config.transparent, config.exif)
    if image.is_narrow:
        image = augment.cut_for_evaluation(image, np.empty(0, np.float32), config)
    pixels = _decoded(image) if image.status == image_status.OK else None
    if pixels is None:
        status = image_status.UNDECODABLE if image.status == image_status.OK else image.status
        return np.zeros((config.image_size, config.image_size, 3), np.uint8), status
    pixels = _resized_for_crop(pixels, config)
    top, left = crops.central_corner(np.array(pixels.shape[:2]), config)
    centre = pixels[top : top + config.image_size, left : left + config.image_size]
    return permutation.permuted(centre, permutation.order_of(config)), image_status.OK


def _decoded(image: images.EncodedImage) -> Pixels | None:
    """Decodes an image; None if that is impossible."""
    size = image.height, image.width
    if image.encoding == images.RAW:
        return np.frombuffer(image.data, np.uint8).reshape(*size, 3)
    try:
        if image.encoding == images.JPEG:
            decoded: Pixels = simplejpeg.decode_jpeg(image.data, fastdct=True)
            return decoded
        return np.asarray(PIL.Image.open(io.BytesIO(image.data), formats=("PNG",)).convert("RGB"))
    except Exception:  # of many kinds, by Pillow. Of a damaged image, what TensorFlow makes of it counts
        return augment.decode_alone(image.data, image.encoding, size)


def _resized_for_crop(pixels: Pixels, config: ml_collections.ConfigDict) -> Pixels:
    """Resizes an image by the config's entry in `crops.EVAL_CROPS`."""
    height, width = crops.eval_size(np.array(pixels.shape[:2]), config).tolist()
    if pixels.shape[:2] == (height, width):
        return pixels
    method = crops.EVAL_CROPS[config.eval_crop].method
    resize = _RESIZES.get(method) or functools.partial(augment.resized_alone, method=method)
    resized = resize(pixels, height, width)
    found: Pixels = np.clip(crops.RESIZE_ROUNDINGS[config.resize_rounding](resized), 0, 255).astype(np.uint8)
    return found


def _area(pixels: Pixels, height: int, width: int) -> np.ndarray:
    """Averages the area of each new pixel, as `tf.image.resize(method="area")` does."""
    rows, columns = (_Taps(*lengths) for lengths in zip(pixels.shape[:2], (height, width), strict=True))
    # First along each row, then along the columns, and the pixels of a sum from the first to the last.
    sums = _summed(pixels, columns, axis=1)
    sums = _summed(sums, rows, axis=0)
    return sums * (np.float32(1) / (rows.scale * columns.scale))


class _Taps:
    """The pixels of a line that a new pixel covers, and how much of each."""

    def __init__(self, before: int, after: int):
        """Computes them for a line of `before` pixels that becomes one of `after`."""
        self.scale = np.float32(before) / np.float32(after)
        start = np.arange(after, dtype=np.float32) * self.scale
        end = np.arange(1, after + 1, dtype=np.float32) * self.scale
        first, last = np.floor(start).astype(int), np.ceil(end).astype(int) - 1
        self.index = [np.minimum(first + tap, before - 1) for tap in range((last - first).max() + 1)]
        self.weight = [self._share(first + tap, start, end) * (first + tap <= last) for tap in range(len(self.index))]

    def _share(self, pixel: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        pixel = pixel.astype(np.float32)
        one = np.float32(1)
        begins = np.where(pixel + one > end, self.scale, pixel + one - start)
        inside = np.where(pixel + one > end, end - pixel, one)
        return np.where(pixel < start, begins, inside).astype(np.float32)


def _summed(values: np.ndarray, taps: _Taps, axis: int) -> np.ndarray:
    """Adds up the weighted values of each tap, in float32."""
    shape = (-1, 1) if axis == 1 else (-1, 1, 1)
    total: Any = np.float32(0)
    for index, weight in zip(taps.index, taps.weight, strict=True):
        total = total + np.take(values, index, axis).astype(np.float32) * weight.reshape(shape)
    summed: np.ndarray = total
    return summed


def _bilinear(pixels: Pixels, height: int, width: int) -> np.ndarray:
    """Interpolates between the four nearest pixels, as `tf.image.resize(method="bilinear")` does."""
    (top, bottom, down), (left, right, across) = (
        _neighbours(*lengths) for lengths in zip(pixels.shape[:2], (height, width), strict=True)
    )
    values = pixels.astype(np.float32)
    lines = values[:, left] + (values[:, right] - values[:, left]) * across[:, None]
    between: np.ndarray = lines[top] + (lines[bottom] - lines[top]) * down[:, None, None]
    return between


def _neighbours(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and after each new one on a line, and how far it is from the first to the second."""
    scale = np.float32(before) / np.float32(after)
    place = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    first = np.floor(place)
    lower, upper = np.maximum(first, 0).astype(int), np.minimum(np.ceil(place), before - 1).astype(int)
    return lower, upper, place - first


_RESIZES = {"area": _area, "bilinear": _bilinear}
