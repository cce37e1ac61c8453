"""A picture of a batch for a check before a long run: every image, with its labels below it."""

import functools
import importlib.util
import io
import math
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from mixer.data import class_names
from mixer.runtime import files

MAX_IMAGES = 64
_LINE = 14  # height of a line of text, in pixels
_LINES = 2  # below an image
_FONT_SIZE = 11
_NOWHERE = "\U0010ffff"  # no font has it


def write_sheet(
    path: epath.Path,
    pictures: Float[np.ndarray, "batch height width 3"],
    targets: Float[np.ndarray, "batch classes"],
    names: Sequence[str],
    statuses: Sequence[str],
) -> None:
    """Writes a PNG of a batch; see `sheet`."""
    buffer = io.BytesIO()
    Image.fromarray(sheet(pictures, targets, names, statuses)).save(buffer, "PNG")
    files.write_bytes(path, buffer.getvalue())


def sheet(
    pictures: Float[np.ndarray, "batch height width 3"],
    targets: Float[np.ndarray, "batch classes"],
    names: Sequence[str],
    statuses: Sequence[str],
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draws the first 64 images of a batch. Images of 64 pixels or fewer are enlarged.

    Args:
      pictures: with values in [-1, 1].
      targets: the share of each class; the largest are written below the image.
      names: of the classes, in the order of the labels.
      statuses: the names of the images' statuses.
    """
    pictures, names = pictures[:MAX_IMAGES], class_names.readable(names)
    columns = math.ceil(math.sqrt(len(pictures)))
    scale = max(128 // pictures.shape[1], 1)
    cell = pictures.shape[1] * scale
    rows = math.ceil(len(pictures) / columns)
    whole = Image.new("RGB", (columns * (cell + 4), rows * (cell + _LINES * _LINE + 4)), "white")
    for i, picture in enumerate(pictures):
        left, top = i % columns * (cell + 4), i // columns * (cell + _LINES * _LINE + 4)
        pixels = np.clip(np.round((picture + 1) * 127.5), 0, 255).astype(np.uint8)
        whole.paste(Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        strip = _strip(cell, _caption(targets[i], names, statuses[i]), _more(targets[i]))
        whole.paste(strip, (left, top + cell))
    return np.asarray(whole)


def _strip(width: int, lines: Sequence[str], more: str) -> Image.Image:
    """Draws what is below an image. A strip of its own cuts off a long name; `more` covers the end of the last line."""
    strip = Image.new("RGB", (width, _LINES * _LINE), "white")
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        font, text = _drawable(line)
        draw.text((1, number * _LINE), text, fill="black", font=font)
    if more:
        left, top = width - draw.textlength(more, _fonts()[0]) - 1, (_LINES - 1) * _LINE
        draw.rectangle((left - 3, top, width, top + _LINE), fill="white")
        draw.text((left, top), more, fill="black", font=_fonts()[0])
    return strip


def _caption(target: np.ndarray, names: Sequence[str], status: str) -> list[str]:
    """Returns the lines below an image: its classes, the largest share first."""
    if status != "ok":
        return [f"({status})"]
    strongest = [n for n in np.argsort(-target, kind="stable")[:_LINES] if target[n] > 0]
    return [names[n] if target[n] == 1 else f"{target[n]:.2f} {names[n]}" for n in strongest]


def _more(target: np.ndarray) -> str:
    """Returns how many classes of an image have no line, such as "+2"; "" if all have one."""
    left = np.count_nonzero(target > 0) - _LINES
    return f"+{left}" if left > 0 else ""


def _drawable(text: str) -> tuple[ImageFont.FreeTypeFont, str]:
    """Returns a font and a text that it can draw, so that no character becomes a box.

    If no font has all characters, the missing ones are written without their accents, or else as code points: U+72D7.
    """
    for font in _fonts():
        if all(_has(font, character) for character in text):
            return font, text
    font = _fonts()[-1]
    return font, "".join(character if _has(font, character) else _plain(font, character) for character in text)


def _plain(font: ImageFont.FreeTypeFont, character: str) -> str:
    letters = "".join(one for one in unicodedata.normalize("NFKD", character) if not unicodedata.combining(one))
    if letters and all(_has(font, one) for one in letters):
        return letters
    return "" if unicodedata.combining(character) else f" U+{ord(character):04X} "


@functools.cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    """Returns Pillow's font, which has little more than ASCII, and matplotlib's if it is installed."""
    fonts = [ImageFont.load_default(size=_FONT_SIZE)]
    found = importlib.util.find_spec("matplotlib")  # the font needs no import of matplotlib
    for folder in (found and found.submodule_search_locations) or ():
        path = pathlib.Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        fonts += [ImageFont.truetype(str(path), _FONT_SIZE)] if path.exists() else []
    return fonts  # type: ignore[return-value]


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Tells whether a font has a character. For one that it lacks, it draws a box."""
    box, drawn = font.getmask(_NOWHERE), font.getmask(character)
    return (drawn.size, bytes(drawn)) != (box.size, bytes(box))
