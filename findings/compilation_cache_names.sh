#!/usr/bin/env bash
# JAX's compilation cache misses when a jitted function gets another name, or the host one more device that is not used.
#
# Guess: the key is the program without names and places in the source, and the devices that it runs on.
# In jax 0.10.2 the names of the jitted function and of those jitted inside are part of the program that is hashed, and
# the number of all devices is part of the key. Lines, names of arguments and named scopes are not. So a clean-up of
# names, or a wrapper with a name of its own, costs every user a compilation, which takes minutes on a TPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir cache
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR="$folder/cache"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
cat > first.py << 'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def step(x):
    return jnp.tanh(x @ x)


jax.jit(step)(jax.device_put(np.ones((64, 64), np.float32)))
PYTHON
sed 's/^def step/\n\n\ndef step/' first.py > moved.py
sed 's/(x):/(y):/; s/x @ x/y @ y/' first.py > argument_renamed.py
sed 's/step/train_step/' first.py > function_renamed.py
sed 's/return jnp.tanh(x @ x)/return jax.jit(lambda x: jnp.tanh(x @ x))(x)/' first.py > inner_jit.py
cp first.py another_device.py
compiled=""
for change in first moved argument_renamed function_renamed inner_jit another_device; do
  before=$(find cache -name '*-cache' | wc -l)
  [ "$change" != another_device ] || export XLA_FLAGS=--xla_force_host_platform_device_count=2
  venv/bin/python "$change.py"
  new=$(($(find cache -name '*-cache' | wc -l) - before))
  echo "$change: compiled $new"
  compiled+=$new
done
[ "$compiled" = 100111 ]
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   first: compiled 1
#   moved: compiled 0
#   argument_renamed: compiled 0
#   function_renamed: compiled 1
#   inner_jit: compiled 1
#   another_device: compiled 1
