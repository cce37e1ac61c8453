#!/usr/bin/env bash
# Kernels that are stacked in one array [n, in, out] start sqrt(n) times too small under JAX's initializers.
#
# Guess: lecun_normal scales by the inputs of each kernel, the axis before the last.
# jax 0.10.2 takes all axes but the last two for the window of a convolution and multiplies them into the inputs. Twelve
# layers stacked for a scan start at 0.29 of their standard deviation, and so does a kernel by head in flax.linen's
# Einsum. Give batch_axis=0, or initialise one kernel and vmap over keys.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp

key = jax.random.key(0)
initialize = jax.nn.initializers.lecun_normal
kernels = {
    "one kernel [64, 64]": initialize()(key, (64, 64)),
    "twelve [12, 64, 64]": initialize()(key, (12, 64, 64)),
    "twelve, batch_axis=0": initialize(batch_axis=(0,))(key, (12, 64, 64)),
    "twelve, vmap over keys": jax.vmap(initialize(), (0, None))(jax.random.split(key, 12), (64, 64)),
    "flax.linen.Einsum, twelve heads": nn.Einsum((12, 64, 64), "btd,hdk->bthk")
    .init(key, jnp.ones((1, 1, 64)))["params"]["kernel"],
}
spread = {name: float(kernel.std()) for name, kernel in kernels.items()}
for name, value in spread.items():
    print(f"{name}: standard deviation {value:.4f}")
one, stacked, axis, mapped, einsum = spread.values()
assert abs(one - 1 / 8) < 0.01 and abs(axis - one) < 0.01 and abs(mapped - one) < 0.01
assert abs(stacked - one / 12**0.5) < 0.005 and abs(einsum - stacked) < 0.005
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   one kernel [64, 64]: standard deviation 0.1260
#   twelve [12, 64, 64]: standard deviation 0.0362
#   twelve, batch_axis=0: standard deviation 0.1253
#   twelve, vmap over keys: standard deviation 0.1252
#   flax.linen.Einsum, twelve heads: standard deviation 0.0362
