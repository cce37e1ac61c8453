"""Class names that a person can read: the lists of ImageNet-1k and ImageNet-21k, in the order of the published heads.

A line of `data/class_names/*.txt` is a WordNet id and a short name: torchvision's for the thousand classes of
ImageNet-1k, for the others the first of WordNet's (Princeton University). Needs no TensorFlow.
"""

import functools
import importlib.resources
import re
from collections.abc import Sequence

from mixer.runtime.errors import UserError

# By the number of classes. The order of ImageNet-1k is TFDS' too.
PUBLISHED = {1_000: "ImageNet-1k", 21_843: "ImageNet-21k"}

_WORDNET_ID = re.compile(r"n\d{8}")


def published(num_classes: int) -> list[str] | None:
    """The WordNet ids of a published head with so many classes, in its order; None where there is none."""
    return list(_names_of(PUBLISHED[num_classes])) if num_classes in PUBLISHED else None


def readable(names: Sequence[str]) -> list[str]:
    """Writes "tench (n01440764)" for each WordNet id that the lists know, and leaves all other names."""
    return [f"{_short_names()[name]} ({name})" if _is_known(name) else name for name in names]


def read_names(path: str) -> list[str]:
    """Reads the names in a text file, one a line; empty lines at its end do not count.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip().splitlines()]
    except OSError as error:
        problem = error.strerror
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    raise UserError(f"class names cannot be read from {path}: {problem}; give a text file with one name a line")


def _is_known(name: str) -> bool:
    return _WORDNET_ID.fullmatch(name) is not None and name in _short_names()


@functools.cache
def _short_names() -> dict[str, str]:
    return {**_names_of("ImageNet-21k"), **_names_of("ImageNet-1k")}  # one class of ImageNet-1k is not in ImageNet-21k


@functools.cache
def _names_of(dataset: str) -> dict[str, str]:
    """WordNet ids to short names, in the order of the labels."""
    file = importlib.resources.files("mixer") / "data" / "class_lists" / f"{dataset.lower().replace('-', '')}.txt"
    return dict(line.split(" ", 1) for line in file.read_text(encoding="ascii").splitlines())
