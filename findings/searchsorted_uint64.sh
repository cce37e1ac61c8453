#!/usr/bin/env bash
# numpy.searchsorted looks for a Python int in an array of uint64 as a float64: it finds a wrong place, slowly.
#
# Guess: since NumPy 2 a Python int takes the array's type (NEP 50), so searchsorted compares as == and < do.
# With NumPy 2.4.6 it makes an int64 of the number first, and of int64 and uint64 float64, which holds 53 bits. So it
# converts the whole array for each call, and hashes or record offsets that differ in their last bits are equal to it.
# From 2^63 on the int becomes uint64, and all is right: tests with small and with very large numbers pass. Give
# numpy.uint64(number). NumPy 2.5.5 does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'numpy==2.4.6'
venv/bin/python - << 'PYTHON'
import time

import numpy as np

hashes = np.array([2**62 + 1, 2**62 + 2, 2**62 + 3], dtype=np.uint64)
plain, typed = np.searchsorted(hashes, 2**62 + 3), np.searchsorted(hashes, np.uint64(2**62 + 3))
print(f"the third of three hashes: at {plain} as a Python int, at {typed} as numpy.uint64")
print(f"the comparison itself: {(hashes < 2**62 + 3).tolist()}")
assert (plain, typed, (hashes < 2**62 + 3).sum()) == (0, 2, 2)

many = np.arange(5_000_000, dtype=np.uint64)
seconds = []
for number in (4_999_999, np.uint64(4_999_999)):
    since = time.perf_counter()
    assert all(np.searchsorted(many, number) == 4_999_999 for _ in range(20))
    seconds.append((time.perf_counter() - since) / 20)
print(f"one search among 5,000,000: {seconds[0] * 1e3:.1f} ms and {seconds[1] * 1e3:.4f} ms")
assert seconds[0] > 20 * seconds[1]
PYTHON
# Output seen on 2026-11-29, Python 3.11.7 on x86-64 Linux:
#   the third of three hashes: at 0 as a Python int, at 2 as numpy.uint64
#   the comparison itself: [True, True, False]
#   one search among 5,000,000: 12.2 ms and 0.0031 ms
