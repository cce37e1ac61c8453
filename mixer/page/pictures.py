"""Pictures as data URLs, which a page holds without another file."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_THUMBNAIL = 128  # side in pixels


def exact(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """Returns a picture as a PNG, to the pixel."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "png")


def thumbnail(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """Returns a picture as a JPEG, reduced if it is large."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(buffer, "JPEG", quality=85)
    return data_url(buffer.getvalue(), "jpeg")


def data_url(data: bytes, kind: str) -> str:
    """Returns the bytes of an image file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
