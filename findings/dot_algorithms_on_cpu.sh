#!/usr/bin/env bash
# A CPU accepts the dot algorithm of a TPU and does not follow it.
#
# Guess: a product by BF16_BF16_F32, a TPU's default, rounds its factors to bfloat16, or is refused as other algorithms.
# On a CPU jax 0.10.2 refuses TF32_TF32_F32, BF16_BF16_BF16 and F16_F16_F32 by name, but takes BF16_BF16_F32 and its
# forms of three and six passes, and computes all three in float32, to the bit. So a test on a CPU that asks for a TPU's
# precision tests nothing. The same with jax 0.12.0.1, and with jax.default_matmul_precision. Round the factors yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

Preset = jax.lax.DotAlgorithmPreset
x, y = (np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32) for seed in (0, 1))
plain = jax.lax.dot(x, y)
rounded = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) @ jnp.asarray(y, jnp.bfloat16).astype(jnp.float32)
print(f"float32: rounding the factors to bfloat16 changes it by up to {jnp.abs(rounded - plain).max():.2f}")
for name in ("BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6"):
    product = jax.lax.dot(x, y, precision=Preset[name])
    print(f"{name}: {'the bits of float32' if (product == plain).all() else 'other bits'}")
    assert (product == plain).all()
for name in ("TF32_TF32_F32", "BF16_BF16_BF16", "F16_F16_F32"):
    try:
        jax.lax.dot(x, y, precision=Preset[name])
    except ValueError as error:
        print(f"{name}: {error}")
    else:
        raise AssertionError(name)
assert jnp.abs(rounded - plain).max() > 0.1
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   float32: rounding the factors to bfloat16 changes it by up to 0.17
#   BF16_BF16_F32: the bits of float32
#   BF16_BF16_F32_X3: the bits of float32
#   BF16_BF16_F32_X6: the bits of float32
#   TF32_TF32_F32: The precision 'TF32_TF32_F32' is not supported by dot_general on CPU
#   BF16_BF16_BF16: The precision 'BF16_BF16_BF16' is not supported by dot_general on CPU
#   F16_F16_F32: The precision 'F16_F16_F32' is not supported by dot_general on CPU
