#!/usr/bin/env bash
# jnp.histogram and jax.ops.segment_sum stop counting: at 256 in bfloat16, at 16,777,216 in float32.
#
# Guess: a histogram has as many counts as there are values, whatever their type, and a sum by segments adds as jnp.sum
# does, which holds sums of bfloat16 in float32.
# In jax 0.10.2 and 0.12.0.1 both scatter ones into an array of the values' own type, one after the other. So a bin or a
# class is full when one more no longer changes it: histograms of weights or gradients in bfloat16 have no bin above 256,
# and of 20 million float32 values no bin above 2^24. Nothing is said. jnp.bincount of the numbers
# of the bins, by jnp.digitize, and segment_sum of int32 count right.
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

for name, count, most in (("bfloat16", 1000, 256), ("float32", 20_000_000, 2**24)):
    values, ones = jnp.full((count,), 0.5, name), jnp.ones(count, name)
    full = int(jnp.histogram(values, bins=2, range=(0, 1))[0][1])
    right = int(jnp.bincount(jnp.digitize(values, jnp.array([0, 0.5, 1])), length=4)[2])
    print(f"{count:,} times 0.5 in {name}: {full:,} counted by histogram, {right:,} by bincount")
    assert (full, right) == (most, count)
    where = jnp.zeros(count, jnp.int32)
    sums = [int(jax.ops.segment_sum(some, where, num_segments=1)[0]) for some in (ones, ones.astype(jnp.int32))]
    print(f"as many ones: segment_sum {sums[0]:,}, of int32 {sums[1]:,}, jnp.sum {int(ones.sum()):,}")
    assert (*sums, int(ones.sum())) == (most, count, count)
assert int(np.histogram(np.full(20_000_000, 0.5, np.float32), bins=2, range=(0, 1))[0][1]) == 20_000_000
PYTHON
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   1,000 times 0.5 in bfloat16: 256 counted by histogram, 1,000 by bincount
#   as many ones: segment_sum 256, of int32 1,000, jnp.sum 1,000
#   20,000,000 times 0.5 in float32: 16,777,216 counted by histogram, 20,000,000 by bincount
#   as many ones: segment_sum 16,777,216, of int32 20,000,000, jnp.sum 20,000,000
