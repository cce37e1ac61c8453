"""Decides which image goes into which shard, from the paths, sizes and versions of the files alone."""

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mixer.data.datasets import checked_images
from mixer.data.folders import folder_layout, folder_report
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError


class Shard(NamedTuple):
    """A file of records to be written: its name, its split, and the images in their order."""

    name: str
    split: str
    files: Sequence[checked_images.File]


class Plan(NamedTuple):
    """What is to be written.

    Attributes:
      shards: the files.
      class_names: in the order of the labels.
      root: the folder of the images.
      digest: of all that decides what is in a shard of a name.
      report: lines that say what was found in the folder.
      prepared_from: what the dataset is made from, as far as another value would make another dataset.
    """

    shards: Sequence[Shard]
    class_names: Sequence[str]
    root: str
    digest: str
    report: Sequence[str]
    prepared_from: Mapping[str, str]


def make_plan(images: str, name: str, validation_share: float, shard_bytes: int, max_pixels: int) -> Plan:
    """Lists the images and divides them among shards. See `class_folders.prepare` for arguments and errors."""
    root = epath.Path(os.path.expanduser(images))
    if not files.is_folder(root):
        raise UserError(f"--images {images}: there is no such folder; give the folder of class folders")
    versions = _versions(str(root))
    digest = hashlib.sha256(f"2 {max_pixels}".encode())  # with a shard's name, this and the list decide what is in it
    paths_and_sizes = hashlib.sha256()
    shards: list[Shard] = []
    layout = folder_layout.find(root, validation_share)
    layout.of_split("train")  # says so if there is none, or only one class
    for split, parts in layout.parts.items():
        found = [checked_images.File(path, part.label, *versions(path)) for part in parts for path in part.paths()]
        found.sort(key=lambda file: _digest_of(relative(file.path, root)))
        for file in found:
            digest.update(repr((split, relative(file.path, root), *file[1:])).encode())
            paths_and_sizes.update(repr((split, relative(file.path, root), file.size)).encode())
        shards += _shards(name, split, found, shard_bytes)
    class_names = layout.found.class_names
    for class_name in class_names:
        if class_name != class_name.strip() or not class_name.isprintable():
            raise UserError(f"class folder {class_name!r}: TFDS cannot keep this name; rename the folder")
    report = folder_report.lines(layout.found)
    prepared_from = {
        "validation_share": str(validation_share),
        "bytes of a shard": f"{shard_bytes:,}",
        "digest of the images' paths and sizes": paths_and_sizes.hexdigest()[:12],
    }
    return Plan(shards, class_names, str(root), digest.hexdigest(), report, prepared_from)


def relative(path: str, root: os.PathLike[str] | str) -> str:
    """Returns a path relative to the root, which it begins with."""
    return path.removeprefix(str(root)).lstrip("/")


def _digest_of(path: str) -> bytes:
    """Returns the hash of a path. It decides the order, so that neighbours in a shard are of random classes."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()


def _versions(root: str) -> Callable[[str], tuple[int, str]]:
    """Returns a function from an image's path to its size and its version: a checksum, or a local file's time."""
    if bucket.is_remote(root):
        objects = bucket.listing(root)

        def remote(path: str) -> tuple[int, str]:
            found = objects[relative(path, root)]
            return found.size, found.checksum

        return remote

    def local(path: str) -> tuple[int, str]:
        try:
            status = os.stat(path)
        except OSError:  # such as a link to nothing; `checked_images` counts it
            return 0, ""
        return status.st_size, str(status.st_mtime_ns)

    return local


def _shards(name: str, split: str, files: Sequence[checked_images.File], shard_bytes: int) -> list[Shard]:
    """Cuts the files of a split into shards of about equal size. Each has a file at least."""
    if not files:
        return []
    ends = np.cumsum([file.size for file in files])
    count = max(1, round(int(ends[-1]) / shard_bytes))
    inner = np.searchsorted(ends, [int(ends[-1]) * n / count for n in range(1, count)], side="right")
    cuts = np.unique([0, *inner, len(files)]).tolist()
    count = len(cuts) - 1
    return [
        Shard(f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}", split, files[start:stop])
        for number, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]
