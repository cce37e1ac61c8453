"""The registry of augmentations: changes of a training image after its crop, applied in the registry's order.

To add one, write a function of (image, draws, config), put it at the end of `AUGMENTATIONS`, and declare its settings
in `config/settings.py`. This file needs NumPy and OpenCV, and no TensorFlow.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float32

from mixer.data.pixels import color_jitter, crops
from mixer.data.pixels.crops import Square
from mixer.data.pixels.randaugment import randaugment

DrawSlices = dict[str, slice]


class Augmentation(NamedTuple):
    """A change of one training image.

    Attributes:
      num_draws: returns how many uniform numbers in [0, 1) one image needs, given `config.input`. 0 means that the
        augmentation is off.
      apply: returns the changed image, given the image, its draws (float32 [num_draws]) and `config.input`.
      described: returns a few words for model cards, given `config.input`.
    """

    num_draws: Callable[[ml_collections.ConfigDict], int]
    apply: Callable[[Square, np.ndarray, ml_collections.ConfigDict], Square]
    described: Callable[[ml_collections.ConfigDict], str]


def flip(image: Square, draws: Float32[np.ndarray, "1"], config: ml_collections.ConfigDict) -> Square:
    """Mirrors half of the images, left to right, if `config.flip` is set."""
    return cv2.flip(image, 1) if config.flip and draws[0] >= 0.5 else image


def apply_randaugment(image: Square, draws: Float32[np.ndarray, " n"], config: ml_collections.ConfigDict) -> Square:
    """Applies `config.randaugment.layers` random operations, see `randaugment.py`."""
    return randaugment(image, draws.reshape(-1, 4), config.randaugment.magnitude, config.randaugment.contrast)


def apply_color_jitter(image: Square, draws: Float32[np.ndarray, "5"], config: ml_collections.ConfigDict) -> Square:
    """Changes hue, saturation, contrast and brightness by as much as `config.color_jitter` says."""
    return color_jitter.color_jitter(image, draws, config.color_jitter)


def _describe_color_jitter(config: ml_collections.ConfigDict) -> str:
    return f"colour jitter {config.color_jitter:g}" if config.color_jitter else "no colour jitter"


def _describe_randaugment(config: ml_collections.ConfigDict) -> str:
    layers, magnitude = config.randaugment.layers, config.randaugment.magnitude
    return f"RandAugment of {layers} layers, magnitude {magnitude:g}" if layers else "no RandAugment"


AUGMENTATIONS = {
    # Flip keeps its draw when it is off, so that crops do not change with config.flip.
    "flip": Augmentation(lambda config: 1, flip, lambda config: "flips" if config.flip else "no flips"),
    "randaugment": Augmentation(lambda config: 4 * config.randaugment.layers, apply_randaugment, _describe_randaugment),
    "color_jitter": Augmentation(
        lambda config: color_jitter.NUM_DRAWS if config.color_jitter else 0, apply_color_jitter, _describe_color_jitter
    ),
}


def draw_slices(config: ml_collections.ConfigDict) -> DrawSlices:
    """Returns which of an image's draws each augmentation and the crop get, by name.

    The order is fixed: flip, crop, then the rest of the registry. Another order would change the batches of every run.
    A new augmentation comes last, so the draws of the others stay the same.

    Reading a ConfigDict is slow. Call this once for a pipeline, not once for an image.

    Args:
      config: `config.input`.
    """
    numbers = {"flip": AUGMENTATIONS["flip"].num_draws(config), "crop": crops.NUM_DRAWS}
    numbers |= {name: one.num_draws(config) for name, one in AUGMENTATIONS.items() if name != "flip"}
    stops = np.cumsum(list(numbers.values())).tolist()
    return {name: slice(stop - numbers[name], stop) for name, stop in zip(numbers, stops, strict=True)}


def num_draws(config: ml_collections.ConfigDict) -> int:
    """Returns how many uniform numbers one training image needs; config is `config.input`."""
    return max(int(part.stop) for part in draw_slices(config).values())


def augment(
    image: Square, draws: Float32[np.ndarray, " draws"], slices: DrawSlices, config: ml_collections.ConfigDict
) -> Square:
    """Applies every augmentation that the config turns on.

    Args:
      image: image_size x image_size pixels.
      draws: all draws of the image.
      slices: from `draw_slices(config)`.
      config: `config.input`.
    """
    for name, augmentation in AUGMENTATIONS.items():
        mine = draws[slices[name]]
        if mine.size:
            image = augmentation.apply(image, mine, config)
    return image
