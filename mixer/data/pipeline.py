"""The input pipeline: batches of uint8 images whose every byte is a function of (config, seed, step).

    positions of step t -> record numbers -> bytes, labels, crop windows, draws -> pixels -> this host's rows of batch t

A batch is a dict of NumPy arrays, of which a host gets its share of the rows:
    image   uint8   [rows, image_size, image_size, 3]
    labels  int32   [rows, max_labels], padded with -1
    weight  float32 [rows], 0 for an image that could not be read and for the padding of the last evaluation batch
    status  int32   [rows], an index into `image_status.STATUSES`
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np

from mixer.data import augment, augmentations, image_status, images, order
from mixer.data.sources import Source
from mixer.data.tensorflow import tf
from mixer.runtime import cpu
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_CHUNK = 64  # examples read together
_CORES = cpu.processors()
_READERS = min(8, _CORES)  # chunks at a time: reading is mostly Python, of which one thread runs at a time
_GROUP = 8  # images that one call of Python augments: of a call for each, TensorFlow would take a tenth of all time
_PREFETCH = 2  # batches


def train_batches(
    source: Source, config: ml_collections.ConfigDict, *, seed: int, batch_size: int, rows: slice, steps: range
) -> Iterator[Batch]:
    """Yields this host's share of the training batches of these steps.

    Args:
      source: the training split.
      config: `config.input`.
      seed: of the run.
      batch_size: of the global batch.
      rows: which of its rows are this host's.
      steps: the steps to yield, in order. Starting at step 900,000 costs what starting at step 0 does.
    """

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        examples = train_examples(
            source, config, seed=seed, batch_size=batch_size, rows=rows, steps=steps, verify=verify
        )
        return batched(train_images(examples, config), len(range(batch_size)[rows]))

    return batches_of(dataset, steps)


def train_examples(
    source: Source, config: ml_collections.ConfigDict, *, seed: int, batch_size: int, rows: slice, steps: range,
    verify: bool = False,
) -> tf.data.Dataset:  # fmt: skip
    """The rows of `train_batches` in groups, read and examined but not decoded; `verify`: each is tried first."""
    row_numbers = np.arange(batch_size)[rows]
    chunk, group = (math.gcd(len(row_numbers), most) for most in (_CHUNK, _GROUP))
    chunks = len(row_numbers) // chunk

    def numbers_at(positions: np.ndarray) -> np.ndarray:
        return order.record_numbers(positions, source.num_examples, seed, config.shuffle_block, config.shuffle_window)

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        step, part = number // chunks, number % chunks
        positions = step * batch_size + row_numbers[0] + part * chunk + tf.range(chunk, dtype=tf.int64)
        items = _load(source, config, positions, numbers_at, seed, verify)
        return {name: tf.reshape(item, [chunk // group, group, *item.shape[1:]]) for name, item in items.items()}

    return mapped(tf.data.Dataset.range(steps.start * chunks, steps.stop * chunks), load, _READERS).unbatch()


def train_images(
    examples: tf.data.Dataset, config: ml_collections.ConfigDict, augmented: bool = True
) -> tf.data.Dataset:
    """Decodes, crops and augments the images of `train_examples`. With `augmented=False` it does not augment."""
    slices = augmentations.draw_slices(config)

    @functools.partial(tf.function, autograph=False)  # traced once for all of a group
    def decoded(data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return augment.train_pixels(data, encoding, size, window, config)

    def finished(draws: np.ndarray, *pixels: np.ndarray) -> np.ndarray:
        pairs = zip(pixels, draws, strict=True)
        return np.stack([augment.train_image(*pair, slices, config, augmented) for pair in pairs])

    def finish(group: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        encoded = (tf.unstack(group[name]) for name in ("data", "encoding", "size", "window"))
        pixels = [decoded(*of) for of in zip(*encoded, strict=True)]
        image = tf.numpy_function(finished, [group["draws"], *pixels], tf.uint8)
        image.set_shape([len(pixels), config.image_size, config.image_size, 3])
        return _finished(group, image)

    return mapped(examples, finish)


def batched(groups: tf.data.Dataset, rows: int) -> tf.data.Dataset:
    """Puts groups together to `rows` of their rows each time."""

    def joined(items: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: tf.reshape(item, [rows, *item.shape[2:]]) for name, item in items.items()}

    batches = groups.batch(rows // group_size(groups), drop_remainder=True)
    return batches.map(tf.autograph.experimental.do_not_convert(joined))


def group_size(groups: tf.data.Dataset) -> int:
    """How many rows each group has."""
    return groups.element_spec["status"].shape[0]


def eval_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    rows: slice,
    records: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields this host's share of batches that hold every example once; the last is padded with weight zero.

    Args:
      source: the split.
      config: `config.input`.
      batch_size: of the global batch.
      rows: which of its rows are this host's.
      records: the examples to go through, in this order, int64 [n]; all if not given.
    """
    count = source.num_examples if records is None else len(records)
    row_numbers = np.arange(batch_size)[rows]
    steps = range(math.ceil(count / batch_size))

    def numbers_at(positions: np.ndarray) -> np.ndarray:
        numbers = positions if records is None else records[np.minimum(positions, count - 1)]
        return np.where(positions < count, numbers, -1)

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        positions = (np.arange(steps.start, steps.stop)[:, None] * batch_size + row_numbers).ravel()
        chunk = math.gcd(len(row_numbers), _CHUNK)
        ds = tf.data.Dataset.from_tensor_slices(positions.reshape(-1, chunk))

        def load(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            return _load(source, config, positions, numbers_at, 0, verify)

        def finish(item: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return _finished(item, augment.eval_image(item["data"], item["encoding"], item["size"], config))

        images = mapped(mapped(ds, load, _READERS).unbatch(), finish)
        return images.batch(len(row_numbers), drop_remainder=True)

    return batches_of(dataset, steps)


def mapped(ds: tf.data.Dataset, function: Callable[..., Any], calls: int = _CORES) -> tf.data.Dataset:
    """Maps in order, so many calls at a time; without AutoGraph, which has nothing to do and says so where it can."""
    return ds.map(tf.autograph.experimental.do_not_convert(function), num_parallel_calls=calls)


def batches_of(dataset: Callable[[range, bool], tf.data.Dataset], steps: range) -> Iterator[Batch]:
    """Yields the dataset's batches, and gets past an image that decodes neither here nor as its header promised.

    TensorFlow ends a dataset at the first error. As every batch is a function of its step, the one step is made again
    with each image tried before it is passed on, and the dataset is opened again behind it.
    """
    options = tf.data.Options()
    # The thread that would tune the pipeline misses the dataset's end when it looks a moment too early, and is waited
    # for while it sleeps on, up to a minute. What it gains is nothing (docs/lab/input.md).
    options.autotune.enabled = False
    verify = False
    while steps:
        batches = dataset(steps[:1] if verify else steps, verify).prefetch(_PREFETCH).with_options(options)
        try:
            for batch in batches.as_numpy_iterator():
                yield batch
                steps = steps[1:]
            verify = False
        except tf.errors.OpError as error:
            if message := _message(error):
                raise UserError(message) from None
            if verify or not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            _log.warning("An image of input batch %d does not decode; trying each by itself.", steps[0])
            verify = True


def _load(
    source: Source,
    config: ml_collections.ConfigDict,
    positions: tf.Tensor,
    numbers_at: Callable[[np.ndarray], np.ndarray],
    seed: int,
    verify: bool,
) -> dict[str, tf.Tensor]:
    """Reads and examines the records at these positions (-1: padding), and draws what chance gives the positions."""
    draws_per_example = augmentations.num_draws(config)

    def read(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        numbers = numbers_at(positions)
        present = np.flatnonzero(numbers >= 0)
        found = [images.unusable(image_status.OK)] * len(numbers)
        labels = np.full((len(numbers), source.max_labels), -1, np.int32)
        for slot, example in zip(present, source.fetch(numbers[present]), strict=True):
            image = images.inspect(example.image, config.max_pixels)
            if verify and not augment.decodes(image.data, image.encoding, (image.height, image.width)):
                image = images.unusable(image_status.UNDECODABLE)
            found[slot] = image
            if image.status == image_status.OK:
                labels[slot, : len(example.labels)] = example.labels
        data, encoding, height, width, status = zip(*found, strict=True)
        size = np.stack([height, width], axis=1).astype(np.int32)
        weight = ((numbers >= 0) & (np.array(status) == image_status.OK)).astype(np.float32)
        draws = order.uniform(seed, positions, draws_per_example)
        window = augment.crop_windows(size, draws, config)
        encoded = np.array([*data, None], object)[:-1]  # the None keeps NumPy from making fixed-width strings
        return encoded, np.array(encoding, np.int32), size, np.array(status, np.int32), labels, weight, window, draws

    kinds = [tf.string, tf.int32, tf.int32, tf.int32, tf.int32, tf.float32, tf.int32, tf.float32]
    names = ["data", "encoding", "size", "status", "labels", "weight", "window", "draws"]
    shapes = [[], [], [2], [], [source.max_labels], [], [4], [draws_per_example]]
    values = tf.numpy_function(read, [positions], kinds)
    for value, shape in zip(values, shapes, strict=True):
        value.set_shape([positions.shape[0], *shape])
    return dict(zip(names, values, strict=True))


def _finished(item: dict[str, tf.Tensor], image: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": image, "labels": item["labels"], "weight": item["weight"], "status": item["status"]}


def _message(error: tf.errors.OpError) -> str | None:
    """The line of a UserError that was raised while reading, which TensorFlow wraps in one of its own."""
    _, marker, rest = error.message.partition("UserError: ")
    return rest.splitlines()[0] if marker else None
