#!/usr/bin/env bash
# jax.random.key(2**32 + 1) is jax.random.key(1): of a seed of 64 bits the upper half does nothing.
#
# Guess: seeds that differ give different keys. "a 64- or 32-bit integer used as the value of the key" says the docstring.
# In jax 0.10.2 and 0.12.0.1 the upper 32 bits of a Python int or a numpy.int64 are dropped without a word, unless
# jax_enable_x64 is set. So runs whose seeds are hashes of names, or (seed << 32) + number, share their random numbers.
# Fold such numbers in one after the other: jax.random.fold_in(jax.random.key(low), high).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
cat > seeds.py << 'PYTHON'
import jax
import numpy as np

def data(seed):
    return jax.random.key_data(jax.random.key(seed)).tolist()

number = [int(number) for number in np.int64([7 << 32, 9 << 32]) + 1]
same = data(number[0]) == data(number[1]) == data(np.int64(number[0])) == data(1)
print(f"x64 {jax.config.jax_enable_x64}: {number[0]} gives {data(number[0])}, {number[1]} {data(number[1])}, 1 {data(1)}")
assert same == (not jax.config.jax_enable_x64)
PYTHON
venv/bin/python seeds.py
JAX_ENABLE_X64=1 venv/bin/python seeds.py
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   x64 False: 30064771073 gives [0, 1], 38654705665 [0, 1], 1 [0, 1]
#   x64 True: 30064771073 gives [7, 1], 38654705665 [9, 1], 1 [0, 1]
