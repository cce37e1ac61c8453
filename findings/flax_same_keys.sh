#!/usr/bin/env bash
# Linen layers of different paths start from the same weights when their joined names are the same.
#
# Guess: each path has a key of its own.
# flax 0.12.8 hashes the names of a path one after the other without a mark between: block 12 of stage 1 and block 2
# of stage 11 get one key, and so do "Block_1/Dense" and "Block_/1Dense". The setting flax_fix_rng_separator mends
# that; it is off. Name modules with a letter in front of the number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
cat > names.py << 'PYTHON'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp


class Stage(nn.Module):
    block: str

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name=self.block)(x)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Stage("12", name="1")(x) + Stage("2", name="11")(x) + Stage("block_2", name="stage_11")(x)


params = Model().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
first, second, third = params["1"]["12"]["kernel"], params["11"]["2"]["kernel"], params["stage_11"]["block_2"]["kernel"]
same = bool((first == second).all())
print("flax_fix_rng_separator:", flax.config.flax_fix_rng_separator)
print("kernels of 1/12 and 11/2 equal:", same)
assert same == (not flax.config.flax_fix_rng_separator) and (first != third).any()
PYTHON
venv/bin/python names.py | tee default.txt
grep -q 'equal: True' default.txt
FLAX_FIX_RNG_SEPARATOR=true venv/bin/python names.py
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   flax_fix_rng_separator: False
#   kernels of 1/12 and 11/2 equal: True
#   flax_fix_rng_separator: True
#   kernels of 1/12 and 11/2 equal: False
