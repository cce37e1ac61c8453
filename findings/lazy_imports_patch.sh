#!/usr/bin/env bash
# pytest's monkeypatch of a module imported by etils' epy.lazy_imports deletes the function for the rest of the process.
#
# Guess: undo puts back what was there.
# etils 1.15.0 passes setattr on to the real module, and keeps nothing in the stand-in's own dictionary. pytest 9.2.0
# looks there for the old value, finds none, and so deletes the attribute afterwards. Tests that come later fail with
# AttributeError, in any order but one. Patch the module that sys.modules has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'etils[epy]==1.15.0' 'pytest==9.2.0'
venv/bin/python - << 'PYTHON'
import sys

import pytest
from etils import epy

with epy.lazy_imports():
    import colorsys

patch = pytest.MonkeyPatch()
patch.setattr(colorsys, "rgb_to_hsv", lambda *colour: "patched")
print("by the stand-in:", colorsys.rgb_to_hsv(1, 0, 0))
print("by the module:", sys.modules["colorsys"].rgb_to_hsv(1, 0, 0))
patch.undo()
there = hasattr(sys.modules["colorsys"], "rgb_to_hsv")
print("after undo the module has its function:", there)
assert not there
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   by the stand-in: patched
#   by the module: patched
#   after undo the module has its function: False
