"""Draws docs/figures/mixer.svg, the picture of a Mixer in README.md.

    python -m scripts.draw_mixer

It suits white and dark pages: the background is transparent. The same matplotlib writes the same bytes.
"""

import argparse
import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path

FILE = pathlib.Path(__file__).resolve().parents[1] / "docs/figures/mixer.svg"
GRID, CHANNELS, PIXELS = 3, 6, 90  # patches along a side of the image, channels of a token, pixels along a side
GREY, ORANGE, BLUE, PURPLE, PALE = "#7f8791", "#d9822b", "#2f8fd0", "#8a63c9", "#80889038"
ROUND, MIDDLE = "round,pad=0,rounding_size=0.15", 2.35  # the corners of boxes, and the height of the arrows
UNIT_SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])


def picture() -> np.ndarray:
    """Makes a landscape of hills and a sun: float [PIXELS, PIXELS, 3] in 0..1."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS] / PIXELS
    image = np.stack([0.45 + 0.25 * y, 0.68 + 0.1 * y, 0.88 - 0.05 * y], axis=-1)
    image[np.hypot(x - 0.72, y - 0.27) < 0.15] = (0.97, 0.78, 0.3)
    image[y > 0.62 + 0.1 * np.sin(5 * x + 2.2)] = (0.36, 0.62, 0.42)
    image[y > 0.78 + 0.1 * np.sin(4 * x)] = (0.24, 0.47, 0.34)
    return image


def draw_patches(axes: Axes, left: float, size: float, gap: float) -> None:
    """Draws the picture, cut into patches that are `gap` apart."""
    bottom = MIDDLE - (GRID * size + (GRID - 1) * gap) / 2
    for row, strip in enumerate(np.split(picture(), GRID, axis=0)):
        for column, patch in enumerate(np.split(strip, GRID, axis=1)):
            x, y = left + column * (size + gap), bottom + (GRID - 1 - row) * (size + gap)
            axes.imshow(patch, extent=(x, x + size, y, y + size), interpolation="none")


def draw_table(axes: Axes, left: float, colour: str, filled: np.ndarray, cell: float = 0.3) -> None:
    """Draws a table of tokens by channels, a token in each row; `filled`, bool [tokens, channels], gets the colour."""
    bottom = MIDDLE - len(filled) * cell / 2
    for face, cells in ((PALE, ~filled), (colour, filled)):
        corners = np.argwhere(cells)[:, ::-1] * cell + (left, bottom)
        squares = [Path(UNIT_SQUARE * 0.86 * cell + corner, closed=True) for corner in corners]
        axes.add_patch(PathPatch(Path.make_compound_path(*squares), facecolor=face, edgecolor="none"))
    axes.text(left - 0.12, MIDDLE, "patches", color=GREY, ha="right", va="center", rotation=90, fontsize=9)
    axes.text(left + 0.9, bottom - 0.1, "channels", color=GREY, ha="center", va="top", fontsize=9)


def draw_box(axes: Axes, left: float, width: float, height: float, colour: str, text: str) -> None:
    """Draws a filled box with white text."""
    axes.add_patch(FancyBboxPatch((left, MIDDLE - height / 2), width, height, ROUND, facecolor=colour, linewidth=0))
    axes.text(left + width / 2, MIDDLE, text, color="white", ha="center", va="center", weight="bold")


def draw_arrow(axes: Axes, start: float, end: float, top: float = 0.0) -> None:
    """Draws an arrow to the right; it begins `top` above the others and bends down to end above its target."""
    rise, bend = (0.25, "arc3,rad=-0.3") if top else (0.0, "arc3")
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "color": GREY, "linewidth": 1.4}
    axes.add_patch(FancyArrowPatch((start, MIDDLE + top), (end, MIDDLE + rise), connectionstyle=bend, **style))


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()  # --help alone
    matplotlib.rcParams["svg.hashsalt"] = "mixer"
    figure = Figure(figsize=(12.4, 3.4))
    axes = figure.add_axes((0, 0, 1, 1))
    draw_patches(axes, 0.2, size=0.66, gap=0.0)
    draw_patches(axes, 2.7, size=0.66, gap=0.15)
    axes.add_patch(FancyBboxPatch((5.5, 0.1), 9.3, 4.55, ROUND, facecolor="none", edgecolor=GREY, linestyle="--"))
    tokens, channels = np.indices((GRID**2, CHANNELS))
    for left, colour, filled, title, text in (
        (6.1, ORANGE, channels == 2, "token mixing", "mixes patches, channel by channel"),
        (10.6, BLUE, tokens == 4, "channel mixing", "mixes channels, patch by patch"),
    ):
        draw_table(axes, left, colour, filled)
        draw_box(axes, left + 2.25, 0.95, 0.8, colour, "MLP")
        axes.text(left + 3.78, MIDDLE, "+", color=GREY, ha="center", va="center", fontsize=17, weight="bold")
        for start, end, top in ((1.82, 2.28, 0.0), (3.17, 3.65, 0.0), (1.82, 3.76, 1.1)):
            draw_arrow(axes, left + start, left + end, top)
        axes.text(left, 4.05, title, color=colour, weight="bold", fontsize=12)
        axes.text(left, 0.35, text, color=GREY, va="center")
    draw_box(axes, 15.2, 1.0, 1.5, GREY, "mean\nover\npatches")
    draw_box(axes, 16.55, 0.95, 0.8, PURPLE, "head")
    for start, end in ((2.22, 2.68), (5.0, 5.46), (9.98, 10.28), (14.5, 15.2), (16.17, 16.57)):
        draw_arrow(axes, start, end)
    axes.text(2.7, 0.35, "a dense layer makes\neach one a token", color=GREY, va="center")
    for left, title in ((0.2, "image"), (2.7, "patches"), (14.1, "× n")):
        axes.text(left, 4.05, title, color=GREY, weight="bold", fontsize=12)
    axes.set(xlim=(0, 17.7), ylim=(0, 4.8), aspect="equal")
    axes.axis("off")
    figure.savefig(FILE, transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
