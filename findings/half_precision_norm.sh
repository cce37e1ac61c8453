#!/usr/bin/env bash
# optax.clip_by_global_norm makes float16 gradients of norm 632 zero, and sees 0.83 of the norm of 600 bfloat16 ones.
#
# Guess: the norm is summed in float32 whatever the gradients are, so clipping to 1 leaves a norm of 1.
# optax 0.2.8 rounds the sum of squares of each leaf to the leaf's type and adds the leaves in it. In float16 that is
# infinite from a norm of 256, and a gradient divided by infinity is 0: the run stands still, without a NaN. In
# bfloat16 the sum stops to grow when a leaf is under 1/256 of it. Cast gradients to float32 first.
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

clip = optax.clip_by_global_norm(1.0)
after = {}
for kind, value, leaves in (("float16", 20.0, 1), ("bfloat16", 20.0, 1), ("bfloat16", 0.1, 600), ("float32", 0.1, 600)):
    gradient = {str(number): jnp.full((1000,), value, kind) for number in range(leaves)}
    clipped, _ = clip.update(gradient, clip.init(gradient))
    true = float(optax.global_norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)))
    seen = float(optax.global_norm(gradient))
    norm = float(optax.global_norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), clipped)))
    after[kind, leaves] = norm
    print(f"{kind}, {leaves} leaves: norm {true:.1f}, optax sees {seen:.1f}, clipped to 1 it has {norm:.2f}")
assert after["float16", 1] == 0 and after["bfloat16", 600] > 1.15 and abs(after["float32", 600] - 1) < 1e-5
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   float16, 1 leaves: norm 632.5, optax sees inf, clipped to 1 it has 0.00
#   bfloat16, 1 leaves: norm 632.5, optax sees 632.0, clipped to 1 it has 1.00
#   bfloat16, 600 leaves: norm 77.5, optax sees 64.0, clipped to 1 it has 1.21
#   float32, 600 leaves: norm 77.5, optax sees 77.5, clipped to 1 it has 1.00
