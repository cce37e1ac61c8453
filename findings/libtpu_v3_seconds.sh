#!/usr/bin/env bash
# libtpu 0.0.36 expects a product on a TPU v3 to take 2.7 times as long as libtpu 0.0.42.1 does.
#
# Guess: what the compiler says of a product that is bound by arithmetic is FLOPs over the chip's peak in each version.
# It is, but libtpu 0.0.36 divides by 22.8 TFLOP/s, the peak of a core of v2, and 0.0.42.1 by 61.4, that of v3. FLOPs,
# bytes and temporaries agree. So times that the compiler estimates go with its version, and two are not compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
cat > product.py << 'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

core = topologies.get_topology_desc(platform="tpu", topology_name="v3:2x2x1").devices[0]
place = SingleDeviceSharding(core)
product = jax.jit(jnp.matmul, in_shardings=place, out_shardings=place)
shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((12544, 768), (768, 3072)))
costs = product.lower(*shapes).compile().cost_analysis()
print(costs["flops"] / 1e9, costs["optimal_seconds"] * 1e3, costs["flops"] / costs["optimal_seconds"] / 1e12)
PYTHON
for version in 0.0.36 0.0.42.1; do
  venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' "libtpu==$version" 'numpy==2.4.6'
  venv/bin/python product.py > "$version.txt" 2> messages.txt || { cat messages.txt; exit 1; }
done
venv/bin/python - << 'PYTHON'
import pathlib

rates = {}
for version in ("0.0.36", "0.0.42.1"):
    line = pathlib.Path(f"{version}.txt").read_text().splitlines()[-1]
    flops, milliseconds, rates[version] = map(float, line.split())
    print(f"libtpu {version}: {flops:.2f} GFLOP, {milliseconds:.3f} ms, so {rates[version]:.1f} TFLOP/s")
assert 22 < rates["0.0.36"] < 24 and 60 < rates["0.0.42.1"] < 63
PYTHON
# Seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   libtpu 0.0.36: 59.19 GFLOP, 2.596 ms, so 22.8 TFLOP/s
#   libtpu 0.0.42.1: 59.19 GFLOP, 0.964 ms, so 61.4 TFLOP/s
