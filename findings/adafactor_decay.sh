#!/usr/bin/env bash
# optax.adafactor does not multiply weight decay by the learning rate: 0.1 takes a tenth of a weight at each step.
#
# Guess: as in optax.adamw, a step shrinks a weight by learning_rate * weight_decay of itself, and the decay follows
# the schedule.
# optax 0.2.8 adds `weight_decay_rate` times the weight behind the learning rate. With 1e-3 and 0.1 a weight halves in
# seven steps of adafactor and in 6,931 of adamw, and the decay goes on when the schedule has come to zero.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'optax==0.2.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax.numpy as jnp
import optax

weight, no_gradient = jnp.ones((4, 4)), jnp.zeros((4, 4))
found = {}
for rate in (1e-3, 1e-5, 0.0):
    for name, optimizer in (
        ("adamw", optax.adamw(rate, weight_decay=0.1)),
        ("adafactor", optax.adafactor(rate, weight_decay_rate=0.1)),
    ):
        update, _ = optimizer.update(no_gradient, optimizer.init(weight), weight)
        found[name, rate] = float(update[0, 0])
        print(f"{name}, learning rate {rate:g}, decay 0.1: a weight of 1 changes by {found[name, rate]:.3g}")
assert [found["adafactor", rate] for rate in (1e-3, 1e-5, 0.0)] == [found["adafactor", 0.0]] * 3
assert abs(found["adafactor", 0.0] + 0.1) < 1e-6 and abs(found["adamw", 1e-3] + 1e-4) < 1e-9
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   adamw, learning rate 0.001, decay 0.1: a weight of 1 changes by -0.0001
#   adafactor, learning rate 0.001, decay 0.1: a weight of 1 changes by -0.1
#   adamw, learning rate 1e-05, decay 0.1: a weight of 1 changes by -1e-06
#   adafactor, learning rate 1e-05, decay 0.1: a weight of 1 changes by -0.1
#   adamw, learning rate 0, decay 0.1: a weight of 1 changes by -0
#   adafactor, learning rate 0, decay 0.1: a weight of 1 changes by -0.1
