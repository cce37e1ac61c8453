"""The reader for prepared TFDS datasets, including the embedded ones."""

import collections
import os
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format

from mixer.data import datasets, fingerprint
from mixer.data.records import records
from mixer.data.sources import Example, Source, check_single_label
from mixer.data.tensorflow import tf
from mixer.runtime import bucket, files
from mixer.runtime.errors import MissingDataError, SeveralLabelsError, UserError, first_line

# Records of a bucket that are read with one request. A bucket serves 5,000 requests/s to begin with: 80,000
# images/s for all hosts together.
_REMOTE_BLOCK = 16


def open_split(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens a split of a prepared TFDS dataset. An embedded dataset is made first, unless it is there.

    Args:
      config: `config.input`.
      split: in TFDS' notation, such as train[:99%].
      cache_dir: folder for the embedded datasets, and for indices of datasets whose folder is read-only.

    Raises:
      MissingDataError: the dataset is not prepared.
      UserError: there is no such dataset, split or feature, or the data cannot be used.
    """
    data_dir = config.data_dir
    files.refuse_patterns(data_dir or "", f"config.input.data_dir={data_dir!r}", "TFDS")
    if datasets.is_embedded(config.dataset):
        data_dir = data_dir or os.path.join(cache_dir, "datasets")
        datasets.prepare_embedded(config.dataset, str(data_dir))
    builder = _open_builder(config.dataset, data_dir)
    where = f"{config.dataset} in {data_dir or tfds.core.constants.DATA_DIR}"  # for messages
    num_examples, fetch_records = _open_records(builder, split, cache_dir, where)

    features = builder.info.features
    image_key = _feature_key(features, tfds.features.Image, where)
    _check_dtype(features[image_key], image_key, where)
    label_key = config.label_key or _label_key(features, where)
    classes, multi_label = _class_feature(features, label_key, where)
    if not multi_label:
        check_single_label(config, f"examples of {where}")
    max_labels = _max_labels(config, builder, where) if multi_label else 1

    def fetch(numbers: np.ndarray) -> list[Example]:
        examples = [_parse(record, image_key, label_key) for record in fetch_records(numbers)]
        for example in examples:
            _check_labels(example.labels, max_labels, len(classes.names), where)
        return examples

    remote = bucket.is_remote(builder.data_path)
    block = _REMOTE_BLOCK if remote and not builder.info.disable_shuffling else 1  # neighbours may be of one class
    return Source(
        num_examples, classes.names, max_labels, multi_label, fetch, remote, block, _fingerprint(builder, split),
        place=_places(builder, split), extent=_extent(builder, split),
    )  # fmt: skip


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Opens a prepared dataset by its name; `data_dir` None means TFDS' default folder."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise MissingDataError(
            f"config.input.dataset={name!r}: no such dataset is prepared in "
            f"{data_dir or tfds.core.constants.DATA_DIR} (config.input.data_dir), and TFDS knows none of this name. "
            f"Point data_dir to where it is, make it with scripts/prepare.py, or give a TFDS name, one of "
            f"{', '.join(datasets.EMBEDDED)}, or 'folder'"
        ) from None
    except (ValueError, TypeError, AssertionError, ImportError, json_format.ParseError) as error:
        folder = data_dir or tfds.core.constants.DATA_DIR
        raise UserError(
            f"config.input.dataset={name!r}, whose files are looked for in {folder}: {first_line(error)}"
        ) from None
    if not builder.is_prepared():
        raise MissingDataError(
            f"dataset {name} in {data_dir or tfds.core.constants.DATA_DIR} is not prepared: point data_dir to where "
            f"it is, or prepare it with `tfds build {name}" + (f" --data_dir={data_dir}`" if data_dir else "`")
        )
    return builder


def _open_records(
    builder: tfds.core.DatasetBuilder, split: str, cache_dir: epath.PathLike, where: str
) -> tuple[int, records.FetchRecords]:
    """Opens the records of a split: how many there are, and the function that fetches them."""
    try:
        num_examples, fetch_records = records.open_records(builder, split, cache_dir)
    except (KeyError, ValueError, AssertionError, NotImplementedError) as error:
        # TFDS gives the reason in the last line, and lists the splits only where a name is unknown.
        reason = (str(error) or type(error).__name__).splitlines()[-1].partition(" Should be one of ")[0]
        raise UserError(
            f"split {split!r} of {where}: {reason.rstrip('.')}. Its splits: {list(builder.info.splits)}, and "
            "parts such as 'train[:90%]'"
        ) from None
    if num_examples < 1:  # in TFDS, train[9:5] has minus four examples
        raise UserError(f"split {split!r} of {where} is empty")
    return num_examples, fetch_records


def _places(builder: tfds.core.DatasetBuilder, split: str) -> Callable[[int], str]:
    """Returns the function that says in which file a record of a split lies, and as which record of it."""
    instructions = builder.info.splits[split].file_instructions
    names = [os.path.basename(one.filename) for one in instructions]
    firsts = [int(one.skip) for one in instructions]
    ends = np.cumsum([int(one.take) for one in instructions])

    def place(number: int) -> str:
        file = int(np.searchsorted(ends, number, side="right"))
        before = int(ends[file - 1]) if file else 0
        return f"record {firsts[file] + number - before} of {names[file]}"

    return place


def _extent(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, list[range]]:
    """Returns which records of each file belong to a split."""
    found = collections.defaultdict(list)
    for one in builder.info.splits[split].file_instructions:
        found[str(one.filename)].append(range(int(one.skip), int(one.skip) + int(one.take)))
    return found


def _fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, str]:
    """Returns the fingerprint of a split. The dataset knows all of it already: no file is asked for its size."""
    instructions = builder.info.splits[split].file_instructions
    places = [(os.path.basename(one.filename), int(one.skip), int(one.take)) for one in instructions]
    used = {str(one.filename) for one in instructions}
    whole = [one for one in builder.info.splits.values() if not used.isdisjoint(map(str, one.filepaths))]
    return fingerprint.of_records(places, [int(one.num_bytes) for one in whole])


def _label_key(features: tfds.features.FeaturesDict, where: str) -> str:
    """Returns the name of the feature with the labels: "labels" if that is a sequence, else the first class label."""
    if isinstance(dict(features).get("labels"), tfds.features.Sequence):
        return "labels"
    return _feature_key(features, tfds.features.ClassLabel, where)


def _feature_key(features: tfds.features.FeaturesDict, kind: type, where: str) -> str:
    """Returns the name of the feature of this kind: "image" or "label" if it is one, else the only one.

    Which is the first one, TFDS does not keep where it reads a dataset from its files: findings/tfds_feature_order.sh.

    Raises:
      UserError: there is none, or none of them is called so.
    """
    found = sorted(key for key, feature in features.items() if isinstance(feature, kind))
    for usual in ("image", "label"):
        if usual in found:
            return usual
    if not found:
        raise UserError(f"{where} has no {kind.__name__} feature; its features: {', '.join(sorted(features))}")
    if len(found) > 1:
        raise UserError(
            f"{where} has several features of the kind {kind.__name__}, {' and '.join(found)}: "
            + ("name one as config.input.label_key" if kind is tfds.features.ClassLabel else "call one of them image")
        )
    return str(found[0])


# Float32 pixels are stored as four bytes each in an RGBA PNG, so that they would be decoded as colours.
_IMAGE_DTYPES = ("uint8", "uint16")


def _check_dtype(feature: tfds.features.Image, key: str, where: str) -> None:
    """Checks that the stored files are pictures as they look.

    Raises:
      UserError: they are the bytes of other numbers.
    """
    dtype = np.dtype(feature.np_dtype).name
    if dtype not in _IMAGE_DTYPES:
        raise UserError(
            f"the feature {key!r} of {where} holds images of {dtype}, whose bytes TFDS stores as if they were colours: "
            f"expected {' or '.join(_IMAGE_DTYPES)}; prepare the dataset with values of 0 to 255 and "
            "tfds.features.Image(dtype=np.uint8)"
        )


def _class_feature(features: tfds.features.FeaturesDict, key: str, where: str) -> tuple[tfds.features.ClassLabel, bool]:
    """Returns the feature's class label, and whether the feature is a sequence of them.

    Raises:
      UserError: it is neither, or the classes' names are not as many as the classes, or not all different.
    """
    feature: Any = dict(features).get(key)
    multi_label = isinstance(feature, tfds.features.Sequence)
    classes = feature.feature if multi_label else feature
    if not isinstance(classes, tfds.features.ClassLabel):
        raise UserError(
            f"config.input.label_key={key!r} is no class label of {where}; its features: {', '.join(sorted(features))}"
        )
    # TFDS checks both, and loses the error: findings/tfds_label_file.sh.
    if len(classes.names) != classes.num_classes:
        raise UserError(
            f"{where} has {classes.num_classes} classes, but {len(classes.names)} names in {key}.labels.txt: one a line"
        )
    if twice := [name for name, count in collections.Counter(classes.names).items() if count > 1]:
        raise UserError(f"{where} has two classes called {twice[0]!r} in {key}.labels.txt: give each a name of its own")
    return classes, multi_label


def _max_labels(config: ml_collections.ConfigDict, builder: tfds.core.DatasetBuilder, where: str) -> int:
    """Returns the largest number of labels of an example, from the config or from the dataset's metadata.

    Raises:
      SeveralLabelsError: the config's is smaller than the dataset's.
      UserError: neither has it.
    """
    most, told = int(config.max_labels or 0), int((builder.info.metadata or {}).get("max_labels", 0))
    if not (most or told):
        raise UserError(f"{where} does not say how many labels an example has; set config.input.max_labels")
    if 0 < most < told:
        raise SeveralLabelsError(
            f"config.input.max_labels={most}: examples of {where} have up to {told} labels; leave it out"
        )
    return most or told


def _parse(record: bytes | None, image_key: str, label_key: str) -> Example:
    if record is None:
        return Example(None, ())
    feature = tf.train.Example.FromString(record).features.feature
    return Example(feature[image_key].bytes_list.value[0], feature[label_key].int64_list.value)


def _check_labels(labels: Sequence[int], max_labels: int, num_classes: int, where: str) -> None:
    """Checks the labels of an example.

    Raises:
      UserError: there are too many, or one is beyond the classes. -1 stands for no class, as in TFDS.
    """
    if len(labels) > max_labels:
        raise UserError(f"an example has {len(labels)} labels, more than config.input.max_labels={max_labels}")
    if max(labels, default=-1) >= num_classes:
        raise UserError(f"an example of {where} has the label {max(labels)}; its {num_classes} classes count from 0")
