"""The command of `make bench`, run as a process. It needs torch and timm (`make test-runtimes`)."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm and torch")
def test_a_line_for_each_model_mode_and_dtype():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "scripts.against_timm", "--models", "s16", "--modes", "inference",
               "--batch_size", "2", "--turns", "2"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    about, _, header, *lines = done.stdout.splitlines()
    assert "torch" in about
    assert "timm" in header
    for line, expected in zip(lines, ("float32", "bfloat16"), strict=True):
        model, mode, dtype, batch, here, _, there, _, ratio, _, products, mfu = line.split()
        assert (model, mode, dtype, batch) == ("S/16", "inference", expected, "2")
        assert float(here) / float(there) == pytest.approx(float(ratio), rel=0.3)
        assert float(here) < 1.3 * float(products)
        assert 0 < float(mfu.rstrip("%")) <= 130
