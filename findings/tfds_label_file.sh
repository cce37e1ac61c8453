#!/usr/bin/env bash
# TFDS checks that a dataset has as many names as classes, in a thread whose error nobody asks for.
#
# Guess: a prepared dataset whose file of class names is too short (cut off, or an empty line in it) is refused.
# tensorflow-datasets 4.9.10 opens it without a word. The feature's num_classes is what features.json says, its names
# are what the file says, and int2str of the last class is an IndexError. Whoever takes len(names) as the number of
# classes builds a head that is too small: a one-hot label of the last class is all zeros, and its images teach
# nothing. Compare len(names) with num_classes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'tensorflow-datasets==4.9.10' 'importlib-resources==7.1.0' 'tensorflow-cpu==2.21.0'
export TF_CPP_MIN_LOG_LEVEL=3
venv/bin/python - << 'PYTHON' > log.txt 2>&1 || { cat log.txt; exit 1; }
import numpy as np
import tensorflow_datasets as tfds

features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["elm", "fir", "oak"])}
examples = [(number, {"image": np.full((2, 2, 3), number, np.uint8), "label": number}) for number in range(3)]
tfds.dataset_builders.store_as_tfds_dataset(
    name="trees", version="1.0.0", features=tfds.features.FeaturesDict(features), split_datasets={"train": examples},
    data_dir="data", disable_shuffling=True,
)  # fmt: skip
PYTHON
# In another process, which has only the files.
venv/bin/python - << 'PYTHON' 2> log.txt || { cat log.txt; exit 1; }
import pathlib

import tensorflow_datasets as tfds

(names,) = pathlib.Path("data").rglob("label.labels.txt")
for content, expected in {"elm\nfir\noak\n": 3, "elm\nfir\n": 2, "elm\n\noak\n": 2}.items():
    names.write_text(content)
    builder = tfds.builder("trees", data_dir="data")
    feature = builder.info.features["label"]
    labels = [int(example["label"]) for example in builder.as_dataset(split="train").as_numpy_iterator()]
    try:
        last = feature.int2str(2)
    except IndexError as error:
        last = type(error).__name__
    print(f"file {content!r}: num_classes {feature.num_classes}, names {feature.names}, labels {labels}; of 2: {last}")
    assert (feature.num_classes, len(feature.names), labels) == (3, expected, [0, 1, 2])
    assert (last == "IndexError") == (expected < 3)
try:  # the same check, where nothing swallows it
    tfds.features.ClassLabel(num_classes=3).names = ["elm", "fir"]
except ValueError as error:
    print("set by hand:", error)
else:
    raise AssertionError("names that are too few were taken")
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   file 'elm\nfir\noak\n': num_classes 3, names ['elm', 'fir', 'oak'], labels [0, 1, 2]; of 2: oak
#   file 'elm\nfir\n': num_classes 3, names ['elm', 'fir'], labels [0, 1, 2]; of 2: IndexError
#   file 'elm\n\noak\n': num_classes 3, names ['elm', 'oak'], labels [0, 1, 2]; of 2: IndexError
#   set by hand: ClassLabel number of names do not match the defined num_classes. Got 2 names VS 3 num_classes
