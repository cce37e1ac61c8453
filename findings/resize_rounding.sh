#!/usr/bin/env bash
# Of two ways to resize bytes in one library, one rounds and the other makes the image darker: OpenCV's INTER_LINEAR and
# INTER_LINEAR_EXACT, Pillow's resize and transform.
#
# Guess: a resize of uint8 is that of float32, rounded, so its mean error is below 0.01 levels, in both libraries.
# OpenCV 5.0.0 rounds with INTER_CUBIC and with INTER_LINEAR_EXACT; INTER_LINEAR, its default, is 0.1 levels too dark.
# Pillow 13.0.0 rounds in resize; transform, with the same filter, drops the fraction, half a level. A crop and resize by
# transform(EXTENT) therefore is not resize(box=...), and a model that is trained with one and tested with the other sees
# brighter or darker images.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'opencv-python-headless==5.0.0.93' 'pillow==13.0.0' 'numpy==2.4.6'
venv/bin/python - << 'PYTHON'
import cv2
import numpy as np
from PIL import Image

smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (375, 500), np.uint8), (0, 0), 3)
found = {}
for name, of_bytes, of_floats in (
    ("INTER_LINEAR", cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    ("INTER_LINEAR_EXACT", cv2.INTER_LINEAR_EXACT, cv2.INTER_LINEAR),  # it has no form for floats
    ("INTER_CUBIC", cv2.INTER_CUBIC, cv2.INTER_CUBIC),
):
    exact = cv2.resize(smooth.astype(np.float32), (224, 224), interpolation=of_floats)
    found["OpenCV, " + name] = cv2.resize(smooth, (224, 224), interpolation=of_bytes) - exact
bytes_, floats = Image.fromarray(smooth), Image.fromarray(smooth.astype(np.float32))
whole = (0, 0, 500, 375)
for name, way in (
    ("resize", lambda image: image.resize((224, 224), Image.Resampling.BILINEAR, box=whole)),
    ("transform", lambda image: image.transform((224, 224), Image.Transform.EXTENT, whole, Image.Resampling.BILINEAR)),
):
    found["Pillow, " + name] = np.asarray(way(bytes_), np.float32) - np.asarray(way(floats))
for name, error in found.items():
    print(f"{name}: {error.mean():+.2f} levels on average, {np.abs(error).max():.2f} at most")
means = {name: float(error.mean()) for name, error in found.items()}
for name in ("OpenCV, INTER_LINEAR_EXACT", "OpenCV, INTER_CUBIC", "Pillow, resize"):
    assert abs(means[name]) < 0.02, name
assert -0.2 < means["OpenCV, INTER_LINEAR"] < -0.05
assert -0.55 < means["Pillow, transform"] < -0.4
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   OpenCV, INTER_LINEAR: -0.12 levels on average, 0.75 at most
#   OpenCV, INTER_LINEAR_EXACT: +0.00 levels on average, 0.51 at most
#   OpenCV, INTER_CUBIC: +0.00 levels on average, 0.50 at most
#   Pillow, resize: -0.00 levels on average, 0.99 at most
#   Pillow, transform: -0.48 levels on average, 1.00 at most
