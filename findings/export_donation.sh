#!/usr/bin/env bash
# A step that donates its state stops to do so once it went through jax.export.
#
# Guess: donate_argnums is part of what is exported, since the module keeps its input and output aliases.
# With jax 0.10.2 a call of the exported function leaves its argument alive, called directly or under jit: the state
# is held twice. Donate again at the caller's jit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'flatbuffers==25.12.19' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax
import jax.numpy as jnp
from jax import export

step = jax.jit(lambda state: state + 1, donate_argnums=0)
exported = export.export(step)(jax.ShapeDtypeStruct((1024,), jnp.float32))
loaded = export.deserialize(exported.serialize())
ways = {
    "the step itself": step,
    "exported": exported.call,
    "exported, saved and loaded": loaded.call,
    "the same under jit": jax.jit(loaded.call),
    "under jit with donate_argnums": jax.jit(loaded.call, donate_argnums=0),
}
freed = {}
for name, way in ways.items():
    state = jnp.zeros(1024)
    way(state).block_until_ready()
    freed[name] = state.is_deleted()
    print(f"{name}: argument freed: {freed[name]}")
print("aliases in the module:", "tf.aliasing_output" in exported.mlir_module() or "donor" in exported.mlir_module())
assert list(freed.values()) == [True, False, False, False, True]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   the step itself: argument freed: True
#   exported: argument freed: False
#   exported, saved and loaded: argument freed: False
#   the same under jit: argument freed: False
#   under jit with donate_argnums: argument freed: True
#   aliases in the module: True
