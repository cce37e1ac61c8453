"""The input pipeline. It makes batches of uint8 images; every byte of a batch is a function of (config, seed, step).

    positions of step t -> record numbers -> bytes, labels, crop windows, draws -> pixels -> this host's rows of batch t

A batch is a dict of NumPy arrays with this host's rows of the global batch:
    image   uint8   [rows, image_size, image_size, 3]
    labels  int32   [rows, max_labels], padded with -1
    weight  float32 [rows], 0 for an image that cannot be used and for the padding of the last evaluation batch
    status  int32   [rows], an index into `image_status.STATUSES`

Inside the pipeline, rows are read in chunks and then handled in groups. A group has the same arrays as a batch, with
fewer rows.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np

from mixer.data import order, reading
from mixer.data.pixels import augment, augmentations, permutation
from mixer.data.sources import Source
from mixer.data.tensorflow import tf
from mixer.runtime import machine
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_CHUNK = 64  # rows that are read together
_CORES = machine.processors()
_READERS = min(8, _CORES)  # chunks that are read at a time; few, because only one thread at a time can run Python
# The same where reading waits for the network. At least 64 requests then wait, which is what runtime/bucket.py sends at
# a time. Memory: 16 x 64 encoded images, and as much again while they are taken out of the answers: 150 MB of photos.
_REMOTE_READERS = 16
_GROUP = 8  # rows that one call of Python augments; with a call for each row, the calls take a tenth of the time
_PREFETCH = 2  # batches


def train_batches(
    source: Source, config: ml_collections.ConfigDict, *, seed: int, batch_size: int, rows: slice, steps: range,
    offset: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Yields this host's share of the training batches of these steps.

    Args:
      source: the training split.
      config: `config.input`.
      seed: of the run.
      batch_size: of the global batch.
      rows: this host's rows of the global batch.
      steps: the steps to yield, in order. A start at step 900,000 takes no longer than a start at step 0.
      offset: added to each position. Not 0 in a run that began with another batch size, so that it skips no image.
    """

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        examples = train_examples(
            source, config, seed=seed, batch_size=batch_size, rows=rows, steps=steps, offset=offset, verify=verify
        )
        return batched(train_images(examples, config), len(range(batch_size)[rows]))

    return batches_of(dataset, steps)


