#!/usr/bin/env bash
# The pixels of one version of OpenCV depend on the processor: bicubic resizing on Intel's library, rotation on AVX2.
#
# Guess: integers in, the same integers out, on every machine with the same wheel.
# In opencv-python-headless 5.0.0.93 a bicubic resize of uint8 goes through Intel's IPP on x86. Without it, as on ARM,
# which has none, 4% of the values differ by a level. A rotation differs in a few values when AVX2 and FMA are not used.
# Linear and area resizing of uint8 agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
grep -q avx2 /proc/cpuinfo || { echo "this needs an x86 processor with AVX2"; exit 1; }
python3 -m venv venv
venv/bin/pip install --quiet 'opencv-python-headless==5.0.0.93' 'numpy==2.4.6'
cat > draw.py << 'PYTHON'
import sys

import cv2
import numpy as np

draws = np.random.default_rng(0)
image = draws.integers(0, 256, (34, 50, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
image = np.clip(image + draws.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
size = (image.shape[1], image.shape[0])
drawn = {
    f"resize, {way}": cv2.resize(image, (224, 224), interpolation=getattr(cv2, f"INTER_{way}"))
    for way in ("LINEAR", "AREA", "CUBIC")
}
for angle in range(5, 30):
    turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), angle, 1)
    drawn[f"rotation, {angle}"] = cv2.warpAffine(image, turn, size, flags=cv2.INTER_LINEAR)
np.savez(sys.argv[1], **drawn)
PYTHON
venv/bin/python draw.py all.npz
OPENCV_IPP=disabled venv/bin/python draw.py without_ipp.npz 2> /dev/null
OPENCV_CPU_DISABLE=AVX512_SKX,AVX512_CLX,AVX512_ICL,AVX2,FMA3,AVX venv/bin/python draw.py without_avx.npz 2> /dev/null
venv/bin/python - << 'PYTHON'
import numpy as np

here = np.load("all.npz")
share = {}
for left_out in ("ipp", "avx"):
    other = np.load(f"without_{left_out}.npz")
    for kind in ("resize, LINEAR", "resize, AREA", "resize, CUBIC", "rotation"):
        pairs = [(here[name].astype(int), other[name]) for name in here if name.startswith(kind)]
        different = [np.abs(one - two) for one, two in pairs]
        share[left_out, kind] = float(np.mean([(one > 0).mean() for one in different]))
        most = max(one.max() for one in different)
        print(f"without {left_out}, {kind}: {share[left_out, kind]:.4%} differ, by at most {most}")
assert share["ipp", "resize, CUBIC"] > 0.01 and share["avx", "rotation"] > 0
assert share["ipp", "resize, LINEAR"] == share["ipp", "resize, AREA"] == 0
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   without ipp, resize, LINEAR: 0.0000% differ, by at most 0
#   without ipp, resize, AREA: 0.0000% differ, by at most 0
#   without ipp, resize, CUBIC: 4.0876% differ, by at most 1
#   without ipp, rotation: 0.0000% differ, by at most 0
#   without avx, resize, LINEAR: 0.0000% differ, by at most 0
#   without avx, resize, AREA: 0.0000% differ, by at most 0
#   without avx, resize, CUBIC: 0.0000% differ, by at most 0
#   without avx, rotation: 0.0064% differ, by at most 1
