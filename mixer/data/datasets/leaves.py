"""Dead leaves for pre-training, each picture a category. They need no photograph, no download and no licence.

That one picture a category is enough, if it is augmented, was found for fractals (OFDB, arXiv 2307.14710). Each
has colours of its own, so a model that is to learn shapes and textures needs `input.color_jitter`.
"""

import re
from collections.abc import Iterator
from concurrent import futures
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from mixer.data.datasets import drawn
from mixer.data.datasets.dead_leaves import picture
from mixer.runtime import machine

_NAME = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:-seed([1-9]\d{0,8}))?")
_SIZES = (8, 1024)
_AT_ONCE = 1024  # pictures that are in memory


class Shape(NamedTuple):
    """The parameters in a config's name. `2000x48-seed7` is pictures x pixels, and a seed."""

    categories: int  # one picture each
    size: int  # pixels of a side
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.categories}x{self.size}" + (f"-seed{self.seed}" if self.seed else "")

    @classmethod
    def parse(cls, name: str) -> "Shape":
        """Parses a config's name.

        Raises:
          ValueError: the name has another form, or a number is out of range.
        """
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(
                f"leaves/{name}: name it pictures (2 to 999999) x pixels, as in leaves/2000x48 or leaves/2000x48-seed1"
            )
        shape = cls(*(int(number or 0) for number in match.groups()))
        if shape.categories < 2:
            raise ValueError(f"leaves/{name}: needs at least 2 pictures, since each is a category")
        if not _SIZES[0] <= shape.size <= _SIZES[1]:
            raise ValueError(f"leaves/{name}: the size must be from {_SIZES[0]} to {_SIZES[1]} pixels")
        return shape


class Leaves(drawn.DrawnBuilder):
    """Builds the dataset. When it is built, `tfds.builder("leaves/2000x48", data_dir=...)` reads it from its files.

    Features: `image` (RGB PNG) and `label`, the picture's number. There is one split, `train`.

    Args:
      config: pictures x pixels, such as "2000x48"; see `Shape`.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Raises:
      ValueError: `config` has another form.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="2000x48", description="For 32 pixels.")]

    SHAPE: ClassVar = Shape
    DESCRIPTION: ClassVar = "Dead leaves: shapes with random textures, which lie on each other."

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[drawn.Example]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[drawn.Example]:
        def one(number: int) -> drawn.Example:
            image = picture(self._shape.seed, number, self._shape.size)
            return str(number), {"image": drawn.png(image), "label": number}

        pictures = self._shape.categories
        with futures.ThreadPoolExecutor(machine.processors()) as pool:
            for first in range(0, pictures, _AT_ONCE):
                yield from pool.map(one, range(first, min(first + _AT_ONCE, pictures)))
