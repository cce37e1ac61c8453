"""The reader for a folder of class folders: `data_dir`/<class>/<image>."""

import hashlib
import os
import stat
from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from mixer.data.sources import Example, Source
from mixer.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}


def open_split(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens the split "train" or "validation" of a folder.

    The folder holds the class folders, or a folder train/ and a folder validation/ (or val/, or test/) that hold them.
    Without a folder for validation, a share of each class, `config.validation_share`, is kept for validation.

    Args:
      config: `config.input`.
      split: "train" or "validation".
      cache_dir: not used; a folder needs no index.

    Raises:
      UserError: there is no such split, no such folder, fewer than two classes, or the split is empty.
    """
    if split not in _SPLIT_FOLDERS:
        raise UserError(f"split {split!r} of a folder: expected train or validation")
    root = epath.Path(config.data_dir or "")
    if not config.data_dir or not root.is_dir():
        raise UserError(f"config.input.data_dir={config.data_dir!r} is not a folder; give the folder of class folders")
    files = class_files(root, split, config.validation_share)
    paths = [path for found in files.values() for path in found]
    labels = [label for label, found in enumerate(files.values()) for _ in found]
    if not paths:
        raise UserError(f"{root} has no images for split {split!r}: set config.input.validation_share above zero")

    def fetch(numbers: np.ndarray) -> list[Example]:
        return [Example(file_bytes(paths[n]), (labels[n],)) for n in numbers]

    return Source(len(paths), list(files), max_labels=1, multi_label=False, fetch=fetch)


def class_files(root: epath.Path, split: str, validation_share: float) -> dict[str, list[str]]:
    """Lists the images of a split. See `open_split` for the layouts.

    Returns:
      For each class, in the order of the labels, the paths of its images.

    Raises:
      UserError: there are fewer than two classes.
    """
    split_folders = {name: folder for name in _SPLIT_FOLDERS if (folder := _split_folder(root, name))}
    train_folder = split_folders.get("train", root)
    files = {name: found for name in _folder_names(train_folder) if (found := _image_names(train_folder / name))}
    if len(files) < 2:
        raise UserError(f"{train_folder} holds {len(files)} class folders with images; at least two are needed")
    if len(split_folders) == len(_SPLIT_FOLDERS):
        split_folder = split_folders[split]
        files = {name: _image_names(split_folder / name) for name in files}  # the classes are those of train/
    else:
        split_folder = train_folder
        files = {name: _share(found, split, validation_share) for name, found in files.items()}
    return {name: [str(split_folder / name / file) for file in found] for name, found in files.items()}


def _split_folder(root: epath.Path, split: str) -> epath.Path | None:
    """Returns the folder with a split's class folders, or None if there is none."""
    folders = (root / name for name in _SPLIT_FOLDERS[split])
    return next((folder for folder in folders if _folder_names(folder)), None)


def _share(files: Sequence[str], split: str, validation_share: float) -> list[str]:
    """Returns the split's files of one class: validation gets a share, at least one file unless the share is 0.

    The hash of a file's name decides. So a file that is added later moves few others to the other split.
    """
    by_hash = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
    kept = max(round(len(files) * validation_share), 1) if validation_share else 0
    kept = min(kept, len(files) - 1)  # training keeps at least one file
    return sorted(by_hash[:kept] if split == "validation" else by_hash[kept:])


def _folder_names(folder: epath.Path) -> list[str]:
    """Returns the names of the folders in a folder, without hidden ones. Empty if `folder` is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.is_dir())


def _image_names(folder: epath.Path) -> list[str]:
    """Returns the names of the image files in a folder, without hidden ones. Empty if `folder` is no folder."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.name[0] != ".")
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def file_bytes(path: str) -> bytes | None:
    """Returns a file's bytes, local or gs://. None if it cannot be read or is no regular file, such as a pipe."""
    try:
        if "://" in path:
            return epath.Path(path).read_bytes()
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except Exception:  # each file system raises its own exceptions, and one image must not end a run
        return None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a file. Without O_NONBLOCK, opening a pipe would wait until another process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
