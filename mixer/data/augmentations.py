"""Augmentations of a training image after its crop: a registry, applied in order.

To add one, write a function of (image, draws, config), add it at the end of `AUGMENTATIONS`, and declare its settings
in `config/settings.py`. NumPy and OpenCV alone, no TensorFlow.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float32, UInt8

from mixer.data import crops
from mixer.data.randaugment import randaugment

Image = UInt8[np.ndarray, "size size 3"]


class Augmentation(NamedTuple):
    """A change of one training image.

    Attributes:
      num_draws: from `config.input` to how many uniform numbers in [0, 1) an image needs. 0 turns it off.
      apply: from (image, draws float32 [num_draws], `config.input`) to the changed image.
      described: from `config.input` to a few words, for model cards.
    """

    num_draws: Callable[[ml_collections.ConfigDict], int]
    apply: Callable[[Image, np.ndarray, ml_collections.ConfigDict], Image]
    described: Callable[[ml_collections.ConfigDict], str]


def flip(image: Image, draws: Float32[np.ndarray, "1"], config: ml_collections.ConfigDict) -> Image:
    """Mirrors half of the images, if config.flip says so."""
    return cv2.flip(image, 1) if config.flip and draws[0] >= 0.5 else image


def apply_randaugment(image: Image, draws: Float32[np.ndarray, " n"], config: ml_collections.ConfigDict) -> Image:
    """Applies config.randaugment.layers random operations, see `randaugment.py`."""
    return randaugment(image, draws.reshape(-1, 4), config.randaugment.magnitude)


def _describe_randaugment(config: ml_collections.ConfigDict) -> str:
    layers, magnitude = config.randaugment.layers, config.randaugment.magnitude
    return f"RandAugment of {layers} layers, magnitude {magnitude:g}" if layers else "no RandAugment"


AUGMENTATIONS = {
    "flip": Augmentation(lambda config: 1, flip, lambda config: "flips" if config.flip else "no flips"),
    "randaugment": Augmentation(lambda config: 4 * config.randaugment.layers, apply_randaugment, _describe_randaugment),
}


def draw_slices(config: ml_collections.ConfigDict) -> dict[str, slice]:
    """Returns which of an image's draws each augmentation and the crop get, by name.

    The order is fixed: flip, crop, then the rest of the registry. Another order would change the batches of every run.
    A new augmentation comes last, so the draws of the others stay the same.
    """
    numbers = {"flip": AUGMENTATIONS["flip"].num_draws(config), "crop": crops.NUM_DRAWS}
    numbers |= {name: one.num_draws(config) for name, one in AUGMENTATIONS.items() if name != "flip"}
    stops = np.cumsum(list(numbers.values())).tolist()
    return {name: slice(stop - numbers[name], stop) for name, stop in zip(numbers, stops, strict=True)}


def num_draws(config: ml_collections.ConfigDict) -> int:
    """Returns how many uniform numbers one training image needs; config is `config.input`."""
    return max(part.stop for part in draw_slices(config).values())


def augment(image: Image, draws: Float32[np.ndarray, " draws"], config: ml_collections.ConfigDict) -> Image:
    """Applies every augmentation that the config turns on.

    Args:
      image: image_size x image_size pixels.
      draws: all draws of the image.
      config: `config.input`.
    """
    for name, part in draw_slices(config).items():
        if name != "crop" and part.stop > part.start:
            image = AUGMENTATIONS[name].apply(image, draws[part], config)
    return image
