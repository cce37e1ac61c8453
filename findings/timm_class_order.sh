#!/usr/bin/env bash
# timm numbers the class folders 1, 2, 10, apple, Zebra in this order; other libraries as 1, 10, 2, Zebra, apple.
#
# Guess: a folder of class folders gives a model the same class numbers in timm as elsewhere.
# timm 1.0.31 sorts names with their numbers as numbers, and without regard to case. Hugging Face's datasets 5.2.0 sorts
# by character, as do torchvision 0.28.0, Keras 3.15.1 and TFDS 4.9.10 (seen by hand on the same folder). A model that
# was trained with one and is validated with the other is right for the classes that happen to have one number. Give
# timm's --class-map the names in the model's order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'datasets==5.2.0' 'pillow==13.0.0'
venv/bin/pip install --quiet --no-deps 'timm==1.0.31' 'setuptools'
mkdir -p photos/train/{1,2,10,Zebra,apple}
venv/bin/python - << 'PYTHON'
import importlib.util
import pathlib
import sys
import types

from PIL import Image

for folder in pathlib.Path("photos/train").iterdir():
    Image.new("RGB", (8, 8)).save(folder / "0.png")
# Without the packages' own files, which import PyTorch: the reader of folders does not need it.
place = pathlib.Path(importlib.util.find_spec("timm").submodule_search_locations[0])
for name in ("timm", "timm.data", "timm.data.readers", "timm.utils"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(place.joinpath(*name.split(".")[1:]))]
from timm.data.readers.reader_image_folder import find_images_and_targets

import datasets

by_timm = list(find_images_and_targets("photos/train")[1])
elsewhere = datasets.load_dataset("imagefolder", data_dir="photos", cache_dir="cache")["train"].features["label"].names
print("timm:", *by_timm)
print("datasets:", *elsewhere)
pathlib.Path("classes.txt").write_text("\n".join(elsewhere))
from timm.data.readers.class_map import load_class_map

mapped = find_images_and_targets("photos/train", class_to_idx=load_class_map("classes.txt"))[1]
print("timm with the names in that order:", *mapped)
assert by_timm == ["1", "2", "10", "apple", "Zebra"]
assert elsewhere == ["1", "10", "2", "Zebra", "apple"] == list(mapped)
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   timm: 1 2 10 apple Zebra
#   datasets: 1 10 2 Zebra apple
#   timm with the names in that order: 1 10 2 Zebra apple
