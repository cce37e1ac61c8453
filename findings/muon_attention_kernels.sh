#!/usr/bin/env bash
# optax's Muon leaves the kernels of flax's attention and convolutions to Adam, without decay, and takes attention's biases.
#
# Guess: Muon takes every kernel (flattened to a matrix), Adam the rest; weight_decay reaches all of them.
# optax 0.2.8 gives Muon the leaves with two axes and no other. flax's attention has kernels [width, heads, size], its
# convolutions [height, width, in, out]. `weight_decay` is for Muon's leaves; Adam's need `adam_weight_decay`. So of a
# vision transformer only the MLPs and the head are trained by Muon and decayed; and the biases of query, key and value,
# [heads, size], are orthogonalised and decayed like matrices. Give muon_weight_dimension_numbers.
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
params = jax.tree.map(lambda leaf: leaf + 1.0, params)  # biases begin as zeros, which cannot shrink
optimizer = optax.contrib.muon(0.1, weight_decay=0.5)
state = optimizer.init(params)
no_gradient = jax.tree.map(jnp.zeros_like, params)
decay, _ = optimizer.update(no_gradient, state, params)
shrunk = {}
for path, leaf in jax.tree.leaves_with_path(params):
    if path[-1].key == "kernel" or path[0].key == "attention":
        update = dict(jax.tree.leaves_with_path(decay))[path]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shrunk[name] = bool((update != 0).any())
        print(f"{name} {leaf.shape}: shrinks with weight_decay: {shrunk[name]}")
biases = [f"attention/{name}/bias" for name in ("key", "query", "value")]
assert [name for name in shrunk if shrunk[name]] == [*biases, "head/kernel"]
PYTHON
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   attention/key/bias (4, 16): shrinks with weight_decay: True
#   attention/key/kernel (64, 4, 16): shrinks with weight_decay: False
#   attention/out/bias (64,): shrinks with weight_decay: False
#   attention/out/kernel (4, 16, 64): shrinks with weight_decay: False
#   attention/query/bias (4, 16): shrinks with weight_decay: True
#   attention/query/kernel (64, 4, 16): shrinks with weight_decay: False
#   attention/value/bias (4, 16): shrinks with weight_decay: True
#   attention/value/kernel (64, 4, 16): shrinks with weight_decay: False
#   head/kernel (64, 10): shrinks with weight_decay: True
#   patches/kernel (8, 8, 3, 64): shrinks with weight_decay: False
