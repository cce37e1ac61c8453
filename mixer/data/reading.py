"""Reads records and examines their images, before any is decoded."""

import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np

from mixer.data import order, unusable
from mixer.data.pixels import augment, augmentations, image_status, images
from mixer.data.sources import Example, Source
from mixer.data.tensorflow import tf
from mixer.runtime.errors import UserError

Cut = Callable[[images.EncodedImage, np.ndarray, ml_collections.ConfigDict], images.EncodedImage]


def load(
    source: Source,
    config: ml_collections.ConfigDict,
    positions: tf.Tensor,
    numbers_at: Callable[[np.ndarray], np.ndarray],
    seed: int,
    verify: bool,
    cut: Cut,
) -> dict[str, tf.Tensor]:
    """Reads and examines the records at these positions, and makes the draws of these positions.

    Args:
      source: of the records.
      config: `config.input`.
      positions: int64 [n].
      numbers_at: returns the record numbers at these positions; -1 is padding.
      seed: of the draws.
      verify: see `pipeline.train_examples`.
      cut: keeps a narrow image from filling the memory, see `augment.py`.

    Returns:
      Arrays by name, with one element for each position: `data` (the encoded image), `encoding` and `size` (see
      `augment.train_pixels`), `window` (see `augment.crop_windows`), `draws`; `labels`, `weight` and `status` as in a
      batch.
    """
    draws_per_example = augmentations.num_draws(config)
    arrays = {  # by name: the type, and the shape for one position
        "data": (tf.string, []),
        "encoding": (tf.int32, []),
        "size": (tf.int32, [2]),
        "window": (tf.int32, [4]),
        "draws": (tf.float32, [draws_per_example]),
        "labels": (tf.int32, [source.max_labels]),
        "weight": (tf.float32, []),
        "status": (tf.int32, []),
    }

    def loaded(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        draws = order.uniform(seed, positions, draws_per_example)
        found = _examined(source, config, numbers_at(positions), draws, verify, cut)
        return tuple(found[name] for name in arrays)

    values = tf.numpy_function(loaded, [positions], [kind for kind, _ in arrays.values()])
    for value, (_, shape) in zip(values, arrays.values(), strict=True):
        value.set_shape([positions.shape[0], *shape])
    return dict(zip(arrays, values, strict=True))


def _examined(
    source: Source, config: ml_collections.ConfigDict, numbers: np.ndarray, draws: np.ndarray, verify: bool, cut: Cut
) -> dict[str, np.ndarray]:
    """Reads and examines the records with these numbers; see `load` for arguments and result."""
    present = np.flatnonzero(numbers >= 0)
    found = [images.unusable(image_status.OK)] * len(numbers)  # padding stays like this
    labels = np.full((len(numbers), source.max_labels), -1, np.int32)
    for slot, example in zip(present, source.fetch(numbers[present]), strict=True):
        image = images.inspect(example.image, config.max_pixels, config.transparent, config.exif)
        if verify and not augment.can_decode(image.data, image.encoding, (image.height, image.width)):
            image = images.unusable(image_status.UNDECODABLE)
        image = cut(image, draws[slot], config)
        found[slot] = image
        if image.status != image_status.OK:
            unusable.tell(source, int(numbers[slot]), image.status)
        else:
            labels[slot, : len(example.labels)] = example.labels
    data, encoding, height, width, status = zip(*found, strict=True)
    size = np.stack([height, width], axis=1).astype(np.int32)
    return {
        "data": np.array(data, object),  # NumPy's fixed-width strings would lose zero bytes at the end
        "encoding": np.array(encoding, np.int32),
        "size": size,
        "window": augment.crop_windows(size, draws, config),
        "draws": draws,
        "labels": labels,
        "weight": ((numbers >= 0) & (np.array(status) == image_status.OK)).astype(np.float32),
        "status": np.array(status, np.int32),
    }


def all_labelled(source: Source) -> Source:
    """Returns a source that raises an error where an example has no label. To a loss it would belong to no class."""
    if source.multi_label:  # an empty set of labels is one
        return source

    def fetch(numbers: np.ndarray) -> list[Example]:
        examples = source.fetch(numbers)
        for number, (image, labels) in zip(numbers, examples, strict=True):
            if image is not None and max(labels, default=-1) < 0:
                raise UserError(
                    f"training example {number:,} has no label: leave the unlabelled images, such as a test split, out "
                    "of config.input.train_split"
                )
        return examples

    return dataclasses.replace(source, fetch=fetch)
