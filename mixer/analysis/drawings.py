"""The figures of `mixer.visualize`: token-mixing units, the stem's filters, and the guess after each block."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib import cm, colors, ticker
from matplotlib.figure import Figure

from mixer.analysis import units
from mixer.runtime import files

_WIDTH = 10.0  # of a figure, in inches
_MAX_COLUMNS = 32  # of pictures side by side


def units_figure(title: str, of_block: units.Units, structure: units.Structure) -> Figure:
    """Draws the first units of a block as images over the grid of patches, in pairs, in the order of `in_pairs`."""
    tokens = of_block.shape[1]
    grid, first = math.isqrt(tokens), units.first(of_block)
    images = first[units.in_pairs(first)].reshape(-1, grid, grid)
    which = "" if len(first) == len(of_block) else f"The first {len(first):,} of {len(of_block):,} units. "
    limit = float(np.max(np.abs(images))) or 1.0
    opposite, energy = structure.opposite_at_random, structure.half_energy_at_random
    alike = ", as much of them in one part of the image" if structure.extended > 1 else ""
    below = (
        f"{which}Low frequency first; to the right of a unit stands, of those that are left, the one closest to its "
        f"negative. A unit's most negative correlation with any other, median: {structure.opposite:.2f}"
        f"{'' if opposite is None else f' (random weights{alike}: {opposite:.2f})'}. Half of a unit's energy lies in "
        f"{structure.half_energy_tokens:g} of {tokens} tokens"
        f"{'' if energy is None else f' (random: {energy:g})'}."
    )
    mosaic = _mosaic(images, _columns(len(images), even=True), pairs=True)
    figure, axes = _framed(title, below, mosaic)
    shown = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.02, label="weight")
    return figure


def stem_figure(title: str, kernel: Float[np.ndarray, "height width 3 filters"]) -> Figure:
    """Draws the stem's filters in colour, from low to high frequency; grey is zero (figure 7 of the paper)."""
    filters = np.moveaxis(kernel, 3, 0)
    filters = filters[np.argsort(units.frequency_of_images(filters), kind="stable")]
    limit = float(np.max(np.abs(filters))) or 1.0
    mosaic = _mosaic((filters / limit + 1) / 2, _columns(len(filters)))
    below = "Low frequency first. Red, green and blue show the weights of the three colours; grey is zero."
    figure, axes = _framed(title, below, mosaic)
    axes.imshow(mosaic)
    scale = cm.ScalarMappable(colors.Normalize(-limit, limit), "gray")
    figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.02, label="weight of each colour")
    return figure


def lens_figure(title: str, accuracy: Sequence[float], chance: float | None) -> Figure:
    """Draws the accuracy of the model's head after each block.

    Args:
      title: of the figure.
      accuracy: after the stem, the first block, the second block, ...
      chance: accuracy of a guess that does not look; None if it is unknown.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(accuracy)), [100 * share for share in accuracy], marker="o", label="the head after this block")
    if chance is not None:
        axes.axhline(100 * chance, color="gray", linestyle=":", label=f"chance: {chance:.2%}")
    axes.set(xlabel="blocks (0: the stem alone)", ylabel="accuracy (%)")
    most = max(*accuracy, chance or 0.0) or 1.0
    axes.set_ylim(-3 * most, 107 * most)  # room for whole markers, also where all are alike
    axes.set_title(textwrap.fill(title, 70), fontsize="medium", parse_math=False)  # a path may have two $
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(loc="best")
    return figure


def write(path: epath.Path, figure: Figure) -> None:
    """Writes a figure as a PNG, local or to gs://."""
    files.write_bytes(path, png(figure))


def png(figure: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _columns(pictures: int, even: bool = False) -> int:
    """Returns how many pictures stand side by side: about 1.5 times as many as below each other."""
    columns = min(math.ceil(math.sqrt(1.5 * pictures)), _MAX_COLUMNS)
    return columns + columns % 2 if even else columns


def _framed(title: str, below: str, mosaic: np.ndarray) -> tuple[Figure, Any]:
    """Makes a figure for a mosaic, with its title and a text below."""
    height, width = mosaic.shape[:2]
    figure = Figure(figsize=(_WIDTH, _WIDTH * 0.88 * height / width + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(textwrap.fill(title, 100), fontsize="medium", parse_math=False)
    figure.supxlabel(textwrap.fill(below, 130), fontsize="small")
    return figure, axes


def _mosaic(images: np.ndarray, columns: int, pairs: bool = False) -> np.ndarray:
    """Puts square images of one channel, or of three, side by side. What is between them is NaN, or white.

    Args:
      images: [images, height, width] or [images, height, width, 3].
      columns: images in a row.
      pairs: leave a wider gap behind every second image.
    """
    side = images.shape[1]
    gap = max(side // 8, 1)
    lefts = [column * (side + gap) + (column // 2) * 2 * gap * pairs for column in range(columns)]
    rows = math.ceil(len(images) / columns)
    nothing = np.nan if images.ndim == 3 else 1.0
    whole = np.full((rows * (side + gap) - gap, lefts[-1] + side, *images.shape[3:]), nothing)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top = row * (side + gap)
        whole[top : top + side, lefts[column] : lefts[column] + side] = image
    return whole
