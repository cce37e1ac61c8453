"""`scripts/fidelity.py` on a folder with a damaged photograph."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("damaged", [b"no picture", None])
def test_a_damaged_photograph_is_named_in_one_line(tmp_path, damaged):
    whole, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    other.write_bytes(damaged or whole.read_bytes()[:1000])
    done = subprocess.run([sys.executable, "scripts/fidelity.py", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {other} cannot be read as a picture (")
    assert done.stderr.count("\n") == 1, done.stderr
