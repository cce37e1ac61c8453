#!/usr/bin/env bash
# optax's Muon leaves the kernels of flax's attention and convolutions to Adam, and does not decay them.
#
# Guess: Muon takes every kernel (flattened to a matrix), Adam the rest; weight_decay reaches all of them.
# optax 0.2.8 gives Muon the leaves with two axes and no other. flax's attention has kernels [width, heads, size], its
# convolutions [height, width, in, out]. `weight_decay` is for Muon's leaves; Adam's need `adam_weight_decay`. So of a
# vision transformer only the MLPs and the head are trained by Muon and decayed. Give muon_weight_dimension_numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' 'optax==0.2.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Model(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.Conv(64, (8, 8), (8, 8), name="patches")(image).reshape(1, -1, 64)
        x = nn.MultiHeadDotProductAttention(4, name="attention")(x)
        return nn.Dense(10, name="head")(x)


params = Model().init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
optimizer = optax.contrib.muon(0.1, weight_decay=0.5)
state = optimizer.init(params)
no_gradient = jax.tree.map(jnp.zeros_like, params)
decay, _ = optimizer.update(no_gradient, state, params)
shrunk = {}
for path, kernel in jax.tree.leaves_with_path(params):
    if path[-1].key == "kernel":
        update = dict(jax.tree.leaves_with_path(decay))[path]
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        shrunk[name] = bool((update != 0).any())
        print(f"{name} {kernel.shape}: shrinks with weight_decay: {shrunk[name]}")
assert [name for name in shrunk if shrunk[name]] == ["head"]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   attention/key (64, 4, 16): shrinks with weight_decay: False
#   attention/out (4, 16, 64): shrinks with weight_decay: False
#   attention/query (64, 4, 16): shrinks with weight_decay: False
#   attention/value (64, 4, 16): shrinks with weight_decay: False
#   head (64, 10): shrinks with weight_decay: True
#   patches (8, 8, 3, 64): shrinks with weight_decay: False
