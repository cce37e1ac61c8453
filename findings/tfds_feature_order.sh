#!/usr/bin/env bash
# Read from its files, a TFDS dataset has its features in another order in each process.
#
# Guess: builder.info.features has the order in which the dataset was written, or that of features.json.
# tensorflow-datasets 4.9.10 reads features.json through a protobuf map, whose order is random by process. Whoever takes
# the first ClassLabel or the first Image of a dataset with several gets another one at each start, without a word.
# A dataset whose code is registered, asked for without a version, has the order of its code.
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

features = {name: tfds.features.ClassLabel(num_classes=2) for name in ("genus", "species", "sex", "age")}
tfds.dataset_builders.store_as_tfds_dataset(
    name="birds", version="1.0.0", split_datasets={"train": [(0, dict.fromkeys(features, 1))]}, data_dir="data",
    features=tfds.features.FeaturesDict(features),
)  # fmt: skip
PYTHON
for _ in 1 2 3 4 5 6 7 8 9 10; do
  venv/bin/python -c '
import tensorflow_datasets as tfds

print(*tfds.builder("birds", data_dir="data").info.features)' 2> log.txt || { cat log.txt; exit 1; }
done > orders.txt
python3 - << 'PYTHON'
import json
import pathlib

orders = pathlib.Path("orders.txt").read_text().splitlines()
(path,) = pathlib.Path("data").rglob("features.json")
print("in features.json:", *json.loads(path.read_text())["featuresDict"]["features"])
print("ten processes agree on the order:", len(set(orders)) == 1)
print("ten processes agree on the first:", len({order.split()[0] for order in orders}) == 1)
assert len(orders) == 10
assert {frozenset(order.split()) for order in orders} == {frozenset(["genus", "species", "sex", "age"])}
assert len({order.split()[0] for order in orders}) > 1
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   in features.json: age genus sex species
#   ten processes agree on the order: False
#   ten processes agree on the first: False
