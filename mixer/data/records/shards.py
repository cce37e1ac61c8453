"""The files of a prepared dataset: which are there, and what a stretch of their records is."""

import os
from collections.abc import Callable, Sequence

from etils import epath

from mixer.runtime import bucket
from mixer.runtime.errors import UserError

Stretch = tuple[int, int, int]
"""Consecutive records of one file: (number of the file, first record in it, number of records)."""

Records = list[bytes | None]

ReadStretches = Callable[[Sequence[Stretch]], list[Records]]
"""Returns the records of each stretch; None for a damaged record."""


def sizes(paths: Sequence[str]) -> dict[str, int]:
    """Returns the size of each file in bytes. In a bucket, this takes one request for a thousand files.

    Raises:
      UserError: some are missing. Otherwise a run might notice after days.
      OSError: the bucket cannot be listed.
    """
    present: dict[str, int] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        if bucket.is_remote(folder):
            present |= {f"{folder}/{name}": found.size for name, found in bucket.children(folder)[1].items()}
        else:
            inside = {str(path) for path in epath.Path(folder).iterdir()}
            present |= {path: os.stat(path).st_size for path in inside.intersection(paths)}
    if missing := sorted(set(paths) - present.keys()):
        raise UserError(
            f"{len(missing)} of the dataset's {len(paths)} shards are missing, the first is {missing[0]}: copy or "
            "prepare the dataset again"
        )
    return {path: present[path] for path in paths}
