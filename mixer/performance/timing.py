"""The clock: a call repeated in timed blocks."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds a call takes: the median of the blocks, the least and the most."""

    median: float
    least: float
    most: float


def timed(call: Callable[[], Any], *, blocks: int, seconds: float) -> Timing:
    """Times a call whose arrays may still be under way when it returns.

    Args:
      call: returns arrays; the last call's are waited for, which ends a block.
      blocks: how many blocks.
      seconds: of a block, about; at least one call.
    """
    jax.block_until_ready(call())  # a first one: memory is laid out, caches fill
    since = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(round(seconds / (time.perf_counter() - since)), 1)
    found = []
    for _ in range(blocks):
        since = time.perf_counter()
        behind = None
        for _ in range(calls):
            results = call()
            jax.block_until_ready(behind)  # like the training loop, no further ahead of the devices than one call
            behind = results
        jax.block_until_ready(behind)
        found.append((time.perf_counter() - since) / calls)
    return Timing(statistics.median(found), min(found), max(found))
