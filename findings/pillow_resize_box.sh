#!/usr/bin/env bash
# Pillow's image.resize(size, box=box) is not crop and resize: at the border it reads pixels outside of the box.
#
# Guess: with whole numbers in the box the two are the same, one copy cheaper.
# Pillow 13.0.0 lets the filter reach over the edge of the box into the image, where crop and resize weighs what is
# inside only. The outer rows and columns of a random resized crop differ by dozens of levels; enlarged crops too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'pillow==13.0.0' 'numpy==2.4.6'
venv/bin/python - << 'PYTHON'
import numpy as np
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
image, box = Image.fromarray(pixels), (40, 30, 240, 180)
blackened = np.zeros_like(pixels)
blackened[30:180, 40:240] = pixels[30:180, 40:240]
for name, way in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
    for size in ((64, 64), (448, 448)):
        by_box = np.asarray(image.resize(size, way, box=box)).astype(int)
        by_crop = np.asarray(image.crop(box).resize(size, way)).astype(int)
        surrounded = np.asarray(Image.fromarray(blackened).resize(size, way, box=box)).astype(int)
        edge = np.abs(by_box - by_crop)
        inside = edge[8:-8, 8:-8].max()
        outside = np.abs(by_box - surrounded).max()
        print(f"{name} to {size}: at most {edge.max()} levels, {inside} away from the border; black around: {outside}")
        assert edge.max() > 15 and inside <= 1 and outside > 15
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   bilinear to (64, 64): at most 29 levels, 0 away from the border; black around: 43
#   bilinear to (448, 448): at most 80 levels, 0 away from the border; black around: 90
#   bicubic to (64, 64): at most 19 levels, 0 away from the border; black around: 28
#   bicubic to (448, 448): at most 75 levels, 0 away from the border; black around: 83
