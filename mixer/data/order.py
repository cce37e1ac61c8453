"""Which example stands where, and what chance gives it: pure functions of (seed, position).

A position numbers the examples of a run from its first step: row i of step t's global batch is position t * batch + i.
Nothing here depends on hosts, devices or restarts, and nothing is remembered.
"""

from typing import Any

import numpy as np
import tensorflow as tf


def record_numbers(positions: tf.Tensor, num_records: int, seed: int, block: int = 1, window: int = 0) -> tf.Tensor:
    """Finds the records at these positions; each run of `num_records` positions is an epoch and meets each record once.

    Args:
      positions: int64 [n].
      num_records: size of the split.
      seed: of the run.
      block: records that stay neighbours. 1 shuffles records one by one; for remote storage 16 or more turns as many
        reads into one. Epochs are shifted against each other, so that neighbours change where blocks meet.
      window: blocks are shuffled among this many, which bounds the distance that reads jump; 0 for the whole split.

    Returns:
      Record numbers, int64 [n].
    """
    epoch = positions // num_records
    slot = positions % num_records
    if block == 1 and window == 0:
        return _shuffle(slot, _seeds(seed, epoch, tf.zeros_like(epoch)), tf.fill(tf.shape(slot), num_records))

    whole_blocks = num_records // block
    window = min(window, whole_blocks) if window else whole_blocks
    block_number, within = slot // block, slot % block
    window_number = block_number // window
    window_size = tf.minimum(window, whole_blocks - window_number * window)
    # Records behind the last whole block keep their place; the epoch's shift below makes them others every time.
    is_tail = block_number >= whole_blocks
    shuffled = _shuffle(
        tf.where(is_tail, 0, block_number % window),
        _seeds(seed, epoch, window_number),
        tf.where(is_tail, 1, window_size),
    )
    block_number = tf.where(is_tail, block_number, window_number * window + shuffled)
    shift = tf.cast(tf.constant(uniform(seed, np.arange(_EPOCH_SHIFTS), 1)[:, 0] * num_records), tf.int64)
    return (block_number * block + within + tf.gather(shift, epoch % _EPOCH_SHIFTS)) % num_records


_EPOCH_SHIFTS = 1024  # shifts repeat after so many epochs


def _seeds(seed: int, epoch: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.fill(tf.shape(epoch), tf.constant(seed, tf.int64)), epoch, window], axis=1)


def _shuffle(index: tf.Tensor, seeds: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """A permutation of range(size), one for each seed (int64 [n, 3]), at `index`: constant time and memory."""
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=seeds, max_index=tf.cast(size, tf.int64) - 1, rounds=4)


def uniform(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` numbers for each position, uniform in [0, 1): float32 [n, count].

    A counter-based generator (SplitMix64's finaliser, Steele et al. 2014, over distinct counters): every number is a
    function of (seed, position, index) alone, computed for a whole batch at once.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) * _GOLDEN + _GOLDEN)
        rows = _mix(key + positions.astype(np.uint64) * _GOLDEN)
        bits = _mix(rows[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
