"""Fractals for pre-training. They need no photograph, no download and no licence.

A category is a random iterated function system: two to eight affine maps with an attractor that fills enough of the
picture. An instance of a category is the attractor of the same system with slightly different parameters.

Source: Kataoka et al., "Pre-training without Natural Images" (FractalDB), ACCV 2020. As there: the number of maps and
the distribution of their coefficients; a map is chosen in proportion to its |determinant|; a category is accepted by
its filled area; the six parameters of an instance are scaled by 0.8 to 1.2; flips; random 3x3 dots. Different here:

- The six factors of an instance are drawn together and continuously. FractalDB changes one at a time, in steps.
- Systems that do not contract on average are rejected before drawing, because they have no attractor.
- Instances are also rotated, scaled and moved a little. Each has its own two colours and its own background, light on
  dark or dark on light. Only the shape depends on the category, so a model cannot classify by colour. And it has seen
  strokes of both polarities before it is fine-tuned to handwriting.

Each image is a function of (seed, category, instance, size) only. It does not depend on other images.
"""

import collections
import itertools
import re
from collections.abc import Iterator
from concurrent import futures
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from mixer.data.datasets import drawn
from mixer.data.datasets.iterated_functions import draw
from mixer.runtime import machine

VALIDATION_SHARE = 0.1  # of the instances of each category, at least one
_NAME = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})(?:-seed([1-9]\d{0,8}))?")
_MAX_SIZE = 1024
_CHUNK = 256  # instances that one task of a thread draws


class Shape(NamedTuple):
    """The parameters in a config's name. `64x200x32-seed7` is categories x instances of each x pixels, and a seed."""

    categories: int
    instances: int
    size: int  # pixels of a side
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.categories}x{self.instances}x{self.size}" + (f"-seed{self.seed}" if self.seed else "")

    @classmethod
    def parse(cls, name: str) -> "Shape":
        """Parses a config's name.

        Raises:
          ValueError: the name has another form, or a number is out of range.
        """
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(
                f"fractals/{name}: name it categories x instances x pixels, as in fractals/64x200x32 or "
                f"fractals/64x200x32-seed1"
            )
        shape = cls(*(int(number or 0) for number in match.groups()))
        if shape.instances < 2:
            raise ValueError(f"fractals/{name}: needs at least 2 instances, one to train on and one to validate")
        if not 8 <= shape.size <= _MAX_SIZE:
            raise ValueError(f"fractals/{name}: the size must be from 8 to {_MAX_SIZE} pixels")
        return shape


class Fractals(drawn.DrawnBuilder):
    """Builds the dataset. When it is built, `tfds.builder("fractals/64x200x32", data_dir=...)` reads it from its files.

    Features: `image` (RGB PNG) and `label`. Splits: `train`, and `validation` with the last tenth of each category's
    instances (at least one).

    Args:
      config: categories x instances x pixels, such as "64x200x32"; see `Shape`.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Raises:
      ValueError: `config` has another form.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="64x200x32", description="The quickstart's.")]

    SHAPE: ClassVar = Shape
    DESCRIPTION: ClassVar = "Attractors of random iterated function systems."

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[drawn.Example]]:
        instances = self._shape.instances
        train = instances - max(1, round(instances * VALIDATION_SHARE))
        return {
            "train": self._generate_examples(range(train)),
            "validation": self._generate_examples(range(train, instances)),
        }

    def _generate_examples(self, instances: range) -> Iterator[drawn.Example]:
        shape = self._shape

        def draw_part(category: int, part: range) -> list[drawn.Example]:
            images = draw(shape.seed, category, part, shape.size)
            return [
                (f"{category}/{instance}", {"image": drawn.png(image), "label": category})
                for instance, image in zip(part, images, strict=True)
            ]

        parts = (
            (category, instances[first : first + _CHUNK])
            for category in range(shape.categories)
            for first in range(0, len(instances), _CHUNK)
        )
        threads = machine.processors()
        with futures.ThreadPoolExecutor(threads) as pool:  # threads are enough: NumPy and OpenCV release Python's lock
            ahead = collections.deque(pool.submit(draw_part, *part) for part in itertools.islice(parts, 2 * threads))
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(pool.submit(draw_part, *part) for part in itertools.islice(parts, 1))
