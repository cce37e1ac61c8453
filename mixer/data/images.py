"""Examines an encoded image before TensorFlow decodes it. So no file can stop the pipeline or shift a batch.

Well-formed 8-bit JPEGs and PNGs are nearly all files of any dataset. Only their headers are read here; TensorFlow
decodes them later. Pillow decodes all others here: WebP, GIF, BMP, TIFF, CMYK, 16 bits, an EXIF orientation other than
upright, and files that look cut short. If Pillow cannot decode a file, the image becomes one black pixel with a status.
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
    """An image for TensorFlow to decode: bytes, encoding (RAW, JPEG or PNG), size in pixels, and status."""

    data: bytes
    encoding: int
    height: int
    width: int
    status: int


def inspect(data: bytes | None, max_pixels: int) -> Image:
    """Examines an encoded image.

    Args:
      data: the file's bytes, or None for a record that cannot be read.
      max_pixels: larger images (decompression bombs) are refused before their pixels are decoded.

    Returns:
      The image. If it cannot be used, a single black pixel with a status other than OK.
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
    """Returns one black pixel, which takes the place of an image in the batch."""
    return Image(b"\0\0\0", RAW, 1, 1, status)


def _plain_png(data: bytes) -> Image | None:
    """Returns a complete 8-bit greyscale or RGB PNG without EXIF, or None for any other data."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND" or b"eXIf" in data:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
    plain = depth == 8 and colour in (0, 2) and height and width
    return Image(data, PNG, height, width, OK) if plain else None


# Baseline, extended and progressive, with Huffman coding. The others are lossless, hierarchical or arithmetic-coded.
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def _plain_jpeg(data: bytes) -> Image | None:
    """Returns a complete upright 8-bit JPEG with one or three components, or None for any other data."""
    if data.rfind(b"\xff\xd9", -1024) < 0:  # cameras and tools add a few bytes after the end marker
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
    """Returns whether an EXIF block has an orientation tag (0x0112) other than upright (1)."""
    if app1[:6] != b"Exif\0\0":
        return False
    order = ">" if app1[6:8] == b"MM" else "<"
    tag = app1.find(struct.pack(order + "HHI", 0x0112, 3, 1))
    return tag >= 0 and app1[tag + 8 : tag + 10] not in (b"", struct.pack(order + "H", 1))


# The formats that Pillow may open, and how such files begin. By default, Pillow starts other programs for some formats.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")

# Pillow warns of odd metadata, and of large sizes, which are checked here. `catch_warnings` is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode_with_pillow(data: bytes, max_pixels: int) -> Image:
    try:
        image = PillowImage.open(io.BytesIO(data), formats=_FORMATS)
    except PillowImage.DecompressionBombError:
        return unusable(TOO_LARGE)
    except Exception:  # Pillow's plugins raise exceptions of many kinds
        return unusable(UNDECODABLE if data.startswith(_SIGNATURES) else UNKNOWN_FORMAT)
    if image.width * image.height > max_pixels:
        return unusable(TOO_LARGE)
    try:
        pixels = _to_rgb(image)
    except Exception as error:
        return unusable(TRUNCATED if "truncated" in str(error) else UNDECODABLE)
    return Image(pixels.tobytes(), RAW, pixels.shape[0], pixels.shape[1], OK)


def _to_rgb(image: PillowImage.Image) -> np.ndarray:
    """Returns the first frame, upright: uint8 [height, width, 3]. Drops transparency, like TensorFlow's decoders."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit greyscale, scaled to 8 bits. Pillow's own conversion would clip it at 255.
        grey = np.clip(np.nan_to_num(np.asarray(image).astype(np.float64)) / 257.0, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
