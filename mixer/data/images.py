"""Looks at an encoded image before TensorFlow decodes it, so that nothing a file holds can stop or shift a batch.

Well-formed 8-bit JPEG and PNG, nearly all of any dataset, pass through untouched after a few header bytes are read; the
input graph decodes them. The rest (WebP, GIF, BMP, TIFF, CMYK, 16 bits, a turned camera, a file that looks cut short)
is decoded by Pillow here. What Pillow refuses becomes one black pixel and a status.
"""

import io
import struct
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from mixer.data.image_status import BAD_RECORD, EMPTY, OK, TOO_LARGE, TRUNCATED, UNDECODABLE, UNKNOWN_FORMAT

RAW, JPEG, PNG = range(3)  # how `Image.data` is encoded; RAW is uint8 [height, width, 3]


class Image(NamedTuple):
    """An image that will decode: its bytes, their encoding, its size in pixels, and what was found."""

    data: bytes
    encoding: int
    height: int
    width: int
    status: int


def inspect(data: bytes | None, max_pixels: int) -> Image:
    """Examines an encoded image.

    Args:
      data: the file's bytes, or None for a record that could not be read.
      max_pixels: larger images (decompression bombs) are refused before any of their pixels is decoded.

    Returns:
      The image; a single black pixel with another status than OK where it cannot be used.
    """
    if data is None:
        return unusable(BAD_RECORD)
    if not data:
        return unusable(EMPTY)
    plain = _plain_jpeg(data) if data[:2] == b"\xff\xd8" else _plain_png(data)
    if plain is None:
        return _decode_with_pillow(data, max_pixels)
    return plain if plain.height * plain.width <= max_pixels else unusable(TOO_LARGE)


def unusable(status: int) -> Image:
    """The image that keeps a slot in the batch when there is nothing to show."""
    return Image(b"\0\0\0", RAW, 1, 1, status)


def _plain_png(data: bytes) -> Image | None:
    """A complete upright 8-bit greyscale or RGB PNG; None for anything else."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND" or b"eXIf" in data:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
    plain = depth == 8 and colour in (0, 2) and height and width
    return Image(data, PNG, height, width, OK) if plain else None


_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; the others are not 8-bit Huffman
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def _plain_jpeg(data: bytes) -> Image | None:
    """A complete upright 8-bit JPEG of one or three components; None for anything else."""
    if data.rfind(b"\xff\xd9", -1024) < 0:  # cameras and tools add a few bytes behind the end mark
        return None
    at = 2
    frame = None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _START_OF_FRAME:
            depth, height, width, components = struct.unpack(">BHHB", data[at + 4 : at + 10].ljust(6, b"\0"))
            if depth != 8 or components not in (1, 3) or not height or not width:
                return None
            frame = Image(data, JPEG, height, width, OK)
        elif marker == _APP1 and _is_turned(data[at + 4 : at + 2 + length]):
            return None
        elif marker == _START_OF_SCAN:
            return frame
        at += 2 + length
    return None


def _is_turned(app1: bytes) -> bool:
    """Whether an EXIF block has an orientation tag (0x0112) that says other than upright."""
    if app1[:6] != b"Exif\0\0":
        return False
    order = ">" if app1[6:8] == b"MM" else "<"
    tag = app1.find(struct.pack(order + "HHI", 0x0112, 3, 1))
    return tag >= 0 and app1[tag + 8 : tag + 10] not in (b"", struct.pack(order + "H", 1))


# What Pillow may open, and how such files begin. Left to itself it would hand some others to programs beside it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")

# Pillow warns of odd metadata, and of sizes, which are checked here. Many threads decode: `catch_warnings` is not safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode_with_pillow(data: bytes, max_pixels: int) -> Image:
    try:
        image = PillowImage.open(io.BytesIO(data), formats=_FORMATS)
    except PillowImage.DecompressionBombError:
        return unusable(TOO_LARGE)
    except Exception:  # Pillow's plugins raise whatever their parsers meet
        return unusable(UNDECODABLE if data.startswith(_SIGNATURES) else UNKNOWN_FORMAT)
    if image.width * image.height > max_pixels:
        return unusable(TOO_LARGE)
    try:
        pixels = _to_rgb(image)
    except Exception as error:
        return unusable(TRUNCATED if "truncated" in str(error) else UNDECODABLE)
    return Image(pixels.tobytes(), RAW, pixels.shape[0], pixels.shape[1], OK)


def _to_rgb(image: PillowImage.Image) -> np.ndarray:
    """The first frame, upright: uint8 [height, width, 3]. Transparency is dropped, as TensorFlow's decoders do."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Greyscale of 16 bits; Pillow's own conversion would clip it at 255.
        grey = np.clip(np.nan_to_num(np.asarray(image).astype(np.float64)) / 257.0, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
