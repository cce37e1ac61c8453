"""A picture of a batch for a check before a long run: every image, with its labels below it."""

import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from mixer.runtime import files

_MAX_IMAGES = 64
_LINE = 14  # height of a line of text, in pixels


def write_sheet(
    path: epath.Path,
    pictures: Float[np.ndarray, "batch height width 3"],
    targets: Float[np.ndarray, "batch classes"],
    class_names: Sequence[str],
    statuses: Sequence[str],
) -> None:
    """Writes a PNG with the first 64 images of a batch. Images of 64 pixels or fewer are enlarged.

    Args:
      path: of the PNG.
      pictures: with values in [-1, 1].
      targets: the share of each class; the two largest are written below the image.
      class_names: in the order of the labels.
      statuses: the names of the images' statuses.
    """
    pictures = pictures[:_MAX_IMAGES]
    columns = math.ceil(math.sqrt(len(pictures)))
    scale = max(128 // pictures.shape[1], 1)
    cell = pictures.shape[1] * scale
    lines = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell + 4), lines * (cell + 2 * _LINE + 4)), "white")
    font = ImageFont.load_default(size=11)
    for i, picture in enumerate(pictures):
        left, top = i % columns * (cell + 4), i // columns * (cell + 2 * _LINE + 4)
        pixels = np.clip(np.round((picture + 1) * 127.5), 0, 255).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        strip = Image.new("RGB", (cell, 2 * _LINE), "white")  # a strip of its own cuts off a long name
        for line, text in enumerate(_caption(targets[i], class_names, statuses[i])):
            ImageDraw.Draw(strip).text((1, line * _LINE), text, fill="black", font=font)
        sheet.paste(strip, (left, top + cell))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    files.write_bytes(path, buffer.getvalue())


def _caption(target: np.ndarray, class_names: Sequence[str], status: str) -> list[str]:
    if status != "ok":
        return [f"({status})"]
    strongest = [n for n in np.argsort(-target, kind="stable")[:2] if target[n] > 0]
    return [class_names[n] if target[n] == 1 else f"{target[n]:.2f} {class_names[n]}" for n in strongest]
