"""The machine that this process runs on."""

import os


def processors() -> int:
    """How many of its processors this process may use: JAX on a CPU and TensorFlow take so many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
