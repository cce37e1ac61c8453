"""A source: what a reader returns and the pipeline reads from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from mixer.runtime.errors import UserError


class Example(NamedTuple):
    """An encoded image and its class numbers. The image is None if it cannot be read."""

    image: bytes | None
    labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Source:
    """A split of a dataset, with random access.

    Attributes:
      num_examples: examples in the split.
      class_names: the name of each class, in the order of the labels.
      max_labels: the largest number of labels of an example; 1 for single-label data.
      multi_label: whether an example has a set of labels. Such data needs other metrics.
      fetch: returns the examples with the given record numbers (int64 [n]).
      remote: whether fetching waits for the network. More is then fetched at a time.
      shuffle_block: the number of records that stay neighbours in training, unless `config.input.shuffle_block` says.
      fingerprint: digests of what the split consists of, by what they are of. The same data have the same wherever they
        lie; what a place does not tell is left out (see `fingerprint.py`).
      name: the dataset and the split, for messages.
      place: says where an example lies, for messages, from its record number; None if that is of no use to anybody.
      extent: which records belong to the split, by file or other part of the data; nothing if that is unknown. By it is
        told what two splits have in common.
      report: lines that say what was found and what was left out; none if nothing had to be looked for.
    """

    num_examples: int
    class_names: Sequence[str]
    max_labels: int
    multi_label: bool
    fetch: Callable[[np.ndarray], list[Example]]
    remote: bool = False
    shuffle_block: int = 1
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""
    place: Callable[[int], str] | None = None
    extent: Mapping[str, Sequence[range]] = dataclasses.field(default_factory=dict)
    report: Sequence[str] = ()


def in_common(one: Source, other: Source) -> int:
    """Returns how many examples of one split belong to another, too, as far as their extents tell."""
    common = sum(
        len(range(max(a.start, b.start), min(a.stop, b.stop)))
        for part, ranges in one.extent.items()
        for a in ranges
        for b in other.extent.get(part, ())
    )
    return min(common, one.num_examples)  # a split such as train+train has records twice


def check_single_label(config: ml_collections.ConfigDict, examples: str) -> None:
    """Checks that `config.input` does not ask for several labels of examples that have one; `examples` names them.

    Raises:
      UserError: it does.
    """
    if (config.max_labels or 1) != 1:
        raise UserError(
            f"config.input.max_labels={config.max_labels} would not be read: {examples} have one label each"
        )
