"""Colour jitter: other hues, saturation, contrast and brightness for a whole image.

The four are one affine map of a pixel's colour, which takes grey to grey. The ranges are this project's.
"""

import math

import numpy as np
from jaxtyping import Float, Float32

from mixer.data.pixels.crops import Square

NUM_DRAWS = 5

# At strength 1; they shrink with it.
_HUE = math.pi  # the largest angle: any hue
_LOG_SATURATION, _LOG_CONTRAST, _BRIGHTNESS = 0.7, 0.5, 0.3  # the last over half of the range of values
_GREY = 0.2  # the share of images that lose their colours


def color_jitter(image: Square, draws: Float32[np.ndarray, "5"], strength: float) -> Square:
    """Changes the colours of an image, by a map that is drawn for it.

    Args:
      image: RGB.
      draws: uniform in [0, 1): for hue, saturation, contrast, brightness, and whether to be grey.
      strength: of the changes; 1 takes them from the whole ranges, 0 would change nothing.
    """
    hue, saturation, contrast, brightness = (2 * draws[:4].astype(np.float64) - 1) * strength
    factor = 0.0 if draws[4] < _GREY * strength else math.exp(_LOG_SATURATION * saturation)
    grey = np.full((3, 3), 1 / 3)  # takes a colour to the mean of its channels
    colours = grey + factor * (_turn(_HUE * hue) - grey)
    matrix = math.exp(_LOG_CONTRAST * contrast) * colours
    middle = 127.5
    offset = middle + middle * _BRIGHTNESS * brightness - matrix @ np.full(3, middle)
    # Not cv2.transform, whose fixed-point arithmetic for uint8 is off by more than rounding.
    changed: Square = np.clip(np.rint(image @ matrix.T + offset), 0, 255).astype(np.uint8)
    return changed


def _turn(angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation of colours about the axis of greys (Rodrigues' formula)."""
    axis = 1 / math.sqrt(3)
    cross = axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turned: np.ndarray = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return turned
