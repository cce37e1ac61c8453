#!/usr/bin/env bash
# An Intel processor with AVX512_BF16 multiplies bfloat16 slower than float32, unless it has AMX.
#
# Guess: AVX512_BF16 doubles the rate of products, as its instruction does twice the work of a float32 one.
# On an AMD EPYC it does (456 and 944 GFLOP/s of two cores, by another script). On an Emerald Rapids whose virtual machine
# hides AMX, a core multiplies float32 at 154 GFLOP/s and bfloat16 at 120, with jax 0.12.0.1. So a program that looks for
# the flag alone chooses the slower type there.
# Needs a processor with AVX512_BF16, and Python 3.12 or later for this jax.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.12.0.1' 'jaxlib==0.12.0.1' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
taskset --cpu-list "$(taskset --cpu-list --pid $$ | grep -o '[0-9]*$')" venv/bin/python - << 'PYTHON'
import time

import jax
import jax.numpy as jnp

words = set(open("/proc/cpuinfo").read().split())
assert "avx512_bf16" in words, "this processor has no AVX512_BF16"
multiply = jax.jit(jnp.matmul)


def fastest(dtype, size=1024, repeats=200):
    x = jnp.ones((size, size), dtype)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * size**3 / min(seconds)


single, half = fastest(jnp.float32), fastest(jnp.bfloat16)
vendor = "AMD" if "AuthenticAMD" in words else "Intel"
amx = "with AMX" if "amx_bf16" in words else "without AMX"
print(f"{vendor}, AVX512_BF16, {amx}: {half / single:.1f} times the rate of float32")
print(f"float32 {single:.0f} GFLOP/s, bfloat16 {half:.0f}")
if vendor == "AMD":
    assert half > 1.4 * single
elif amx == "without AMX":
    assert half < 1.1 * single
PYTHON
# Output seen on 2026-11-29, Python 3.13.0 on x86-64 Linux (/proc/cpuinfo: GenuineIntel, family 6, model 207):
#   Intel, AVX512_BF16, without AMX: 0.8 times the rate of float32
#   float32 154 GFLOP/s, bfloat16 120
