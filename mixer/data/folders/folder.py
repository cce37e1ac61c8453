"""The reader for a folder of class folders, local or in a bucket; docs/data.md shows the layouts."""

import functools
import logging
from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from mixer.data import fingerprint
from mixer.data.folders import folder_layout, folder_report
from mixer.data.folders.folder_layout import Layout, Part
from mixer.data.folders.image_files import files_bytes
from mixer.data.folders.listing import decoded, encoded
from mixer.data.sources import Example, Source, check_single_label
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)


def open_split(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens a split of a folder: "train", "validation", "test" or "all".

    Args:
      config: `config.input`.
      split: which images. If no folder is the validation split, a share of each class is,
        `config.validation_share`.
      cache_dir: keeps the listing of a large local folder.

    Raises:
      UserError: there is no such split or folder, or something in the folder or the config cannot be meant as it is.
      OSError: the bucket cannot be listed.
    """
    if config.dataset != "folder":
        raise UserError(f"config.input.dataset={config.dataset!r}: write folder, and where it is as input.data_dir")
    if config.label_key is not None:
        raise UserError(
            f"config.input.label_key={config.label_key!r} would not be read: an image's class is its folder"
        )
    check_single_label(config, "the images of class folders")
    layout = _layout(config, cache_dir)
    root = layout.found.root
    if remote := bucket.is_remote(root):
        _warn_of_requests(root)
    found = _Files(layout.of_split(split))

    def fetch(numbers: np.ndarray) -> list[Example]:
        contents = files_bytes([found[n] for n in numbers.tolist()])
        return [Example(image, (found.label(n),)) for n, image in zip(numbers.tolist(), contents, strict=True)]

    return Source(
        len(found), layout.found.class_names, max_labels=1, multi_label=False, fetch=fetch, remote=remote,
        fingerprint=fingerprint.of_files(root, found, found.names_below(root)),
        place=found.__getitem__, extent=_extent(layout, split), report=folder_report.lines(layout.found, split),
    )  # fmt: skip


def _extent(layout: Layout, split: str) -> dict[str, list[range]]:
    """Returns the splits that a split consists of: "all" of all others."""
    return {
        f"{layout.found.root} {name}": [range(sum(part.num_images for part in parts))]
        for name, parts in layout.parts.items()
        if split in (name, "all")
    }


def has_splits(config: ml_collections.ConfigDict, cache_dir: epath.PathLike) -> bool:
    """Tells whether a folder holds folders for splits, and not the class folders themselves. See `open_split`."""
    return not _layout(config, cache_dir).undivided


def share_in(config: ml_collections.ConfigDict, other: str, cache_dir: epath.PathLike) -> float:
    """Returns the share of a folder's images that another folder has too: below it, of the same name and size.

    Args:
      config: `config.input`, with the folder.
      other: the other folder. In a bucket it counts as having none.
      cache_dir: see `open_split`.
    """
    if bucket.is_remote(other) or bucket.is_remote(config.data_dir):
        return 0.0
    layout = _layout(config, cache_dir)
    root = layout.found.root
    return fingerprint.share_in(root, _Files(layout.of_split("all")), other)


def _layout(config: ml_collections.ConfigDict, cache_dir: epath.PathLike) -> Layout:
    root = str(config.data_dir or "").rstrip("/")
    if config.data_dir is None:
        raise UserError("config.input.data_dir is not set; give the folder of class folders")
    if not root or not files.is_folder(root):
        raise UserError(f"config.input.data_dir={config.data_dir!r} is not a folder; give the folder of class folders")
    return folder_layout.find(root, config.validation_share, cache_dir)


@functools.cache
def _warn_of_requests(root: str) -> None:
    """Says once that there is a faster way."""
    _log.warning(
        "%s: each image is a request to the bucket. Records need a sixteenth of them: `python scripts/prepare.py "
        "folder` makes them.", root,
    )  # fmt: skip


class _Files(Sequence[str]):
    """The paths of a split's images. Ten million take a third of a gigabyte; as texts, two."""

    def __init__(self, parts: Sequence[Part]):
        self._parts = parts
        self._names = b"".join(part.names for part in parts)
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._starts = np.cumsum([0, *(part.num_images for part in parts)])  # the first image of each part

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices
        start = self._ends[number - 1] + 1 if number else 0
        return f"{self._part(number).folder}/{decoded(self._names[start : self._ends[number]])}"

    def label(self, number: int) -> int:
        """Returns the class number of an image."""
        return self._part(number).label

    def names_below(self, root: str) -> bytes:
        """Returns the paths without the root before them, one a line."""
        lines = []
        for part in self._parts:
            folder = encoded(part.folder.removeprefix(root)) + b"/"
            lines.append(folder + part.names[:-1].replace(b"\0", b"\n" + folder))
        return b"\n".join(lines)

    def _part(self, number: int) -> Part:
        return self._parts[int(np.searchsorted(self._starts, number, side="right")) - 1]
