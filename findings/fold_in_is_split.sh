#!/usr/bin/env bash
# jax.random.fold_in(key, 5) is the sixth key of jax.random.split(key, n): the two are not independent.
#
# Guess: fold_in and split hash differently, so a key folded with the step and a key split for layers never meet.
# With jax 0.10.2 (threefry, and rbg, which uses it) both are the hash of the key with a number. A program that folds
# steps or layers into a key and also splits the same key draws the same dropout masks or noise twice. Split first,
# and fold numbers into one of the parts. jax 0.12.0.1 does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
export JAX_PLATFORMS=cpu
venv/bin/python - << 'PYTHON'
import jax

for kind in ("threefry2x32", "rbg"):
    key = jax.random.key(0, impl=kind)
    for parts in (6, 12):
        folded, split = jax.random.fold_in(key, 5), jax.random.split(key, parts)[5]
        print(f"{kind}: fold_in(key, 5) draws {jax.random.uniform(folded, (3,))}")
        print(f"{kind}: split(key, {parts})[5] draws {jax.random.uniform(split, (3,))}")
        assert (jax.random.key_data(folded) == jax.random.key_data(split)).all()
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   threefry2x32: fold_in(key, 5) draws [0.73806036 0.62536097 0.8977374 ]
#   threefry2x32: split(key, 6)[5] draws [0.73806036 0.62536097 0.8977374 ]
#   threefry2x32: fold_in(key, 5) draws [0.73806036 0.62536097 0.8977374 ]
#   threefry2x32: split(key, 12)[5] draws [0.73806036 0.62536097 0.8977374 ]
#   rbg: fold_in(key, 5) draws [0.8719075  0.43535376 0.34306407]
#   rbg: split(key, 6)[5] draws [0.8719075  0.43535376 0.34306407]
#   rbg: fold_in(key, 5) draws [0.8719075  0.43535376 0.34306407]
#   rbg: split(key, 12)[5] draws [0.8719075  0.43535376 0.34306407]
