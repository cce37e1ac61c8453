"""The handwritten digits of scikit-learn, divided into three tiny training splits and a test split.

These are 1,797 images of 8x8 pixels with values from 0 to 16, in ten classes. A training split has ten examples of each
class. With it, one sees quickly whether a pre-trained model learns from few examples what an untrained model does not.

The digits may be coloured: stroke and background then have a random colour each, and either may be the lighter one. Ten
examples a class hardly show that colours do not matter; a pre-trained model may know it already.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
scikit-learn (BSD licence) has a copy of its test part. Each image there is from one of 13 writers, and it is not known
from which.
"""

import io
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mixer.data.datasets import base

SEEDS = (0, 1, 2)
EXAMPLES_A_CLASS = 10
_GREY_LEVELS = 16  # the largest value of a pixel
_MAX_SIZE = 1024
_NAME = re.compile(r"([1-9]\d{0,3})(-coloured)?", re.ASCII)
_CONTRAST = 60  # the least difference of lightness between stroke and background, of 255
_LIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue, as in JPEG

Example = tuple[int, dict[str, Any]]


class Digits(base.Builder):
    """Builds the dataset. When it is built, `tfds.builder("digits/32", data_dir=...)` reads it from its files.

    Features: `image` (RGB PNG) and `label` (the digit). Splits: `train_seed0`, `train_seed1` and `train_seed2` with ten
    examples of each class, and `test` with all other examples. No example is in two splits.

    Args:
      config: side of the images in pixels, as text ("32"), and "-coloured" if they are. They are enlarged bilinearly.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Raises:
      ValueError: `config` is neither a number from 8 to 1024 nor such a number and "-coloured".
      ImportError: while building, if scikit-learn is missing.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="32", description="32x32 pixels")]

    def __init__(self, *, config: str | None = None, **kwargs: Any) -> None:
        name = config or self.BUILDER_CONFIGS[0].name
        match = _NAME.fullmatch(name)
        if not (match and 8 <= int(match[1]) <= _MAX_SIZE):
            raise ValueError(
                f"digits/{name}: the side must be a number of pixels from 8 to {_MAX_SIZE}, as in digits/32 or "
                "digits/32-coloured"
            )
        self._size, self._coloured = int(match[1]), bool(match[2])
        known = {config.name: config for config in self.BUILDER_CONFIGS}
        super().__init__(config=known.get(name) or tfds.core.BuilderConfig(name=name), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn, ten training examples a class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self._size, self._size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        try:
            from sklearn import datasets
        except ImportError:
            raise ImportError('the digits come with scikit-learn: pip install "mixer-jax[quickstart]"') from None
        digits = datasets.load_digits()
        images, labels = np.asarray(digits.images, np.float32), np.asarray(digits.target, np.int64)
        return {
            split: self._generate_examples(images, labels, indices) for split, indices in split_indices(labels).items()
        }

    def _generate_examples(
        self, images: Float[np.ndarray, "n 8 8"], labels: Int[np.ndarray, "n"], indices: Int[np.ndarray, "m"]
    ) -> Iterator[Example]:
        for index in indices.tolist():
            buffer, picture = io.BytesIO(), enlarge(images[index], self._size)
            Image.fromarray(coloured(picture, index) if self._coloured else picture).save(buffer, "PNG")
            yield index, {"image": buffer.getvalue(), "label": int(labels[index])}


def split_indices(labels: Int[np.ndarray, "n"]) -> dict[str, Int[np.ndarray, "_"]]:
    """Returns the indices of the examples of each split.

    Each training split is drawn with its own seed, from the examples that no split before it has.
    """
    free = np.ones(len(labels), bool)
    splits: dict[str, np.ndarray] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        chosen = [
            rng.choice(np.flatnonzero(free & (labels == digit)), EXAMPLES_A_CLASS, replace=False)
            for digit in np.unique(labels)
        ]
        splits[f"train_seed{seed}"] = np.sort(np.concatenate(chosen))
        free[splits[f"train_seed{seed}"]] = False
    splits["test"] = np.flatnonzero(free)
    return splits


def enlarge(image: Float[np.ndarray, "8 8"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales values from 0..16 to 0..255, and resizes to `size` x `size` pixels bilinearly (half-pixel centres)."""
    scaled = Image.fromarray(image * (255 / _GREY_LEVELS)).resize((size, size), Image.Resampling.BILINEAR)
    grey = np.clip(np.rint(np.asarray(scaled)), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def coloured(grey: UInt8[np.ndarray, "size size 3"], number: int) -> UInt8[np.ndarray, "size size 3"]:
    """Gives black and white two random colours, a function of the digit's number, and grey what lies between them."""
    rng, colours = np.random.default_rng(number), np.zeros((2, 3))
    while abs(np.dot(colours[1] - colours[0], _LIGHTNESS)) < _CONTRAST:
        colours = rng.uniform(0, 255, (2, 3))
    mixed: np.ndarray = np.rint(colours[0] + grey / 255 * (colours[1] - colours[0])).astype(np.uint8)
    return mixed
