"""Small prepared datasets in both formats, made once for all tests."""

import pathlib

import pytest
import tensorflow_datasets as tfds
from making import CLASSES, labelled, pictures, write_dataset


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Returns `data_dir` by format. `pictures` has 41 training examples in 4 shards, shuffled, and 7 for validation."""
    files = pictures(48)
    folders = {}
    for file_format in ("tfrecord", "array_record"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        splits = {"train": labelled(files[:41]), "validation": labelled(files[41:])}
        write_dataset(folders[file_format], file_format, splits, shards=4, shuffled=True)
    return folders


@pytest.fixture(scope="session")
def prepared_multilabel(tmp_path_factory) -> pathlib.Path:
    """Returns the `data_dir` of `pictures` with zero to three labels each."""
    data_dir = tmp_path_factory.mktemp("multilabel")
    features = {
        "image": tfds.features.Image(),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
    }
    examples = [(file, list(range(i % 4))) for i, file in enumerate(pictures(12))]
    write_dataset(data_dir, "tfrecord", {"train": examples}, features=features)
    return data_dir
