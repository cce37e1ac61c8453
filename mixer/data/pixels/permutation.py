"""The registry of permutations of an image's pixels: one permutation, the same for all images (Figure 4 of the paper).

A Mixer loses nothing if patches are shuffled, and the pixels within each patch by one shared permutation: with the
weights of the stem and of token mixing permuted alike, it computes the same logits. A convolutional network loses
accuracy. If all pixels are shuffled, both lose.

NumPy keeps the numbers of `RandomState` for good. So a permutation is a function of the settings, also in the code of a
model card.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import ml_collections
import numpy as np
from jaxtyping import Int, UInt8

from mixer.runtime.errors import UserError

Images = UInt8[np.ndarray, "*batch height width 3"]
Order = Int[np.ndarray, " pixels"]  # place i of the new image gets pixel order[i] of the old one, both row by row


class Permutation(NamedTuple):
    """A way to permute pixels.

    Attributes:
      order: returns the order, given (random numbers, side of the image, side of a patch).
      described: words for model cards; {patch} stands for the side of a patch.
    """

    order: Callable[[np.random.RandomState, int, int], Order]
    described: str


def shuffled_patches(random: np.random.RandomState, size: int, patch: int) -> Order:
    """Shuffles the patches, and the pixels within each patch by one permutation that they share."""
    grid = size // patch
    numbers = np.arange(size * size).reshape(grid, patch, grid, patch).swapaxes(1, 2).reshape(grid**2, patch**2)
    numbers = numbers[random.permutation(grid**2)][:, random.permutation(patch**2)]
    return numbers.reshape(grid, grid, patch, patch).swapaxes(1, 2).ravel()


def shuffled_pixels(random: np.random.RandomState, size: int, patch: int) -> Order:
    """Shuffles all pixels."""
    return random.permutation(size * size)


# "none" has no order. The others are followed line by line by `transfer/card_code.py`.
PERMUTATIONS: dict[str, Permutation | None] = {
    "none": None,
    "patches": Permutation(
        shuffled_patches, "patches of {patch}x{patch} shuffled, pixels within each patch by one shared permutation"
    ),
    "pixels": Permutation(shuffled_pixels, "all pixels shuffled"),
}


def order_of(config: ml_collections.ConfigDict) -> Order | None:
    """Returns the order of an image's pixels, int64 [image_size**2]; None if they stay where they are.

    Args:
      config: `config.input`.

    Raises:
      UserError: the patches do not tile the image.
    """
    return _order(config.permutation, config.image_size, config.permutation_patch or 1, config.permutation_seed)


@functools.lru_cache(maxsize=8)  # it is asked for with every picture
def _order(name: str, size: int, patch: int, seed: int) -> Order | None:
    permutation = PERMUTATIONS[name]
    if permutation is None:
        return None
    if size % patch:
        raise UserError(
            f"images of {size} pixels are not tiled by the patches that input.permutation shuffles, of {patch} pixels: "
            f"give an image size that is a multiple of {patch}"
        )
    return permutation.order(np.random.RandomState(seed), size, patch)


def permuted(images: Images, order: Order | None) -> Images:
    """Returns images with their pixels in this order."""
    if order is None:
        return images
    found: Images = np.take(images.reshape(*images.shape[:-3], -1, 3), order, axis=-2).reshape(images.shape)
    return found


def described(config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> str:
    """Returns what is permuted, in words for model cards; empty if nothing is.

    Args:
      config: `config.input`.
    """
    permutation = PERMUTATIONS[config.permutation]
    return permutation.described.format(patch=config.permutation_patch) if permutation else ""
