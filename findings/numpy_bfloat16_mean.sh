#!/usr/bin/env bash
# NumPy's mean of 1,000 ones in bfloat16 is 0.256.
#
# Guess: 1, as for NumPy's own float16, whose mean it takes in float32.
# With ml_dtypes 0.6.0 (what JAX hands to NumPy) the sum is kept in bfloat16, one element after the other, and stops
# at 256. The mean of 10,000 answers, 76% of them right, comes out as 0.026, and the standard deviation of normal
# numbers as 0.5. Cast to float32 first, or take the mean with jnp, which does that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'ml-dtypes==0.6.0' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

ones = jax.device_get(jnp.ones(1000, jnp.bfloat16))
right = jax.device_get(jax.random.permutation(jax.random.key(0), jnp.arange(10_000) < 7_600).astype(jnp.bfloat16))
normal = jax.device_get(jax.random.normal(jax.random.key(0), (10_000,)).astype(jnp.bfloat16))
print(type(ones), ones.dtype)
print("mean of 1,000 ones: NumPy", ones.mean(), "jnp", jnp.mean(ones), "float16", ones.astype(np.float16).mean())
print("share of 7,600 right in 10,000: NumPy", right.mean(), "jnp", jnp.mean(right))
print("standard deviation of 10,000 normal numbers: NumPy", normal.std(), "jnp", jnp.std(normal))
assert 0.25 < float(ones.mean()) < 0.26 and float(jnp.mean(ones)) == 1
assert float(right.mean()) < 0.03 and float(normal.std()) < 0.6
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   <class 'numpy.ndarray'> bfloat16
#   mean of 1,000 ones: NumPy 0.255859 jnp 1 float16 1.0
#   share of 7,600 right in 10,000: NumPy 0.0256348 jnp 0.761719
#   standard deviation of 10,000 normal numbers: NumPy 0.507812 jnp 1.00781
