#!/usr/bin/env bash
# cv2.transform of uint8 multiplies with ten bits after the point, so one value in twenty is a level off.
#
# Guess: the exact product, rounded, as for float32. A colour matrix (sepia, hue, a mean of the channels) is applied so.
# OpenCV 5.0.0.93: coefficients are first rounded to 1/1024. A mean of three channels, 1/3 each, is never too bright and
# too dark by a level for 5% of the pixels; sepia is a level off for 8%. Coefficients such as 1/2 are exact.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'opencv-python-headless==5.0.0.93' 'numpy==2.4.6'
venv/bin/python - << 'PYTHON'
import cv2
import numpy as np

image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
matrices = {
    "mean": np.full((3, 3), 1 / 3),
    "sepia": np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]),
    "half": np.eye(3) / 2,
}
shares = {}
for name, matrix in matrices.items():
    exact = image @ matrix.T
    inside = exact <= 255
    for kind in ("uint8", "float32"):
        found = np.rint(cv2.transform(image.astype(kind), matrix))[inside].astype(float)
        error = found - exact[inside]
        shares[name, kind] = (np.abs(error) > 0.5 + 1e-4).mean()
        print(f"{name}, {kind}: {shares[name, kind]:.1%} of values off by more than rounding, at most {np.abs(error).max():.3f}"
              f", {error.mean():+.3f} on average")
assert shares["mean", "uint8"] > 0.03 and shares["sepia", "uint8"] > 0.05
assert max(shares[name, "float32"] for name in matrices) == 0 == shares["half", "uint8"]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   mean, uint8: 5.2% of values off by more than rounding, at most 0.667, -0.052 on average
#   mean, float32: 0.0% of values off by more than rounding, at most 0.333, -0.000 on average
#   sepia, uint8: 7.6% of values off by more than rounding, at most 0.694, -0.027 on average
#   sepia, float32: 0.0% of values off by more than rounding, at most 0.500, -0.000 on average
#   half, uint8: 0.0% of values off by more than rounding, at most 0.500, -0.000 on average
#   half, float32: 0.0% of values off by more than rounding, at most 0.500, -0.000 on average