def train_examples(
    source: Source, config: ml_collections.ConfigDict, *, seed: int, batch_size: int, rows: slice, steps: range,
    offset: int = 0, verify: bool = False,
) -> tf.data.Dataset:  # fmt: skip
    """Reads and examines the rows of `train_batches`, without decoding them.

    Args:
      verify: True also decodes each image once outside the dataset, where an error does no harm. An image that fails
        gets a status. All other arguments are those of `train_batches`.

    Returns:
      A dataset of groups. Each has the arrays that `reading.load` returns.
    """
    row_numbers = np.arange(batch_size)[rows]
    chunk, group = (math.gcd(len(row_numbers), most) for most in (_CHUNK, _GROUP))
    chunks = len(row_numbers) // chunk

    block = config.shuffle_block or source.shuffle_block
    source = reading.all_labelled(source)

    def numbers_at(positions: np.ndarray) -> np.ndarray:
        return order.record_numbers(positions, source.num_examples, seed, block, config.shuffle_window)

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        step, part = number // chunks, number % chunks
        positions = offset + step * batch_size + row_numbers[0] + part * chunk + tf.range(chunk, dtype=tf.int64)
        items = reading.load(source, config, positions, numbers_at, seed, verify, augment.cut_for_training)
        return {name: tf.reshape(item, [chunk // group, group, *item.shape[1:]]) for name, item in items.items()}

    return _read(tf.data.Dataset.range(steps.start * chunks, steps.stop * chunks), load, source)


def train_images(
    examples: tf.data.Dataset, config: ml_collections.ConfigDict, augmented: bool = True
) -> tf.data.Dataset:
    """Decodes, crops, augments and permutes the images of `train_examples`.

    Args:
      examples: from `train_examples`.
      config: `config.input`.
      augmented: False only decodes and crops.
    """
    slices = augmentations.draw_slices(config)
    pixel_order = permutation.order_of(config) if augmented else None

    @functools.partial(tf.function, autograph=False)  # traced once, not once for each image of a group
    def decoded(data: tf.Tensor, encoding: tf.Tensor, size: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return augment.train_pixels(data, encoding, size, window, config)

    def finished(draws: np.ndarray, *pixels: np.ndarray) -> np.ndarray:
        pairs = zip(pixels, draws, strict=True)
        images = np.stack([augment.train_image(*pair, slices, config, augmented) for pair in pairs])
        return permutation.permuted(images, pixel_order)

    def finish(group: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        encoded = (tf.unstack(group[name]) for name in ("data", "encoding", "size", "window"))
        pixels = [decoded(*image) for image in zip(*encoded, strict=True)]
        image = tf.numpy_function(finished, [group["draws"], *pixels], tf.uint8)
        image.set_shape([len(pixels), config.image_size, config.image_size, 3])
        return _batch_of(group, image)

    return mapped(examples, finish)


def batched(groups: tf.data.Dataset, rows: int) -> tf.data.Dataset:
    """Concatenates groups to batches of `rows` rows."""

    def joined(items: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: tf.reshape(item, [rows, *item.shape[2:]]) for name, item in items.items()}

    batches = groups.batch(rows // group_size(groups), drop_remainder=True)
    return batches.map(tf.autograph.experimental.do_not_convert(joined))


def group_size(groups: tf.data.Dataset) -> int:
    """Returns the number of rows in each group."""
    return int(groups.element_spec["status"].shape[0])


def eval_batches(
    source: Source,
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    rows: slice,
    records: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields this host's share of the evaluation batches. Together they have every example once.

    The last batch is padded with rows of weight zero.

    Args:
      source: the split.
      config: `config.input`.
      batch_size: of the global batch.
      rows: this host's rows of the global batch.
      records: the record numbers of the examples, in their order, int64 [n]; all examples if not given.
    """
    count = source.num_examples if records is None else len(records)
    row_numbers = np.arange(batch_size)[rows]
    steps = range(math.ceil(count / batch_size))
    pixel_order = permutation.order_of(config)

    def numbers_at(positions: np.ndarray) -> np.ndarray:
        numbers = positions if records is None else records[np.minimum(positions, count - 1)]
        return np.where(positions < count, numbers, -1)

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        positions = (np.arange(steps.start, steps.stop)[:, None] * batch_size + row_numbers).ravel()
        chunk = math.gcd(len(row_numbers), _CHUNK)
        ds = tf.data.Dataset.from_tensor_slices(positions.reshape(-1, chunk))

        def load(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            return reading.load(source, config, positions, numbers_at, 0, verify, augment.cut_for_evaluation)

        def finish(item: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            image = augment.eval_image(item["data"], item["encoding"], item["size"], config)
            if pixel_order is not None:
                image = tf.reshape(tf.gather(tf.reshape(image, [-1, 3]), pixel_order), image.shape)
            return _batch_of(item, image)

        images = mapped(_read(ds, load, source), finish)
        return images.batch(len(row_numbers), drop_remainder=True)

    return batches_of(dataset, steps)


def _read(chunks: tf.data.Dataset, load: Callable[..., Any], source: Source) -> tf.data.Dataset:
    """Maps a dataset of chunks to what `load` reads of the source, and takes the chunks apart."""
    if not source.remote:
        return mapped(chunks, load, _READERS).unbatch()
    # A call that waits for the network holds a thread. TensorFlow has only one for each core.
    options = tf.data.Options()
    options.threading.private_threadpool_size = _REMOTE_READERS + _CORES
    return mapped(chunks, load, _REMOTE_READERS).unbatch().with_options(options)


def mapped(ds: tf.data.Dataset, function: Callable[..., Any], calls: int = _CORES) -> tf.data.Dataset:
    """Maps a dataset in order, with up to `calls` concurrent calls. AutoGraph is off: it would only log warnings."""
    return ds.map(tf.autograph.experimental.do_not_convert(function), num_parallel_calls=calls)


def batches_of(dataset: Callable[[range, bool], tf.data.Dataset], steps: range) -> Iterator[Batch]:
    """Yields the batches of these steps, even if an image has a good header and its pixels cannot be decoded.

    TensorFlow ends a dataset at the first such error. A batch is a function of its step, so the failed step is made
    again with `verify`, which gives the image a status. Then the dataset is opened again at the next step.

    Args:
      dataset: returns the dataset of the batches of some steps, given (steps, verify). See `train_examples` for verify.
      steps: the steps to yield, in order.

    Raises:
      UserError: the source raised it.
    """
    options = tf.data.Options()
    # Autotuning makes nothing faster here (docs/lab/input.md). And its thread can miss the end of the dataset: it then
    # sleeps for up to a minute before it notices, and closing the dataset waits for it.
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
            _log.warning("Input batch %d has an image that cannot be decoded; decoding each by itself.", steps[0])
            verify = True


def _batch_of(item: dict[str, tf.Tensor], image: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the arrays of a batch, given those of `reading.load` and the images."""
    return {"image": image, "labels": item["labels"], "weight": item["weight"], "status": item["status"]}


def _message(error: tf.errors.OpError) -> str | None:
    """Returns the message of the UserError that TensorFlow has wrapped in its own error, or None if it has none."""
    _, marker, rest = error.message.partition("UserError: ")
    return rest.splitlines()[0] if marker else None
