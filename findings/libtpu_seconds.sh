#!/usr/bin/env bash
# libtpu 0.0.38 expects a product to take as long on a v6e as on a v2; libtpu 0.0.42.1 does not.
#
# Guess: what the compiler says of a product that is bound by arithmetic is FLOPs over the chip's own peak.
# In libtpu 0.0.42.1 it is 58% of that on a v6e to all of it on a v3. In 0.0.38 all four come out near the peak of a
# core of v2 (22.5 TFLOP/s). FLOPs agree. So the seconds that the compiler estimates go with its version, and before
# 0.0.40 they say nothing of a chip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
cat > product.py << 'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

rates = {}
for chip in ("v2", "v3", "v5e", "v6e"):
    core = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2x1").devices[0]
    place = SingleDeviceSharding(core)
    product = jax.jit(jnp.matmul, in_shardings=place, out_shardings=place)
    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((12544, 768), (768, 3072)))
    costs = product.lower(*shapes).compile().cost_analysis()
    flops, seconds = costs["flops"], costs["optimal_seconds"]
    rates[chip] = flops / seconds / 1e12
    print(f"libtpu {sys.argv[1]}, {chip}: {flops / 1e9:.2f} GFLOP in {seconds * 1e3:.3f} ms, {rates[chip]:.0f} TFLOP/s")
if sys.argv[1] == "0.0.38":
    assert max(rates.values()) < 25, rates
else:
    assert 22 < rates["v2"] < 24 and 60 < rates["v3"] < 63 and rates["v5e"] > 100 and rates["v6e"] > 400, rates
PYTHON
for version in 0.0.38 0.0.42.1; do
  venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' "libtpu==$version" 'numpy==2.4.6'
  venv/bin/python product.py "$version" 2> messages.txt || { cat messages.txt; exit 1; }
done
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   libtpu 0.0.38, v2: 59.19 GFLOP in 2.596 ms, 23 TFLOP/s
#   libtpu 0.0.38, v3: 59.19 GFLOP in 2.596 ms, 23 TFLOP/s
#   libtpu 0.0.38, v5e: 59.19 GFLOP in 2.839 ms, 21 TFLOP/s
#   libtpu 0.0.38, v6e: 59.19 GFLOP in 2.839 ms, 21 TFLOP/s
#   libtpu 0.0.42.1, v2: 59.19 GFLOP in 2.596 ms, 23 TFLOP/s
#   libtpu 0.0.42.1, v3: 59.19 GFLOP in 0.964 ms, 61 TFLOP/s
#   libtpu 0.0.42.1, v5e: 59.19 GFLOP in 0.405 ms, 146 TFLOP/s
#   libtpu 0.0.42.1, v6e: 59.19 GFLOP in 0.112 ms, 531 TFLOP/s
