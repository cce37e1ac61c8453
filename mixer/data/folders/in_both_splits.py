"""Looks for images that are in two splits of a folder, and reads few files for it."""

import filecmp
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixer.data.folders.listing import decoded

_COMPARED = 2_000  # pairs of files; those of another size, which most are, are not read


class InBoth(NamedTuple):
    """What was found in two splits.

    Attributes:
      splits: their names.
      images: how many are the same to the byte, of those compared.
      example: path of one in the first split, from the split's folder on; empty if there is none.
      compared: how many pairs of files were compared.
      alike: how many pairs there are that have the same class and name.
    """

    splits: tuple[str, str]
    images: int
    example: str
    compared: int
    alike: int


def find(
    splits: tuple[str, str], first: Sequence[tuple[str, int, bytes]], second: Sequence[tuple[str, int, bytes]]
) -> InBoth:
    """Compares the local files that have the same class and name in both splits: up to 2,000, spread evenly.

    Args:
      splits: their names.
      first: folder, class number and names of the images (as in `listing.Contents.images`) of each class.
      second: likewise, of the other split.
    """
    folders = {label: (folder, names) for folder, label, names in first}
    alike: list[tuple[str, str, list[bytes]]] = []
    for folder, label, names in second:
        theirs, their_names = folders.get(label, (folder, b""))
        if theirs != folder:  # two parts of one folder have no file in common
            common = set(names.split(b"\0")[:-1]) & set(their_names.split(b"\0"))
            alike.append((theirs, folder, sorted(common)))
    ends = np.cumsum([len(names) for _, _, names in alike], dtype=np.int64)
    total = int(ends[-1]) if alike else 0
    numbers = np.unique(np.linspace(0, total - 1, min(total, _COMPARED)).astype(np.int64))
    same = []
    for number, place in zip(numbers.tolist(), np.searchsorted(ends, numbers, side="right").tolist(), strict=True):
        one, other, names = alike[place]
        name = decoded(names[number - int(ends[place])])
        if _same(f"{one}/{name}", f"{other}/{name}"):
            same.append(f"{one}/{name}")
    example = "/".join(same[0].split("/")[-2:]) if same else ""
    return InBoth(splits, len(same), example, len(numbers), total)


def _same(one: str, other: str) -> bool:
    """Returns whether two files hold the same bytes, and any; they are read if their sizes are the same."""
    try:
        return os.path.getsize(one) > 0 and filecmp.cmp(one, other, shallow=False)
    except (OSError, ValueError):  # an image that cannot be read is counted where it is read
        return False
