#!/usr/bin/env bash
# Random numbers drawn in bfloat16 take 128 values: p = 0.001 happens 7.7 times in 1,000, no draw passes 2.9 sigma.
#
# Guess: jax.random draws in float32 and rounds: thousands of values of both signs, a mean of 0, rare events as rare.
# jax 0.10.2 draws seven random bits for a bfloat16 (ten for a float16) and transforms those. So a flax model with
# param_dtype=bfloat16 starts from 128 values an array, and a probability that comes as a bfloat16 is one of 1/128
# steps. jax 0.12.0.1 does the same. Draw in float32, then cast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

key = jax.random.key(0)


def describe(name, array):
    array = np.asarray(array.astype(jnp.float32))
    values = len(np.unique(array))
    print(f"{name}: {values} values, from {array.min():.4f} to {array.max():.4f}, mean {array.mean():.4f}")
    return values


drawn = jax.random.normal(key, (1_000_000,), jnp.bfloat16)
cast = jax.random.normal(key, (1_000_000,)).astype(jnp.bfloat16)
assert describe("normal, drawn in bfloat16", drawn) == 128
assert describe("normal, drawn in float32 and cast", cast) > 2_000

kernels = [
    nn.Dense(1024, param_dtype=kind).init(key, jnp.zeros((1, 1024)))["params"]["kernel"]
    for kind in (jnp.bfloat16, jnp.float32)
]
assert describe("a flax kernel with param_dtype=bfloat16", kernels[0]) == 128
assert describe("a flax kernel in float32, cast", kernels[1].astype(jnp.bfloat16)) > 2_000

for p in (0.001, 0.01, 0.999):
    narrow = float(jax.random.bernoulli(key, jnp.bfloat16(p), (1_000_000,)).mean())
    wide = float(jax.random.bernoulli(key, p, (1_000_000,)).mean())
    print(f"bernoulli({p}): true in {narrow:.5f} with p in bfloat16, in {wide:.5f} in float32")
    if p == 0.001:
        assert narrow > 7 * p and abs(wide - p) < 1e-4
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   normal, drawn in bfloat16: 128 values, from -2.8906 to 2.5156, mean -0.0121
#   normal, drawn in float32 and cast: 3598 values, from -4.6562 to 4.5312, mean 0.0002
#   a flax kernel with param_dtype=bfloat16: 128 values, from -0.0708 to 0.0664, mean -0.0005
#   a flax kernel in float32, cast: 3345 values, from -0.0713 to 0.0713, mean -0.0000
#   bernoulli(0.001): true in 0.00771 with p in bfloat16, in 0.00099 in float32
#   bernoulli(0.01): true in 0.01537 with p in bfloat16, in 0.00988 in float32
#   bernoulli(0.999): true in 1.00000 with p in bfloat16, in 0.99906 in float32
