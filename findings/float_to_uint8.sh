#!/usr/bin/env bash
# The same cast of 300.0 to uint8 gives 255 in JAX, 44 in NumPy and in TensorFlow.
#
# Guess: the three agree, since all call the processor's conversion, or at least NumPy and JAX on a CPU do.
# On x86-64 jax 0.10.2 cuts at 0 and 255 and turns NaN into 0, jitted or not. numpy 2.4.6 and TensorFlow 2.21.0 keep the
# low bits. Bicubic resizing overshoots: moved from one to another, a preparation of images without a clip gets dark
# spots in white areas, or loses them. Round and clip first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
[ "$(uname -m)" = x86_64 ] || { echo "this needs an x86 processor"; exit 1; }
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'tensorflow-cpu==2.21.0' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
venv/bin/python - << 'PYTHON' 2> messages.txt || { cat messages.txt; exit 1; }
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

values = np.array([254.6, 255.9, 256, 300, -1], np.float32)
ways = {
    "NumPy": values.astype(np.uint8),
    "TensorFlow": tf.cast(values, tf.uint8).numpy(),
    "JAX": jnp.asarray(values).astype(jnp.uint8),
    "JAX, jitted": jax.jit(lambda x: x.astype(jnp.uint8))(values),
}
results = {name: np.asarray(result).tolist() for name, result in ways.items()}
print("of:", *values)
for name, result in results.items():
    print(f"{name}:", *result)
assert results["NumPy"] == results["TensorFlow"] == [254, 255, 0, 44, 255]
assert results["JAX"] == results["JAX, jitted"] == [254, 255, 255, 255, 0]
# A resize of a white square on black goes past white.
square = np.zeros((8, 8, 1), np.float32)
square[2:6, 2:6] = 255
large = tf.image.resize(square, (32, 32), method="bicubic").numpy()
wrapped = int((np.abs(large.astype(np.uint8) - np.asarray(jnp.asarray(large).astype(jnp.uint8), int)) > 100).sum())
reach = f"{large.min():.0f} to {large.max():.0f}"
print(f"bicubic from 8 to 32 pixels: {reach}; NumPy and JAX differ in {wrapped} of {large.size}")
assert wrapped > 50
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   of: 254.6 255.9 256.0 300.0 -1.0
#   NumPy: 254 255 0 44 255
#   TensorFlow: 254 255 0 44 255
#   JAX: 254 255 255 255 0
#   JAX, jitted: 254 255 255 255 0
#   bicubic from 8 to 32 pixels: -19 to 294; NumPy and JAX differ in 424 of 1024
