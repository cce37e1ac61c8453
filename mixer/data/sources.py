"""What the pipeline reads from: a number of examples, class names, and a function from record numbers to examples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """An encoded image and its class numbers. The image is None if its record is damaged."""

    image: bytes | None
    labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Source:
    """A split with random access.

    Attributes:
      num_examples: examples in the split.
      class_names: the name of each class, in the order of the labels.
      max_labels: the most labels that an example has; 1 for single-label data.
      multi_label: whether an example has a set of labels, which needs other metrics.
      fetch: from record numbers (int64 [n]) to their examples.
    """

    num_examples: int
    class_names: Sequence[str]
    max_labels: int
    multi_label: bool
    fetch: Callable[[np.ndarray], list[Example]]
