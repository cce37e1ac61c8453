#!/usr/bin/env bash
# tf.random.stateless_uniform draws other numbers under jit_compile=True, with the same seed on the same CPU.
#
# Guess: a stateless operation is a function of its seed, compiled or not.
# By default TensorFlow 2.21.0 takes Philox in its own kernels and another generator in XLA. So augmentations change
# when their function is compiled. alg="philox" gives the same uniform numbers both ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'tensorflow-cpu==2.21.0' 'numpy==2.4.6'
export TF_CPP_MIN_LOG_LEVEL=3
venv/bin/python - << 'PYTHON' 2> messages.txt || { cat messages.txt; exit 1; }
import numpy as np
import tensorflow as tf

np.set_printoptions(precision=3)
equal = {}
for draw in (tf.random.stateless_uniform, tf.random.stateless_normal):
    for algorithm in ("auto_select", "philox"):

        def numbers(draw=draw, algorithm=algorithm):
            return draw([3], seed=[1, 2], alg=algorithm)

        plain = tf.function(numbers)().numpy()
        jitted = tf.function(numbers, jit_compile=True)().numpy()
        equal[draw.__name__, algorithm] = bool(np.allclose(plain, jitted, atol=1e-5))
        print(f"{draw.__name__}, {algorithm}: {plain}, under jit_compile {jitted}")
assert not equal["stateless_random_uniform", "auto_select"] and not equal["stateless_random_normal", "auto_select"]
assert equal["stateless_random_uniform", "philox"]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   stateless_random_uniform, auto_select: [0.844 0.192 0.996], under jit_compile [0.258 0.405 0.922]
#   stateless_random_uniform, philox: [0.844 0.192 0.996], under jit_compile [0.844 0.192 0.996]
#   stateless_random_normal, auto_select: [0.544 0.207 0.074], under jit_compile [ 0.929 -1.36   0.208]
#   stateless_random_normal, philox: [0.544 0.207 0.074], under jit_compile [0.544 0.207 0.074]
