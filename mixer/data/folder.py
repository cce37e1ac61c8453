"""The reader for a folder of class folders, local or in a bucket: `data_dir`/<class>/<image>."""

import concurrent.futures
import functools
import hashlib
import logging
import os
import pathlib
import stat
from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from mixer.data import fingerprint
from mixer.data.sources import Example, Source
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LISTED = 32  # folders of a bucket that are listed at a time, each with a request for a thousand files
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
      OSError: the bucket cannot be listed.
    """
    if split not in _SPLIT_FOLDERS:
        raise UserError(f"split {split!r} of a folder: expected train or validation")
    root = str(config.data_dir or "").rstrip("/")
    if not config.data_dir or not files.is_folder(root):
        raise UserError(f"config.input.data_dir={config.data_dir!r} is not a folder; give the folder of class folders")
    if remote := bucket.is_remote(root):
        _warn_of_requests(root)
    found_files = class_files(root, split, config.validation_share)
    paths = [path for found in found_files.values() for path in found]
    labels = [label for label, found in enumerate(found_files.values()) for _ in found]
    if not paths:
        raise UserError(f"{root} has no images for split {split!r}: set config.input.validation_share above zero")

    def fetch(numbers: np.ndarray) -> list[Example]:
        found = files_bytes([paths[n] for n in numbers])
        return [Example(image, (labels[n],)) for n, image in zip(numbers, found, strict=True)]

    return Source(
        len(paths), list(found_files), max_labels=1, multi_label=False, fetch=fetch, remote=remote,
        fingerprint=fingerprint.of_files(root, paths),
    )  # fmt: skip


@functools.cache
def _warn_of_requests(root: str) -> None:
    """Says once that there is a faster way."""
    _log.warning(
        "%s: each image is a request to the bucket. Records need a sixteenth of them: `python scripts/prepare.py "
        "folder` makes them.", root,
    )  # fmt: skip


def class_files(root: epath.PathLike, split: str, validation_share: float) -> dict[str, list[str]]:
    """Lists the images of a split. See `open_split` for the layouts.

    Returns:
      For each class, in the order of the labels, the paths of its images.

    Raises:
      UserError: there are fewer than two classes.
      OSError: the bucket cannot be listed.
    """
    split_folders = {name: folder for name in _SPLIT_FOLDERS if (folder := _split_folder(str(root), name))}
    train_folder = split_folders.get("train", str(root))
    images = {name: found for name, found in _images(train_folder, _folder_names(train_folder)).items() if found}
    if len(images) < 2:
        raise UserError(f"{train_folder} holds {len(images)} class folders with images; at least two are needed")
    if len(split_folders) == len(_SPLIT_FOLDERS):
        split_folder = split_folders[split]
        images = _images(split_folder, list(images))  # the classes are those of train/
    else:
        split_folder = train_folder
        images = {name: _share(found, split, validation_share) for name, found in images.items()}
    return {name: [f"{split_folder}/{name}/{file}" for file in found] for name, found in images.items()}


def _split_folder(root: str, split: str) -> str | None:
    """Returns the folder with a split's class folders, or None if there is none."""
    folders = (f"{root}/{name}" for name in _SPLIT_FOLDERS[split])
    return next((folder for folder in folders if _folder_names(folder)), None)


def _share(files: Sequence[str], split: str, validation_share: float) -> list[str]:
    """Returns the split's files of one class: validation gets a share, at least one file unless the share is 0.

    The hash of a file's name decides. So a file that is added later moves few others to the other split.
    """
    by_hash = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
    kept = max(round(len(files) * validation_share), 1) if validation_share else 0
    kept = min(kept, len(files) - 1)  # training keeps at least one file
    return sorted(by_hash[:kept] if split == "validation" else by_hash[kept:])


def _folder_names(folder: str) -> list[str]:
    """Returns the names of the folders in a folder, without hidden ones. Empty if `folder` is no folder."""
    if bucket.is_remote(folder):
        names = bucket.children(folder)[0]
    elif os.path.isdir(folder):
        names = [path.name for path in pathlib.Path(folder).iterdir() if path.is_dir()]
    else:
        names = []
    return sorted(name for name in names if name[0] != ".")


def _images(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names of the image files in some folders of a folder. In a bucket, they are listed concurrently."""
    folders = [f"{folder}/{name}" for name in names]
    if not bucket.is_remote(folder):
        return dict(zip(names, map(_image_names, folders), strict=True))
    with concurrent.futures.ThreadPoolExecutor(_LISTED) as pool:
        return dict(zip(names, pool.map(_image_names, folders), strict=True))


def _image_names(folder: str) -> list[str]:
    """Returns the names of the image files in a folder, without hidden ones. Empty if `folder` is no folder."""
    if bucket.is_remote(folder):
        names = list(bucket.children(folder)[1])
    else:
        names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES))


def files_bytes(paths: Sequence[str]) -> list[bytes | None]:
    """Returns the bytes of files, local or gs://. Those in a bucket are read concurrently.

    Returns:
      None for a file that does not exist; for a local one also if it cannot be read, or is no regular file.

    Raises:
      UserError: a bucket cannot be read. Otherwise all images would be black, one after the other.
    """
    remote = [path for path in paths if path.startswith("gs://")]
    read = dict(zip(remote, _remote_bytes(remote), strict=True)) if remote else {}
    return [read[path] if path in read else file_bytes(path) for path in paths]


def _remote_bytes(paths: Sequence[str]) -> list[bytes | None]:
    """Returns the bytes of files in a bucket; None for one that does not exist."""
    try:
        return list(bucket.read([bucket.Range(path) for path in paths]))
    except FileNotFoundError:
        return [None] if len(paths) == 1 else [data for path in paths for data in _remote_bytes([path])]
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): see to the bucket, then give the same command again"
        ) from None


def file_bytes(path: str) -> bytes | None:
    """Returns a local file's bytes. None if it cannot be read or is no regular file, such as a pipe."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: no file can have this name. One image must not end a run
        return None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a file. Without O_NONBLOCK, opening a pipe would wait until another process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
