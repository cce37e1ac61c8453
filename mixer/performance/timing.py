"""Times a call, repeated in blocks."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds that one call takes: the median over the blocks, the fastest block and the slowest block."""

    median: float
    least: float
    most: float


def timed(call: Callable[[], Any], *, blocks: int, seconds: float) -> Timing:
    """Times a call that returns before its arrays are computed, as jitted functions do.

    Args:
      call: returns arrays. A block ends when the arrays of its last call are ready.
      blocks: how many blocks.
      seconds: approximate length of a block, which has at least one call.
    """
    jax.block_until_ready(call())  # warms up: memory is allocated, caches fill
    since = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(round(seconds / (time.perf_counter() - since)), 1)
    found = []
    for _ in range(blocks):
        since = time.perf_counter()
        previous = None
        for _ in range(calls):
            results = call()
            # Wait for the call before this one. So Python is at most one call ahead, as in the training loop.
            jax.block_until_ready(previous)
            previous = results
        jax.block_until_ready(previous)
        found.append((time.perf_counter() - since) / calls)
    return Timing(statistics.median(found), min(found), max(found))
