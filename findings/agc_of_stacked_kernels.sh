#!/usr/bin/env bash
# optax's adaptive gradient clipping of kernels that are stacked for a scan takes its norms over the layers.
#
# Guess: a unit is what one output reads, in a stack of kernels as in one: gradients are clipped alike both ways.
# optax 0.2.8 takes the norm of an array of three axes over the first. That suits attention's kernels [in, heads, out];
# of twelve kernels [12, in, out] it is the norm over the layers, for each weight of its own. Layers whose gradients are
# large are clipped too little and others too much. Map adaptive_grad_clip over the layers with vmap.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'optax==0.2.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax
import jax.numpy as jnp
import optax

clip = optax.adaptive_grad_clip(0.01).update
kernels = jax.random.normal(jax.random.key(0), (12, 64, 32))
gradients = jax.random.normal(jax.random.key(1), (12, 64, 32)) * jnp.arange(1, 13)[:, None, None]
apart = jnp.stack([clip(gradient, None, kernel)[0] for gradient, kernel in zip(gradients, kernels)])
mapped = jax.vmap(lambda gradient, kernel: clip(gradient, None, kernel)[0])(gradients, kernels)
stacked, _ = clip(gradients, None, kernels)
size = lambda x: jnp.linalg.norm(x, axis=(1, 2))
print("norm of each layer's clipped gradient, stacked over one by one:")
print(" ", *(f"{ratio:.2f}" for ratio in size(stacked) / size(apart)))
print(f"with vmap: off by {jnp.abs(mapped - apart).max() / jnp.abs(apart).max():.0e}")
assert (size(stacked) / size(apart))[0] < 0.3 and (size(stacked) / size(apart))[-1] > 1.5
assert jnp.allclose(mapped, apart, rtol=1e-6)
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   norm of each layer's clipped gradient, stacked over one by one:
#     0.16 0.31 0.44 0.58 0.77 0.87 1.01 1.09 1.23 1.34 1.41 1.60
#   with vmap: off by 2e-07
