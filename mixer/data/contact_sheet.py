"""A picture of a batch: every image with its labels beneath, to be looked at before a long run."""

import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

_MOST = 64  # images shown
_LINE = 14  # pixels of a line of text


def write_sheet(
    path: epath.Path,
    pictures: Float[np.ndarray, "batch height width 3"],
    targets: Float[np.ndarray, "batch classes"],
    class_names: Sequence[str],
    statuses: Sequence[str],
) -> None:
    """Writes a PNG of up to 64 images in [-1, 1], small ones enlarged, with their classes and the share of each."""
    pictures = pictures[:_MOST]
    columns = math.ceil(math.sqrt(len(pictures)))
    scale = max(128 // pictures.shape[1], 1)
    cell = pictures.shape[1] * scale
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell + 4), rows * (cell + 2 * _LINE + 4)), "white")
    font = ImageFont.load_default(size=11)
    for i, picture in enumerate(pictures):
        left, top = i % columns * (cell + 4), i // columns * (cell + 2 * _LINE + 4)
        pixels = np.clip(np.round((picture + 1) * 127.5), 0, 255).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        strip = Image.new("RGB", (cell, 2 * _LINE), "white")  # where it ends, a long name ends
        for line, text in enumerate(_caption(targets[i], class_names, statuses[i])):
            ImageDraw.Draw(strip).text((1, line * _LINE), text, fill="black", font=font)
        sheet.paste(strip, (left, top + cell))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def _caption(target: np.ndarray, class_names: Sequence[str], status: str) -> list[str]:
    if status != "ok":
        return [f"({status})"]
    strongest = [n for n in np.argsort(-target, kind="stable")[:2] if target[n] > 0]
    return [class_names[n] if target[n] == 1 else f"{target[n]:.2f} {class_names[n]}" for n in strongest]
