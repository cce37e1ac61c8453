"""A prepared TFDS dataset as a source, the embedded datasets included."""

import os
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mixer.data import datasets
from mixer.data.records import open_records
from mixer.data.sources import Example, Source
from mixer.data.tensorflow import tf
from mixer.runtime.errors import MissingDataError, UserError, first_line


def open_split(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
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
        raise MissingDataError(
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
