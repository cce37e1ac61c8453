"""Readable class names: the lists of ImageNet-1k and ImageNet-21k, in the order of the published heads.

Each line of `class_lists/*.txt` has a WordNet id and a short name. The names of the 1,000 classes of ImageNet-1k are
torchvision's. The others are the first name that WordNet (Princeton University) gives. This file needs no TensorFlow.
"""

import functools
import importlib.resources
import re
from collections.abc import Sequence

from mixer.runtime.errors import UserError

# By number of classes. TFDS has the same order for ImageNet-1k.
PUBLISHED = {1_000: "ImageNet-1k", 21_843: "ImageNet-21k"}

_WORDNET_ID = re.compile(r"n\d{8}")


def published(num_classes: int) -> list[str] | None:
    """Returns the WordNet ids of the published head with this number of classes, in its order; None without one."""
    return list(_names_of(PUBLISHED[num_classes])) if num_classes in PUBLISHED else None


def readable(names: Sequence[str]) -> list[str]:
    """Returns the names with "tench (n01440764)" for each known WordNet id. Other names stay as they are."""
    return [f"{_short_names()[name]} ({name})" if _is_known(name) else name for name in names]


def read_names(path: str) -> list[str]:
    """Reads class names from a text file, one on each line. Empty lines at the end are ignored.

    Raises:
      UserError: the file cannot be read or is not UTF-8 text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip().split("\n")]
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
    """Returns the short name of each WordNet id, in the order of the labels."""
    file = importlib.resources.files("mixer") / "data" / "class_lists" / f"{dataset.lower().replace('-', '')}.txt"
    return dict(line.split(" ", 1) for line in file.read_text(encoding="ascii").splitlines())
