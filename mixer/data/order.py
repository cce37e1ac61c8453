"""Which example stands where, and what chance gives it: pure functions of (seed, position).

A position numbers the examples of a run from its first step: row i of step t's global batch is position t * batch + i.
Nothing here depends on hosts, devices or restarts, and nothing is remembered.
"""

import numpy as np


def record_numbers(positions: np.ndarray, num_records: int, seed: int, block: int = 1, window: int = 0) -> np.ndarray:
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
    epoch, slot = np.divmod(positions, num_records)
    block = min(block, num_records)
    whole_blocks = num_records // block
    window = min(window or whole_blocks, whole_blocks)
    block_number, within = np.divmod(slot, block)
    window_number, place = np.divmod(block_number, window)
    # Records behind the last whole block keep their place; the epoch's shift below makes them others every time.
    is_tail = block_number >= whole_blocks
    window_size = np.minimum(window, whole_blocks - window_number * window)
    epoch_key = _fold(_run_key(seed), epoch)
    shuffled = _shuffle(np.where(is_tail, 0, place), np.where(is_tail, 1, window_size), _fold(epoch_key, window_number))
    block_number = np.where(is_tail, block_number, window_number * window + shuffled)
    shift = (epoch_key % np.uint64(num_records)).astype(np.int64)
    return (block_number * block + within + shift) % num_records


_ROUNDS = 8  # down and along; after five, some orders of seven records are still likelier than others


def _shuffle(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A permutation of range(size), one for each key, at `index`: constant time and memory; all arrays [n].

    A Feistel network on a grid of at least `size` cells: each round moves a cell down its column and along its row by
    hashes of the other coordinate, and a cell that ends beyond `size` goes round again. TensorFlow's own operation
    for this, RandomIndexShuffle with its four rounds, gives a set of five the same order in nine epochs of ten, and
    neighbours in a set of fourteen million a correlation of 0.17.
    """
    size = size.astype(np.uint64)
    rows = 2 * np.ceil(np.sqrt(size) / 2).astype(np.uint64)  # odd sides would reach only the even permutations
    columns = (size + rows - np.uint64(1)) // rows
    cell = index.astype(np.uint64)
    outside = np.ones(len(cell), bool)
    while outside.any():
        row, column = np.divmod(cell, columns)
        for number in range(0, 2 * _ROUNDS, 2):
            row = (row + _fold(key, column * np.uint64(2 * _ROUNDS) + np.uint64(number)) % rows) % rows
            column = (column + _fold(key, row * np.uint64(2 * _ROUNDS) + np.uint64(number + 1)) % columns) % columns
        cell = np.where(outside, row * columns + column, cell)
        outside = cell >= size
    return cell.astype(np.int64)


def uniform(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` numbers for each position, uniform in [0, 1): float32 [n, count].

    A counter-based generator (SplitMix64's finaliser, Steele et al. 2014, over distinct counters): every number is a
    function of (seed, position, index) alone, computed for a whole batch at once.
    """
    bits = _fold(_fold(_run_key(seed), positions)[:, None], np.arange(1, count + 1))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _run_key(seed: int) -> np.ndarray:
    return _mix(np.array([seed + 1], np.uint64) * _GOLDEN)


def _fold(key: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The key (uint64) of one among many that share a key."""
    return _mix(key + number.astype(np.uint64) * _GOLDEN)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
