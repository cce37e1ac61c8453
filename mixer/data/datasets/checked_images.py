"""Reads image files, local or in a bucket, and decodes each one once to find out whether training can use it."""

import concurrent.futures
import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mixer.data.datasets import archives
from mixer.data.folders import image_files
from mixer.data.pixels import augment, images
from mixer.data.pixels.image_status import OK, TOO_LARGE, UNDECODABLE
from mixer.runtime import bucket, machine

_GROUP_BYTES = 32 << 20  # of files that are read at a time; two such groups are in memory
_GROUP_FILES = 512
_KEPT = (b"\xff\xd8", b"\x89PNG")  # how a JPEG and a PNG begin


class File(NamedTuple):
    """An image file: where it is, its class number, its size in bytes, and what changes when its content changes."""

    path: str
    label: int
    size: int
    version: str


class Checked(NamedTuple):
    """The image of a file, as JPEG or PNG, and its status. The image is empty if the status is not OK."""

    image: bytes
    status: int


def read(files: Iterable[File], max_pixels: int) -> Generator[Checked, None, None]:
    """Reads and checks files, in their order. While a group of files is decoded, the next one is read.

    Raises:
      OSError: a bucket fails. A local file that cannot be read is a bad record.
    """
    with (
        concurrent.futures.ThreadPoolExecutor(1, "reader") as reader,
        concurrent.futures.ThreadPoolExecutor(machine.processors(), "decoder") as decoders,
    ):
        groups = _groups(files)
        group = next(groups, None)
        contents = group and reader.submit(_contents, group)
        while group and contents:
            following = next(groups, None)
            data = contents.result()
            contents = following and reader.submit(_contents, following)
            yield from decoders.map(check, group, data, [max_pixels] * len(group))
            group = following


def check(file: File, data: bytes | None, max_pixels: int) -> Checked:
    """Decodes an image once. The bytes of a JPEG or PNG stay as they are; other formats become a PNG.

    Args:
      file: where the image is from.
      data: its content; None if it cannot be read.
      max_pixels: larger images are not used.
    """
    if file.size > archives.MAX_IMAGE_BYTES:
        return Checked(b"", TOO_LARGE)
    image = images.inspect(data, max_pixels)
    if image.status != OK or data is None:
        return Checked(b"", image.status)
    if image.encoding != images.RAW and not augment.can_decode(data, image.encoding, (image.height, image.width)):
        return Checked(b"", UNDECODABLE)
    return Checked(data if data.startswith(_KEPT) else _png(image), OK)


def _groups(files: Iterable[File]) -> Iterator[list[File]]:
    """Divides files into groups that fit in memory."""
    group: list[File] = []
    size = 0
    for file in files:
        if group and (size + file.size > _GROUP_BYTES or len(group) == _GROUP_FILES):
            yield group
            group, size = [], 0
        group.append(file)
        size += min(file.size, archives.MAX_IMAGE_BYTES)
    if group:
        yield group


def _contents(files: Sequence[File]) -> list[bytes | None]:
    """Reads files, those in a bucket all at a time. Nothing is read of one that is too large, or empty in a bucket."""
    small = [file for file in files if file.size <= archives.MAX_IMAGE_BYTES]
    in_bucket = [file for file in small if file.size and bucket.is_remote(file.path)]
    contents = bucket.read([bucket.Range(file.path, 0, file.size) for file in in_bucket]) if in_bucket else []
    read: dict[str, bytes | None] = {
        file.path: image_files.file_bytes(file.path) for file in small if not bucket.is_remote(file.path)
    }
    read |= zip((file.path for file in in_bucket), contents, strict=True)
    return [read.get(file.path, b"") for file in files]


def _png(image: images.EncodedImage) -> bytes:
    """Encodes the pixels that Pillow has decoded."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
