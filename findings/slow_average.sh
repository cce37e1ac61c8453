#!/usr/bin/env bash
# A moving average in float32 with a decay of 0.9999 stops short of what it averages, and earlier the slower it is.
#
# Guess: an exponential average of parameters that no longer change reaches them to about float32's precision, 1e-7.
# Each step of optax.incremental_update (optax 0.2.8) rounds the average to 24 bits. When a step would move it by less
# than half a unit of its last place, it stays. That is at a distance of 3e-8 to 6e-8 of its size, divided by 1 - decay:
# 5e-4 for 0.9999 and 4e-3 for 0.99999, from below and from above. A slower average needs a second array for what rounding
# loses, or a step only every so many steps of the parameters.
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

for decay, steps, distance in ((0.99, 10_000, 5e-6), (0.9999, 300_000, 4e-4), (0.99999, 3_000_000, 4e-3)):
    step = lambda _, average: optax.incremental_update(jnp.float32(1), average, 1 - decay)  # noqa: E731
    ends = [float(jax.lax.fori_loop(0, steps, step, jnp.float32(start))) for start in (0.9, 1.1)]
    exact = 0.1 * decay**steps
    print(f"decay {decay}: from 0.9 and 1.1 to {ends[0]:.7f} and {ends[1]:.7f}; exact arithmetic is {exact:.0e} away")
    assert exact < 1e-9
    assert all(distance / 3 < abs(end - 1) < 3 * distance for end in ends)
PYTHON
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   decay 0.99: from 0.9 and 1.1 to 0.9999980 and 1.0000068; exact arithmetic is 2e-45 away
#   decay 0.9999: from 0.9 and 1.1 to 0.9995361 and 1.0004300; exact arithmetic is 9e-15 away
#   decay 0.99999: from 0.9 and 1.1 to 0.9956676 and 1.0045961; exact arithmetic is 9e-15 away
