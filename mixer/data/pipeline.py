"""The input pipeline: batches of uint8 images whose every byte is a function of (config, seed, step).

    positions of step t -> record numbers -> bytes, labels, crop windows, draws -> pixels -> this host's rows of batch t

A batch is a dict of NumPy arrays, of which a host gets its share of the rows:
    image   uint8   [rows, image_size, image_size, 3]
    labels  int32   [rows, max_labels], padded with -1
    weight  float32 [rows], 0 for an image that could not be read and for the padding of the last evaluation batch
    status  int32   [rows], an index into `images.STATUSES`
"""

import math
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import tensorflow as tf
from absl import logging

from mixer.data import augment, images, order
from mixer.data.sources import Source
from mixer.errors import UserError

Batch = dict[str, np.ndarray]

_CHUNK = 64  # examples read together
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
    row_numbers = np.arange(batch_size)[rows]
    chunk = math.gcd(len(row_numbers), _CHUNK)
    chunks = len(row_numbers) // chunk

    def load(number: tf.Tensor, verify: bool) -> dict[str, tf.Tensor]:
        step, part = number // chunks, number % chunks
        positions = step * batch_size + row_numbers[0] + part * chunk + tf.range(chunk, dtype=tf.int64)
        numbers = order.record_numbers(
            positions, source.num_examples, seed, config.shuffle_block, config.shuffle_window
        )
        return _load(source, config, numbers, positions, tf.ones(chunk), seed, verify)

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        ds = tf.data.Dataset.range(steps.start * chunks, steps.stop * chunks)
        ds = ds.map(lambda number: load(number, verify), num_parallel_calls=tf.data.AUTOTUNE).unbatch()

        def finish(item: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            image = augment.train_image(
                item["data"], item["encoding"], item["size"], item["window"], item["draws"], config
            )
            return _finished(item, image)

        return ds.map(finish, num_parallel_calls=tf.data.AUTOTUNE)

    return _batches(dataset, len(row_numbers), steps)


def eval_batches(source: Source, config: ml_collections.ConfigDict, *, batch_size: int, rows: slice) -> Iterator[Batch]:
    """Yields this host's share of batches that hold every example once; the last is padded with weight zero."""
    row_numbers = np.arange(batch_size)[rows]
    steps = range(math.ceil(source.num_examples / batch_size))

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        positions = (np.arange(steps.start, steps.stop)[:, None] * batch_size + row_numbers).ravel()
        chunk = math.gcd(len(row_numbers), _CHUNK)
        ds = tf.data.Dataset.from_tensor_slices(positions.reshape(-1, chunk))

        def load(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            weight = tf.cast(positions < source.num_examples, tf.float32)
            numbers = tf.where(positions < source.num_examples, positions, -1)
            return _load(source, config, numbers, positions, weight, 0, verify)

        def finish(item: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return _finished(item, augment.eval_image(item["data"], item["encoding"], item["size"], config))

        ds = ds.map(load, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
        return ds.map(finish, num_parallel_calls=tf.data.AUTOTUNE)

    return _batches(dataset, len(row_numbers), steps)


def _batches(dataset: Callable[[range, bool], tf.data.Dataset], rows: int, steps: range) -> Iterator[Batch]:
    """Batches the dataset, and gets past an image that decodes neither here nor as its header promised.

    TensorFlow ends a dataset at the first error. As every batch is a function of its step, the one step is made again
    with each image tried before it is passed on, and the dataset is opened again behind it.
    """
    while steps:
        batches = dataset(steps, False).batch(rows, drop_remainder=True).prefetch(_PREFETCH)
        try:
            for batch in batches.as_numpy_iterator():
                yield batch
                steps = steps[1:]
        except tf.errors.OpError as error:
            if message := _message(error):
                raise UserError(message) from None
            if not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            logging.warning("An image of input batch %d does not decode; trying each by itself.", steps[0])
            yield from dataset(steps[:1], True).batch(rows, drop_remainder=True).as_numpy_iterator()
            steps = steps[1:]


def _load(
    source: Source,
    config: ml_collections.ConfigDict,
    numbers: tf.Tensor,
    positions: tf.Tensor,
    weight: tf.Tensor,
    seed: int,
    verify: bool,
) -> dict[str, tf.Tensor]:
    """Reads and examines the records with these numbers (-1: padding), and draws what chance gives these positions."""
    draws_per_example = augment.num_draws(config)

    def read(numbers: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        present = np.flatnonzero(numbers >= 0)
        found = [images.unusable(images.OK)] * len(numbers)
        labels = np.full((len(numbers), source.max_labels), -1, np.int32)
        for slot, example in zip(present, source.fetch(numbers[present]), strict=True):
            image = images.inspect(example.image, config.max_pixels)
            if verify and not augment.decodes(image.data, image.encoding, (image.height, image.width)):
                image = images.unusable(images.UNDECODABLE)
            found[slot] = image
            if image.status == images.OK:
                labels[slot, : len(example.labels)] = example.labels
        data, encoding, height, width, status = zip(*found, strict=True)
        size = np.stack([height, width], axis=1).astype(np.int32)
        draws = order.uniform(seed, positions, draws_per_example)
        window = augment.crop_windows(size, draws, config)
        encoded = np.array([*data, None], object)[:-1]  # the None keeps NumPy from making fixed-width strings
        return encoded, np.array(encoding, np.int32), size, np.array(status, np.int32), labels, window, draws

    kinds = [tf.string, tf.int32, tf.int32, tf.int32, tf.int32, tf.int32, tf.float32]
    names = ["data", "encoding", "size", "status", "labels", "window", "draws"]
    shapes = [[], [], [2], [], [source.max_labels], [4], [draws_per_example]]
    values = tf.numpy_function(read, [numbers, positions], kinds)
    for value, shape in zip(values, shapes, strict=True):
        value.set_shape([numbers.shape[0], *shape])
    item = dict(zip(names, values, strict=True))
    item["weight"] = weight * tf.cast(tf.equal(item["status"], images.OK), tf.float32)
    return item


def _finished(item: dict[str, tf.Tensor], image: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": image, "labels": item["labels"], "weight": item["weight"], "status": item["status"]}


def _message(error: tf.errors.OpError) -> str | None:
    """The line of a UserError that was raised while reading, which TensorFlow wraps in one of its own."""
    _, marker, rest = error.message.partition("UserError: ")
    return rest.splitlines()[0] if marker else None
