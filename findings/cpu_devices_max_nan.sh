#!/usr/bin/env bash
# On several CPU devices the maximum over all of them loses a NaN.
#
# Guess: jnp.max is NaN if an element is, as it is on one device.
# With jaxlib 0.10.2 an all-reduce of maxima on CPU devices drops NaNs. In one process with three devices a NaN on any
# of them is lost. With three processes (gloo) a NaN of process 0 stays and one of process 1 or 2 is lost; all agree.
# So a test on CPU devices passes with a guard such as jnp.max(abs(gradient)) that sees nothing. Reduce jnp.isfinite
# instead. In jaxlib 0.12.0.1 one process with three devices does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
cat > maximum.py << 'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

processes, process, port = (int(argument) for argument in sys.argv[1:])
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
else:
    jax.config.update("jax_num_cpu_devices", 3)
mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
seen = []
for bad in range(3):
    array = np.where(np.arange(3) == bad, np.nan, 1).astype(np.float32)
    numbers = jax.make_array_from_callback((3,), split, lambda index, array=array: array[index])
    for reduce in (jnp.max, lambda x: ~jnp.isfinite(x).all()):
        result = jax.jit(reduce, out_shardings=whole)(numbers)
        seen.append({shard.data.item() for shard in result.addressable_shards})
if process == 0:
    print(f"{processes} process{'es' if processes > 1 else ''}, NaN on device 0, 1, 2:")
    print("  jnp.max:", *seen[::2])
    print("  any not finite:", *seen[1::2])
    kept = [bool(np.isnan(*values)) for values in seen[::2]]
    assert kept == ([True, False, False] if processes > 1 else [False] * 3), kept
    assert seen[1::2] == [{True}] * 3
PYTHON
venv/bin/python maximum.py 1 0 0
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/python maximum.py 3 1 "$port" 2> one.txt &
venv/bin/python maximum.py 3 2 "$port" 2> two.txt &
venv/bin/python maximum.py 3 0 "$port" 2> zero.txt || { cat zero.txt; exit 1; }
wait
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   1 process, NaN on device 0, 1, 2:
#     jnp.max: {1.0} {1.0} {1.0}
#     any not finite: {True} {True} {True}
#   3 processes, NaN on device 0, 1, 2:
#     jnp.max: {nan} {1.0} {1.0}
#     any not finite: {True} {True} {True}
