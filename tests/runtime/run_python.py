"""Runs Python code in a process of its own, for settings that a process has once."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> list[str]:
    """Runs the code on the CPU, without other variables of JAX and TensorFlow. Returns the lines it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()
