#!/usr/bin/env bash
# OpenCV 5 rotates and shears an image to other pixels than OpenCV 4. It resizes to the same.
#
# Guess: the same pixels to a level. RandAugment's rotation and shear are made of warpAffine.
# OpenCV 4.13.0.92 rounds the coordinates of a source pixel to about 1/32 of a pixel, 5.0.0.93 takes them as they are:
# one value in seven of a rotated photograph changes, in an image of hard edges by up to four levels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > draw.py << 'PYTHON'
import sys

import cv2
import numpy as np

image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
image = cv2.blur(image, (5, 5))
size = (image.shape[1], image.shape[0])
turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), 17, 1)
shear = np.array([[1, 0.2, 0], [0, 1, 0]])
drawn = {
    f"{name}, {way}": cv2.warpAffine(image, matrix, size, flags=getattr(cv2, f"INTER_{way}"))
    for name, matrix in (("rotation", turn), ("shear", shear))
    for way in ("NEAREST", "LINEAR", "CUBIC")
}
for way in ("LINEAR", "AREA"):
    drawn[f"resize, {way}"] = cv2.resize(image, (224, 224), interpolation=getattr(cv2, f"INTER_{way}"))
np.savez(sys.argv[1], **drawn)
PYTHON
for version in 4.13.0.92 5.0.0.93; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet "opencv-python-headless==$version" 'numpy==2.4.6'
  "venv-$version/bin/python" draw.py "$version.npz"
done
venv-5.0.0.93/bin/python - << 'PYTHON'
import numpy as np

four, five = np.load("4.13.0.92.npz"), np.load("5.0.0.93.npz")
most = {}
for name in four:
    difference = np.abs(four[name].astype(int) - five[name])
    most[name] = int(difference.max())
    print(f"{name}: {(difference > 0).mean():.1%} of values differ, by at most {most[name]} levels")
assert most["rotation, LINEAR"] > 2 and most["shear, LINEAR"] > 1
assert most["resize, LINEAR"] == most["resize, AREA"] == 0
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   rotation, NEAREST: 0.1% of values differ, by at most 39 levels
#   rotation, LINEAR: 14.0% of values differ, by at most 4 levels
#   rotation, CUBIC: 14.7% of values differ, by at most 4 levels
#   shear, NEAREST: 0.0% of values differ, by at most 0 levels
#   shear, LINEAR: 8.1% of values differ, by at most 3 levels
#   shear, CUBIC: 9.7% of values differ, by at most 3 levels
#   resize, LINEAR: 0.0% of values differ, by at most 0 levels
#   resize, AREA: 0.0% of values differ, by at most 0 levels
