#!/usr/bin/env bash
# OpenCV turns a JPEG, PNG, WebP and TIFF upright, and leaves an AVIF as it is stored.
#
# Guess: cv2.imdecode turns a picture by its orientation, whatever the format.
# An AVIF keeps its orientation in properties of the file, which a reader has to apply; Pillow 13.0.0 writes them for an
# orientation in EXIF, and reads them back as one. OpenCV 5.0.0.93 and 4.13.0.92 do not look at them: photographs lie
# on their side, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'pillow==13.0.0' 'opencv-python-headless==5.0.0.93' 'numpy==2.4.6'
cat > turned.py << 'PYTHON'
import io

import cv2
import numpy as np
from PIL import Image, ImageOps

print(f"OpenCV {cv2.__version__}")
picture = np.zeros((40, 60, 3), np.uint8)
picture[:20, :30] = [250, 20, 20]
orientation = Image.Exif()
orientation[0x0112] = 6  # to be turned by 90 degrees
upright = np.rot90(picture, -1).astype(int)
right = {}
for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, exif=orientation, quality=95)
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    by_opencv = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    right[kind] = [
        found.shape == upright.shape and np.abs(found - upright).mean() < 5 for found in (by_pillow, by_opencv)
    ]
    sizes = [f"{found.shape[1]} x {found.shape[0]}" for found in (by_pillow, by_opencv)]
    print(f"  {kind}: Pillow {sizes[0]}, OpenCV {sizes[1]}")
assert right == {kind: [True, kind != "AVIF"] for kind in right}, right
PYTHON
venv/bin/python turned.py
venv/bin/pip install --quiet 'opencv-python-headless==4.13.0.92'
venv/bin/python turned.py
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   OpenCV 5.0.0
#     JPEG: Pillow 40 x 60, OpenCV 40 x 60
#     PNG: Pillow 40 x 60, OpenCV 40 x 60
#     WEBP: Pillow 40 x 60, OpenCV 40 x 60
#     TIFF: Pillow 40 x 60, OpenCV 40 x 60
#     AVIF: Pillow 40 x 60, OpenCV 60 x 40
#   OpenCV 4.13.0
#     the same five lines
