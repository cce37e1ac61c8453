"""Makes pictures, image files and small prepared datasets for the tests of the input."""

import io
import pathlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from mixer.config import recipe
from mixer.data.readers import open_source
from mixer.data.sources import Example, Source
from mixer.runtime.errors import UserError

if TYPE_CHECKING:
    from mixer.data import pipeline

CLASSES = ("axolotl", "bulbul", "conch")
BATCH = 24  # rows


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a smooth picture, a different one for each seed: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * y + 3 * x + seed), np.cos(4 * x - y + seed), np.sin(7 * x * y - seed)]
    return np.clip(np.stack(waves, -1) * [60, 90, 30] + [90, 140, 100], 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Returns the bytes of an image file. A JPEG has quality 95 by default."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}) | options)
    return buffer.getvalue()


def png_of(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """Returns a PNG. `header`: width, height, depth and colour type. Each of the `rows` begins with its filter type."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def broken_huffman_table(jpeg: bytes) -> bytes:
    """Returns the JPEG with all markers in place and an invalid Huffman table, so that no decoder can decode it."""
    at = jpeg.index(b"\xff\xc4") + 5  # after marker, length and table number: the counts of code lengths
    return jpeg[:at] + b"\xff" * 16 + jpeg[at + 16 :]


def wrong_checksum(png: bytes) -> bytes:
    """Returns the PNG with pixel data that does not match its checksum."""
    at = png.index(b"IDAT") + 4
    size = struct.unpack(">I", png[at - 8 : at - 4])[0]
    return png[: at + size] + bytes([png[at + size] ^ 1]) + png[at + size + 1 :]


def input_config(**fields: Any) -> ConfigDict:
    """Returns `config.input` with some fields replaced; `randaugment` is the number of layers."""
    config = recipe.base().input
    config.image_size = 16
    config.randaugment.layers = fields.pop("randaugment", 0)
    config.update(fields)
    return config


def pictures(count: int) -> list[bytes]:
    """Returns image files of many sizes, JPEG and PNG alternately."""
    shapes = [(17 + 5 * (i % 7), 40 - 4 * (i % 5)) for i in range(count)]
    return [encode(photo(*shape, seed=i), ("JPEG", "PNG")[i % 2]) for i, shape in enumerate(shapes)]


def write_dataset(
    data_dir: pathlib.Path,
    file_format: str,
    splits: Mapping[str, Sequence[tuple[bytes, Any]]],
    *,
    shards: int = 3,
    features: dict[str, Any] | None = None,
    shuffled: bool = False,
) -> None:
    """Prepares the TFDS dataset `pictures` from (file, label or labels). Record n is example n, unless shuffled."""
    features = features or {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=CLASSES)}
    image_key, label_key = features
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pictures",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [(i, {image_key: data, label_key: label}) for i, (data, label) in enumerate(examples)]
            for split, examples in splits.items()
        },
        data_dir=data_dir,
        file_format=file_format,
        disable_shuffling=not shuffled,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )


def labelled(files: Sequence[bytes]) -> list[tuple[bytes, int]]:
    return [(data, i % len(CLASSES)) for i, data in enumerate(files)]


def source_of(examples: Sequence[Example], max_labels: int = 1) -> Source:
    """Returns a source of these examples."""

    def fetch(numbers: np.ndarray) -> list[Example]:
        return [examples[n] for n in numbers]

    return Source(len(examples), ("a", "b", "c"), max_labels, max_labels > 1, fetch)


def examples_of(count: int) -> list[Example]:
    """Returns examples of many sizes, of which some are JPEGs."""
    return [Example(data, (label,)) for data, label in labelled(pictures(count))]


def evaluate(source: Source, config: Any, batch_size: int, rows: slice) -> "list[pipeline.Batch]":
    """Returns the evaluation batches of a source."""
    from mixer.data import pipeline  # here, because this file is imported before jaxtyping's import hook is installed

    return list(pipeline.eval_batches(source, config, batch_size=batch_size, rows=rows))


def all_of(source: Source) -> list[Example]:
    """Returns all examples, in the order of the source."""
    return [Example(image, tuple(labels)) for image, labels in source.fetch(np.arange(source.num_examples))]


def complaint(folder: pathlib.Path, split: str = "train", **fields: Any) -> str:
    """Returns the message with which `open_source` refuses a config, and checks that it is one line."""
    config = input_config(**{"dataset": "pictures", "data_dir": str(folder)} | fields)
    with pytest.raises(UserError) as caught:
        open_source(config, split, folder / "cache")
    assert "\n" not in str(caught.value)
    return str(caught.value)
