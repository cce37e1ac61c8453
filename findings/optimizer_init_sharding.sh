#!/usr/bin/env bash
# jax.jit(optimizer.init) puts Adam's moments of sharded parameters whole on one device.
#
# Guess: moments are placed as the parameters are, since zeros_like keeps a sharding.
# With jax 0.10.2 and optax 0.2.8 that holds outside jit. Inside, zeros depend on no input, and XLA places them on
# device 0 alone: a model that fits sharded over a slice runs out of memory before its first step. Give out_shardings.
# jax 0.12.0.1 does the same.
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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
params = {"kernel": jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, PartitionSpec("data")))}
optimizer = optax.adam(1e-3)


def bytes_by_device(state):
    found = dict.fromkeys(jax.devices(), 0)
    for shard in state[0].mu["kernel"].addressable_shards:
        found[shard.device] += shard.data.nbytes
    return list(found.values())


eager, jitted = bytes_by_device(optimizer.init(params)), bytes_by_device(jax.jit(optimizer.init)(params))
print("bytes of the first moment on each device, init called:", eager)
print("bytes of the first moment on each device, init jitted:", jitted)
assert eager == [64] * 4 and jitted == [256, 0, 0, 0]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   bytes of the first moment on each device, init called: [64, 64, 64, 64]
#   bytes of the first moment on each device, init jitted: [256, 0, 0, 0]
