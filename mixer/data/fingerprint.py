"""Fingerprints of splits: digests by which a run notices that its data are no longer the same. No image is read."""

import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mixer.runtime import bucket

_SIZED = 10_000  # files of a split whose sizes are asked for
_DIGITS = 12  # of a digest


def digest(parts: Iterable[bytes]) -> str:
    """Returns a short digest of some bytes in this order. Where one part ends and the next begins counts too."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part) + part)
    return whole.hexdigest()[:_DIGITS]


def of_files(root: str, paths: Sequence[str], names: bytes | None = None) -> dict[str, str]:
    """Returns the fingerprint of a split of files: digests of all their names, and of some of their sizes.

    A folder gives the names of eleven million files within the time that any start takes to list them; their digest
    takes seconds more. Each size is a request to the file system. So 10,000 files are asked for theirs, spread
    evenly over the split: all of them, in most folders of a user's own. A bucket is not asked again.

    Args:
      root: the folder in which all files lie. It is not part of the names, so data may move.
      paths: of the files, in the order of their record numbers.
      names: the paths without the root before them, one a line, where they are at hand in one piece.
    """
    if names is None:
        names = b"\n".join(os.fsencode(path[len(root) :]) for path in paths)
    found = {"file names": digest([names])}
    if not bucket.is_remote(root):
        found["file sizes"] = digest(b"%d" % _size(path) for path in _spread(paths))
    return found


def share_in(root: str, paths: Sequence[str], other: str) -> float:
    """Returns the share of files that another folder has too, under the same names and with the same sizes.

    Args:
      root: the folder in which the files lie.
      paths: of the files. Of many, 10,000 are looked for.
      other: the other folder; both are local.
    """
    sizes = [(_size(path), _size(other.rstrip("/") + path[len(root) :])) for path in _spread(paths)]
    return sum(ours == theirs != -1 for ours, theirs in sizes) / max(len(sizes), 1)


def _spread(paths: Sequence[str]) -> list[str]:
    """Returns the paths, or 10,000 that are spread evenly over them."""
    numbers = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _SIZED)).astype(np.int64))
    return [paths[number] for number in numbers.tolist()]


def _size(path: str) -> int:
    """Returns the size of a file in bytes; -1 if it cannot be told. Such an image is counted where it is read."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def of_records(places: Iterable[Sequence[object]], num_bytes: Iterable[int]) -> dict[str, str]:
    """Returns the fingerprint of a split of a prepared dataset, from what the dataset says of itself.

    Args:
      places: for each file its name, the first record of the split in it, and how many follow.
      num_bytes: the size of each whole split that these records are from.
    """
    return {"list of records": digest(repr(part).encode() for part in (*map(tuple, places), *num_bytes))}
