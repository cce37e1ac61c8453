"""Where examples come from: a TFDS dataset, one of the embedded ones, or a folder of class folders.

Every source is the same thing to the pipeline: a number of examples, class names, and a function from record numbers to
encoded images with their labels.
"""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from mixer.data import datasets
from mixer.data.records import open_records
from mixer.errors import UserError, first_line


class Example(NamedTuple):
    """An encoded image (None where its record is damaged) and its class numbers."""

    image: bytes | None
    labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Source:
    """A split with random access.

    Attributes:
      num_examples: examples in the split.
      class_names: one for each class, in the order of the labels.
      max_labels: the most labels an example has; 1 for single-label data.
      multi_label: whether examples carry sets of labels, which asks for other metrics.
      fetch: record numbers (int64 [n]) to their examples.
    """

    num_examples: int
    class_names: Sequence[str]
    max_labels: int
    multi_label: bool
    fetch: Callable[[np.ndarray], list[Example]]


def open_source(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens the split of the dataset that `config.input` names; `cache_dir` keeps what has to be made for it.

    Raises:
      UserError: it is not there, or not as it should be.
    """
    if config.dataset == "folder":
        return _open_folder(config, split)
    return _open_tfds(config, split, cache_dir)


def _open_tfds(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    name, data_dir = config.dataset, config.data_dir
    if datasets.is_embedded(name):
        data_dir = data_dir or os.path.join(cache_dir, "datasets")
        datasets.prepare_embedded(name, str(data_dir))
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"config.input.dataset={name!r}: {first_line(error)} Give a TFDS name (with config.input.data_dir "
            f"where it is prepared), one of {', '.join(datasets.EMBEDDED)}, or 'folder'"
        ) from None
    where = f"{name} in {data_dir or tfds.core.constants.DATA_DIR}"
    if not builder.is_prepared():
        raise UserError(
            f"dataset {where} is not prepared: point data_dir to where it is, or prepare it with "
            f"`tfds build {name}" + (f" --data_dir={data_dir}`" if data_dir else "`")
        )
    try:
        num_examples, read = open_records(builder, split, cache_dir)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(
            f"split {split!r} of {where}: {first_line(error)} Its splits: {list(builder.info.splits)}"
        ) from None
    if num_examples < 1:  # TFDS counts train[9:5] as minus four
        raise UserError(f"split {split!r} of {where} is empty")

    features = builder.info.features
    image_key = _feature_key(features, tfds.features.Image, where)
    label_key = config.label_key or _label_key(features, where)
    label_feature: Any = dict(features).get(label_key)
    multi_label = isinstance(label_feature, tfds.features.Sequence)
    label_feature = label_feature.feature if multi_label else label_feature
    if not isinstance(label_feature, tfds.features.ClassLabel):
        raise UserError(
            f"config.input.label_key={label_key!r} is no class label of {where}; its features: "
            f"{', '.join(sorted(features))}"
        )
    max_labels = 1
    if multi_label:
        metadata = builder.info.metadata or {}
        if not (config.max_labels or "max_labels" in metadata):
            raise UserError(f"{where} does not say how many labels an example has; set config.input.max_labels")
        max_labels = int(config.max_labels or metadata["max_labels"])

    def fetch(numbers: np.ndarray) -> list[Example]:
        return [_parse(record, image_key, label_key, max_labels) for record in read(numbers)]

    return Source(num_examples, label_feature.names, max_labels, multi_label, fetch)


def _label_key(features: tfds.features.FeaturesDict, where: str) -> str:
    if isinstance(dict(features).get("labels"), tfds.features.Sequence):
        return "labels"
    return _feature_key(features, tfds.features.ClassLabel, where)


def _feature_key(features: tfds.features.FeaturesDict, kind: type, where: str) -> str:
    """The first feature of this kind: TFDS' datasets put the image and the class proper before any others."""
    for usual in ("image", "label"):
        if usual in features and isinstance(features[usual], kind):
            return usual
    for key, feature in features.items():
        if isinstance(feature, kind):
            return key
    raise UserError(f"{where} has no {kind.__name__} feature; its features: {', '.join(features)}")


def _parse(record: bytes | None, image_key: str, label_key: str, max_labels: int) -> Example:
    if record is None:
        return Example(None, ())
    feature = tf.train.Example.FromString(record).features.feature
    labels = feature[label_key].int64_list.value
    if len(labels) > max_labels:
        raise UserError(f"an example has {len(labels)} labels, more than config.input.max_labels={max_labels}")
    return Example(feature[image_key].bytes_list.value[0], labels)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}


def _open_folder(config: ml_collections.ConfigDict, split: str) -> Source:
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
