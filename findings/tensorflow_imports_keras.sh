#!/usr/bin/env bash
# `import tensorflow` imports Keras, and with it scikit-learn and matplotlib where they are installed.
#
# Guess: it does not, since `tf.keras` is loaded lazily ("Lazy-load Keras" in TensorFlow's own code).
# TensorFlow 2.21.0 imports keras.src.optimizers at the end all the same. With TF_USE_LEGACY_KERAS=1 and no tf_keras it
# goes on without, in two thirds of the time; if the variable is gone afterwards, `tf.keras` is Keras 3 as ever.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'tensorflow-cpu==2.21.0' 'keras==3.15.1' 'numpy==2.4.6' 'scikit-learn==1.9.1' 'matplotlib==3.11.2'
cat > imported.py << 'PYTHON'
import os
import sys
import time

start = time.process_time()
import tensorflow as tf

seconds = time.process_time() - start
found = [name for name in ("keras", "sklearn", "matplotlib") if name in sys.modules]
legacy = os.environ.pop("TF_USE_LEGACY_KERAS", None)
print(f"TF_USE_LEGACY_KERAS={legacy}: imported {found}; tf.keras is {tf.keras.__version__}")
print(f"{seconds:.1f} s of processor time", file=sys.stderr)
assert bool(found) == (legacy is None)
assert tf.keras.__version__.startswith("3.")
PYTHON
export TF_CPP_MIN_LOG_LEVEL=3
for _ in 1 2; do  # in the first round Python compiles the modules
  venv/bin/python imported.py 2> plain
  TF_USE_LEGACY_KERAS=1 venv/bin/python imported.py 2> without
done
tail -n 1 plain without
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux (the first two lines come twice):
#   TF_USE_LEGACY_KERAS=None: imported ['keras', 'sklearn', 'matplotlib']; tf.keras is 3.15.1
#   TF_USE_LEGACY_KERAS=1: imported []; tf.keras is 3.15.1
#   ==> plain <==
#   3.5 s of processor time
#   ==> without <==
#   2.1 s of processor time
