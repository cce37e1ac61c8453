"""Examines an encoded image before TensorFlow decodes it. So no file can stop the pipeline or shift a batch.

Well-formed 8-bit JPEGs and PNGs are nearly all files of any dataset. Only their headers are read here; TensorFlow
decodes them later. Pillow decodes all others here: WebP, AVIF, GIF, BMP, TIFF, CMYK, 16 bits, an EXIF orientation other
than upright, and files that look cut short. If Pillow cannot decode a file, or nothing says which of its values is
white, the image becomes one black pixel with a status.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, features

from mixer.data.pixels.image_status import BAD_RECORD, EMPTY, OK, TOO_LARGE, TRUNCATED, UNDECODABLE, UNKNOWN_FORMAT

RAW, JPEG, PNG = range(3)  # how `EncodedImage.data` is encoded; RAW is uint8 [height, width, 3]


_NARROW = 8  # longer side over shorter side, up to which an image is always resized as a whole


class EncodedImage(NamedTuple):
    """An image for TensorFlow to decode: bytes, encoding (RAW, JPEG or PNG), size in pixels, and status."""

    data: bytes
    encoding: int
    height: int
    width: int
    status: int

    @property
    def is_narrow(self) -> bool:
        """Whether the image might fill the memory if it were resized as a whole; see `augment.py`."""
        return max(self.height, self.width) > _NARROW * min(self.height, self.width)


def inspect(data: bytes | None, max_pixels: int, transparent: str = "drop", exif: str = "rotate") -> EncodedImage:
    """Examines an encoded image.

    Args:
      data: the file's bytes, or None for a record that cannot be read.
      max_pixels: larger images (decompression bombs) are refused before their pixels are decoded.
      transparent: one of `TRANSPARENT`.
      exif: one of `EXIF`.

    Returns:
      The image. If it cannot be used, a single black pixel with a status other than OK.
    """
    if data is None:
        return unusable(BAD_RECORD)
    if not data:
        return unusable(EMPTY)
    plain = _plain_jpeg(data, exif) if data[:2] == b"\xff\xd8" else _plain_png(data, transparent, exif)
    if plain is None:
        return _decode_with_pillow(data, max_pixels, transparent, exif)
    return plain if plain.height * plain.width <= max_pixels else unusable(TOO_LARGE)


def unusable(status: int) -> EncodedImage:
    """Returns one black pixel, which takes the place of an image in the batch."""
    return EncodedImage(b"\0\0\0", RAW, 1, 1, status)


def _plain_png(data: bytes, transparent: str, exif: str) -> EncodedImage | None:
    """Returns a complete upright 8-bit greyscale or RGB PNG, or None for any other data."""
    if transparent != "drop" and b"tRNS" in data[: data.find(b"IDAT")]:  # one of its colours is transparent
        return None
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND":
        return None
    if exif != "ignore" and (b"eXIf" in data or b"XML:com.adobe.xmp" in data):
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
    plain = depth == 8 and colour in (0, 2) and height and width
    return EncodedImage(data, PNG, height, width, OK) if plain else None


# Baseline, extended and progressive, with Huffman coding. The others are lossless, hierarchical or arithmetic-coded.
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def _plain_jpeg(data: bytes, exif: str) -> EncodedImage | None:
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
            frame = EncodedImage(data, JPEG, height, width, OK)
        elif marker == _APP1 and exif != "ignore" and _is_turned(data[at + 4 : at + 2 + length]):
            return None
        elif marker == _START_OF_SCAN:
            return frame
        at += 2 + length
    return None


# Pillow turns a picture by it where EXIF has no orientation, and so does the code of cards.
_TURNED_BY_XMP = re.compile(rb'tiff:Orientation(="|>)[2-8]')


def _is_turned(app1: bytes) -> bool:
    """Returns whether a block of EXIF or XMP has an orientation (EXIF's tag 0x0112) other than upright (1)."""
    if app1[:6] != b"Exif\0\0":
        return _TURNED_BY_XMP.search(app1) is not None
    order = ">" if app1[6:8] == b"MM" else "<"
    tag = app1.find(struct.pack(order + "HHI", 0x0112, 3, 1))
    return tag >= 0 and app1[tag + 8 : tag + 10] not in (b"", struct.pack(order + "H", 1))


# The formats that Pillow may open, and how such files begin. By default, Pillow starts other programs for some formats.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")

# Pillow's own limit, 179 million pixels, would stand above max_pixels.
PillowImage.MAX_IMAGE_PIXELS = None
# Pillow warns of odd metadata. `catch_warnings` is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode_with_pillow(data: bytes, max_pixels: int, transparent: str, exif: str) -> EncodedImage:
    try:
        image = PillowImage.open(io.BytesIO(data), formats=_FORMATS)
    except Exception:  # Pillow's plugins raise exceptions of many kinds
        is_known = data.startswith(_SIGNATURES) or ("AVIF" in _FORMATS and data[4:11] == b"ftypavi")
        return unusable(UNDECODABLE if is_known else UNKNOWN_FORMAT)
    if image.width * image.height > max_pixels:
        return unusable(TOO_LARGE)
    try:
        pixels = _to_rgb(image, data, transparent, exif)
    except _UnknownRangeError:
        return unusable(UNKNOWN_FORMAT)
    except Exception as error:
        return unusable(TRUNCATED if "truncated" in str(error) else UNDECODABLE)
    return EncodedImage(pixels.tobytes(), RAW, pixels.shape[0], pixels.shape[1], OK)


def _over_white(image: PillowImage.Image) -> PillowImage.Image:
    if not image.has_transparency_data:
        return image
    return PillowImage.alpha_composite(PillowImage.new("RGBA", image.size, "white"), image.convert("RGBA"))


# What becomes of transparency. "drop" leaves the colours that lie under it, as TensorFlow's decoders do.
TRANSPARENT: dict[str, Callable[[PillowImage.Image], PillowImage.Image]] = {
    "drop": lambda image: image, "white": _over_white,
}  # fmt: skip


# What becomes of a picture that its EXIF orientation says is stored turned. "ignore" leaves it so, as TensorFlow's
# decoders do. Pillow turns a TIFF while it decodes it.
EXIF: dict[str, Callable[[PillowImage.Image], PillowImage.Image]] = {
    "rotate": ImageOps.exif_transpose, "ignore": lambda image: image,
}  # fmt: skip


def _to_rgb(image: PillowImage.Image, data: bytes, transparent: str, exif: str) -> np.ndarray:
    """Returns the first frame of an image, opened from its file's data: uint8 [height, width, 3].

    Raises:
      _UnknownRangeError: the values are no colours that can be scaled to 0..255.
    """
    bits, white = _range_of(image)
    if white is None:
        raise _UnknownRangeError
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey(np.asarray(EXIF[exif](image)), bits, white)
        if image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only 8 bits
            grey = 255 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    if bits == 16:  # of which Pillow keeps the upper eight
        brightest = int(np.asarray(image.convert("RGB")).max())
        if 0 < brightest < 256 / 16 or not (brightest or _is_black(data)):
            raise _UnknownRangeError
    return np.asarray(TRANSPARENT[transparent](EXIF[exif](image)).convert("RGB"))


def _is_black(data: bytes) -> bool:
    """Returns whether all colours of a file with 16 bits are 0, also in the lower eight."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels is not None and not pixels[..., :3].any()


class _UnknownRangeError(ValueError):
    """Nothing says which of an image's values is white."""


_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags, and values of the last two
_WHITE_IS_ZERO, _UNSIGNED, _FLOAT = 0, 1, 3


def _range_of(image: PillowImage.Image) -> tuple[int, float | None]:
    """Returns the bits of a value, and the value of white: the largest, or 1 for floats; None for signed numbers.

    An image that is not a TIFF has 8 or 16 bits. With 8, no one asks.
    """
    if image.format != "TIFF":
        deep = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        return (16, 65535.0) if deep else (8, 255.0)
    tags: Any = image.getexif()
    bits, kind = (np.ravel(tags.get(tag, 1))[0] for tag in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT))
    return int(bits), {_UNSIGNED: 2.0 ** int(bits) - 1, _FLOAT: 1.0}.get(int(kind))


def _grey(values: np.ndarray, bits: int, white: float) -> np.ndarray:
    """Scales values from 0..white to 0..255: uint8. Pillow's own conversion would clip them at 255."""
    if values.dtype == np.int32 and bits == 32:
        values = values.view(np.uint32)  # Pillow has no mode for unsigned 32 bits
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:  # NaN is in no range
        raise _UnknownRangeError
    if 0 < high < white / 16:  # so look 12 bits stored in 16, counts, and depths in mm; as colours, nearly black
        raise _UnknownRangeError
    scaled: np.ndarray = np.rint(values.astype(np.float32) / np.float32(white / 255))
    return scaled.astype(np.uint8)
