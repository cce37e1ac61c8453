"""A folder of class folders as a source: `data_dir`/<class>/<image>."""

import hashlib
import os
import stat

import ml_collections
import numpy as np
from etils import epath

from mixer.data.sources import Example, Source
from mixer.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}


def open_split(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Reads `data_dir`/<class>/<image>, or the same below train/ and validation/ (val/, test/).

    Where there are no such split folders, `validation_share` of each class is kept from training: those whose names
    come first by hash, so that adding images moves none from one split to the other by accident of order.
    """
    if split not in _SPLIT_FOLDERS:
        raise UserError(f"split {split!r} of a folder: expected train or validation")
    root = epath.Path(config.data_dir or "")
    if not config.data_dir or not root.is_dir():
        raise UserError(f"config.input.data_dir={config.data_dir!r} is not a folder; give the folder of class folders")
    named = {key: next((root / name for name in names if _folders(root / name)), None)
             for key, names in _SPLIT_FOLDERS.items()}  # fmt: skip
    train_root = named["train"] or root
    split_root = named[split] if named["train"] and named["validation"] else None
    files_of = {name: files for name in _folders(train_root) if (files := _image_files(train_root / name))}
    class_names = list(files_of)
    if len(class_names) < 2:
        raise UserError(f"{train_root} holds {len(class_names)} class folders with images; at least two are needed")

    paths: list[str] = []
    labels: list[int] = []
    for label, (name, files) in enumerate(files_of.items()):
        if split_root:
            files = _image_files(split_root / name)
        else:
            files = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
            kept = max(round(len(files) * config.validation_share), 1) if config.validation_share else 0
            kept = min(kept, len(files) - 1)
            files = sorted(files[:kept] if split == "validation" else files[kept:])
        paths += [str((split_root or train_root) / name / file) for file in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{root} has no images for split {split!r}: set config.input.validation_share above zero")

    def fetch(numbers: np.ndarray) -> list[Example]:
        return [Example(file_bytes(paths[n]), (labels[n],)) for n in numbers]

    return Source(len(paths), class_names, 1, False, fetch)


def _folders(folder: epath.Path) -> list[str]:
    """The names of the folders in a folder, if it is one; hidden ones do not count, here and below."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.is_dir())


def _image_files(folder: epath.Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.name[0] != ".")
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def file_bytes(path: str) -> bytes | None:
    """The bytes of a file, local or gs://; None where it cannot be read or is no file but, say, a pipe."""
    try:
        if "://" in path:
            return epath.Path(path).read_bytes()
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except Exception:  # each file system has exceptions of its own, and one image is not to end a run
        return None


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting, as one would for a pipe until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
