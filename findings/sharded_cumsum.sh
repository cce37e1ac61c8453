#!/usr/bin/env bash
# A cumulative sum of bfloat16 stops counting at 256 when the array is split over devices.
#
# Guess: the sharding of an array changes where it is computed, and results by a rounding at most.
# On one device, and split along another axis, jnp.cumsum sums bfloat16 in float32: 4,096 ones end at 4,096. Split
# along its own axis over two devices, it sums in bfloat16 and ends at 256. float16 and float32 come out right. Sums,
# means and variances of the same arrays are alike both ways. Convert to float32 first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
placed = {"whole": (), "rows split": ("data",), "split along the sum": (None, "data")}
cumsum = jax.jit(lambda x: jnp.cumsum(x, axis=1))
found = {}
for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
    for name, axes in placed.items():
        ones = jax.device_put(jnp.ones((2, 4096), dtype), NamedSharding(mesh, PartitionSpec(*axes)))
        found[dtype.__name__, name] = float(cumsum(ones)[-1, -1]), float(jnp.sum(ones, axis=1)[-1])
        print(f"{dtype.__name__:9} {name:20} cumsum ends at {found[dtype.__name__, name][0]:6.0f}, "
              f"sum {found[dtype.__name__, name][1]:6.0f}")
odd = found.pop(("bfloat16", "split along the sum"))
assert odd == (256, 4096), odd
assert set(found.values()) == {(4096, 4096)}, found
PYTHON
# Output seen on 2026-11-30, Python 3.11.7 on x86-64 Linux:
#   bfloat16  whole                cumsum ends at   4096, sum   4096
#   bfloat16  rows split           cumsum ends at   4096, sum   4096
#   bfloat16  split along the sum  cumsum ends at    256, sum   4096
#   float16   whole                cumsum ends at   4096, sum   4096
#   float16   rows split           cumsum ends at   4096, sum   4096
#   float16   split along the sum  cumsum ends at   4096, sum   4096
#   float32   whole                cumsum ends at   4096, sum   4096
#   float32   rows split           cumsum ends at   4096, sum   4096
#   float32   split along the sum  cumsum ends at   4096, sum   4096
