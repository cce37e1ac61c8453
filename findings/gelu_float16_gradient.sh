#!/usr/bin/env bash
# The gradient of flax's default GELU is NaN in float16 where an activation is beyond 147.
#
# Guess: far from zero the gradient of GELU is 0 or 1, in any type, as its values are 0 or x.
# flax.linen.gelu is the tanh form by default. In its gradient (1 - tanh^2) is 0 there, and is multiplied by a term with
# 3 x^2, which is infinite in float16 from 148 on: 0 times inf. Values are right, so evaluation shows nothing. jax 0.12.0.1
# does the same; under jit 0.10.2 does it from 256 on. The exact form, approximate=False, has no such term, and bfloat16
# no such limit. Whoever trains in float16 computes GELU in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

for x in (140.0, 148.0, -300.0):
    found = [jax.grad(gelu)(jnp.float16(x)) for gelu in (nn.gelu, partial(nn.gelu, approximate=False))]
    value = nn.gelu(jnp.float16(x))
    print(f"gelu({x:g}) in float16: {value:g}, gradient {found[0]:g}; of the exact form {found[1]:g}")
    assert value == max(x, 0)
    assert np.isnan(found[0]) == (abs(x) >= 148)
    assert found[1] == (x > 0)
assert jax.grad(nn.gelu)(jnp.bfloat16(3e4)) == 1
PYTHON
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   gelu(140) in float16: 140, gradient 1; of the exact form 1
#   gelu(148) in float16: 148, gradient nan; of the exact form 1
#   gelu(-300) in float16: -0, gradient nan; of the exact form 0
