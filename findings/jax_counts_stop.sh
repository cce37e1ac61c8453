#!/usr/bin/env bash
# jnp.histogram and jax.ops.segment_sum stop counting: at 256 in bfloat16, at 16,777,216 in float32.
#
# Guess: a histogram has as many counts as there are values, whatever their type, and a sum by segments adds as jnp.sum
# does, which holds sums of bfloat16 in float32.
# In jax 0.10.2 and 0.12.0.1 both scatter ones into an array of the values' own type, one after the other. So a bin or a
# class is full when one more no longer changes it: histograms of weights or gradients in bfloat16 have no bin above 256,
# and of 20 million float32 values no bin above 2^24. Nothing is said. Give jnp.histogram int32 weights of one, and
# segment_sum values in int32 or, in parts, float32.
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

for name, count in (("bfloat16", 1000), ("float32", 20_000_000)):
    values = jnp.full((count,), 0.5, name)
    full = int(jnp.histogram(values, bins=2, range=(0, 1))[0][1])
    whole = int(jnp.histogram(values, bins=2, range=(0, 1), weights=jnp.ones(count, jnp.int32))[0][1])
    print(f"{count:,} times 0.5 in {name}: {full:,} counted, {whole:,} with int32 weights")
    assert full == {"bfloat16": 256, "float32": 2**24}[name]
    assert whole == count
ones = jnp.ones(1000, jnp.bfloat16)
by_segment = int(jax.ops.segment_sum(ones, jnp.zeros(1000, jnp.int32), num_segments=1)[0])
print(f"1,000 ones in bfloat16: jnp.sum {int(ones.sum()):,}, segment_sum {by_segment}")
assert (int(ones.sum()), by_segment) == (1000, 256)
assert int(np.histogram(np.full(20_000_000, 0.5, np.float32), bins=2, range=(0, 1))[0][1]) == 20_000_000
PYTHON
