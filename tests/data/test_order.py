"""The order passes the statistical tests of a random shuffle. The draws are uniform. Both depend on positions only."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixer.data.order import record_numbers, uniform

SEEDS = st.integers(0, 2**31 - 1)
LEAST_P = 1e-4  # least accepted p-value; the numbers are fixed, so a test passes always or never


def epoch_order(n: int, seed: int = 0, epoch: int = 0, block: int = 1, window: int = 0) -> np.ndarray:
    return record_numbers(np.arange(n) + epoch * n, n, seed, block, window)


# ------------------------------------------------------------------------------- the same numbers, one by one, as ints


def mix(z: int) -> int:
    """SplitMix64's finaliser, as Vigna publishes it."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def fold(key: int, number: int) -> int:
    return mix((key + number * 0x9E3779B97F4A7C15) % 2**64)


def shuffled(index: int, size: int, key: int) -> int:
    """A walk over a grid that ends inside it: eight rounds down and along, by hashes of the other coordinate."""
    height = 2 * math.ceil(math.isqrt(4 * size - 1) / 4) if size > 1 else 2
    while height**2 < size:  # isqrt rounds down
        height += 2
    width = -(-size // height)
    while True:
        row, column = divmod(index, width)
        for number in range(0, 16, 2):
            row = (row + fold(key, column * 16 + number) % height) % height
            column = (column + fold(key, row * 16 + number + 1) % width) % width
        index = row * width + column
        if index < size:
            return index


def expected_record(position: int, n: int, seed: int, block: int, window: int) -> int:
    epoch, slot = divmod(position, n)
    key = fold(fold(0, seed + 1), epoch)
    block = min(block, n)
    number, within = divmod(slot, block)
    blocks = n // block
    if number < blocks:
        first = number - number % window if 0 < window < blocks else 0
        number = first + shuffled(
            number - first, min(window or blocks, blocks - first), fold(key, first // (window or 1))
        )
    return (number * block + within + key) % n


def test_the_hash_is_splitmix64():
    """Its first output for the seed 0, as published."""
    assert fold(0, 1) == 0xE220A8397B1DCDAF


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), SEEDS, st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 60))
def test_record_numbers_are_their_definition(n, seed, epoch, block, window):
    positions = np.arange(epoch * n, epoch * n + min(n, 40))
    expected = [expected_record(int(position), n, seed, block, window) for position in positions]
    np.testing.assert_array_equal(record_numbers(positions, n, seed, block, window), expected)
    np.testing.assert_array_equal(record_numbers(positions, n, seed), [
        expected_record(int(position), n, seed, 1, 0) for position in positions
    ])  # fmt: skip


@given(SEEDS, st.integers(0, 2**40), st.integers(1, 30))
def test_draws_are_their_definition(seed, position, count):
    key = fold(fold(0, seed + 1), position)
    expected = [(fold(key, index) >> 40) / 2**24 for index in range(1, count + 1)]
    (found,) = uniform(seed, np.array([position]), count)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


# ----------------------------------------------------------------------------------------------------- their properties


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2000), SEEDS, st.integers(0, 10**6), st.integers(1, 2500), st.integers(0, 2500))
def test_an_epoch_meets_every_record_once(n, seed, epoch, block, window):
    numbers = epoch_order(n, seed, epoch, block, window)
    assert numbers.dtype == np.int64
    np.testing.assert_array_equal(np.sort(numbers), np.arange(n))


@given(st.integers(1, 300), SEEDS, st.integers(1, 20), st.integers(0, 20), st.data())
@settings(max_examples=50, deadline=None)
def test_a_position_s_record_depends_on_nothing_beside_it(n, seed, block, window, data):
    positions = np.array(data.draw(st.lists(st.integers(0, 10 * n), min_size=1, max_size=50)))
    together = record_numbers(positions, n, seed, block, window)
    alone = [record_numbers(np.array([position]), n, seed, block, window)[0] for position in positions]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("block", "window"), [(1, 0), (1, 50), (4, 0), (4, 50)])
def test_epochs_and_seeds_have_orders_of_their_own(block, window):
    n = 2000
    orders = [epoch_order(n, seed, epoch, block, window) for seed in range(3) for epoch in range(5)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_records_are_equally_likely(n):
    epochs = 20 * math.factorial(n)
    orders = record_numbers(np.arange(n * epochs), n, 0).reshape(epochs, n)
    counts = list(Counter(map(tuple, orders.tolist())).values())
    counts += [0] * (math.factorial(n) - len(counts))
    assert stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize("n", [7, 30, 64, 200])
def test_every_record_is_as_likely_in_every_place(n):
    epochs = 40 * n
    orders = record_numbers(np.arange(n * epochs), n, 3).reshape(epochs, n)
    counts = np.zeros((n, n))
    for place in range(n):
        counts[place] = np.bincount(orders[:, place], minlength=n)
    expected = epochs / n
    # The factor (n - 1) / n is there because an order has each record once.
    assert stats.chi2.sf((n - 1) / n * ((counts - expected) ** 2).sum() / expected, (n - 1) ** 2) > LEAST_P


@pytest.mark.parametrize("n", [30, 1000, 50_000, 1_281_167, 300_000_000])
def test_neighbours_are_independent(n):
    count = min(n, 50_000)
    epochs = 60 if n < 100 else 20 if n < 10_000 else 1
    steps = [np.diff(record_numbers(np.arange(count) + epoch * n, n, 1)) % n for epoch in range(epochs)]
    bins = min(n - 1, 1000)
    counts = np.bincount((np.concatenate(steps) - 1) * bins // (n - 1), minlength=bins)
    edges = np.ceil(np.arange(bins + 1) * (n - 1) / bins)  # edges of the bins of steps
    expected = np.diff(edges) / (n - 1) * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > LEAST_P
    near = np.minimum(np.concatenate(steps), n - np.concatenate(steps)) <= 5
    expected_near = 10 / (n - 1) * near.size
    assert near.sum() <= expected_near + 5 * math.sqrt(expected_near) + 2


def test_the_first_positions_of_an_epoch_reach_all_over_the_set():
    n = 14_000_000
    for epoch in range(5):
        numbers = record_numbers(np.arange(2000) + epoch * n, n, 0)
        assert stats.kstest(numbers / n, "uniform").pvalue > LEAST_P


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 400), SEEDS, st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_a_window_bounds_the_distance(n, seed, epoch, block, window):
    numbers = epoch_order(n, seed, epoch, block, window)
    shifts = np.arange(n)[:, None]
    distance = np.abs((numbers - shifts) % n - np.arange(n))
    assert (distance < block * window).all(axis=1).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), SEEDS, st.integers(0, 1000), st.integers(1, 40), st.integers(0, 8))
def test_a_block_s_records_stay_neighbours(n, seed, epoch, block, window):
    numbers = epoch_order(n, seed, epoch, block, window)
    blocks = numbers[: n // block * block].reshape(-1, block)
    assert (np.diff(blocks, axis=1) % n == 1 % n).all()


def test_epochs_start_their_blocks_at_different_records():
    starts = {int(epoch_order(1000, epoch=epoch, block=10)[0] % 10) for epoch in range(60)}
    assert starts == set(range(10))


@given(SEEDS, st.integers(0, 2**50), st.integers(1, 64), st.integers(1, 200), st.integers(1, 199))
@settings(max_examples=50, deadline=None)
def test_a_draw_is_a_function_of_seed_position_and_index(seed, start, count, size, cut):
    positions = start + np.arange(size)
    together = uniform(seed, positions, count)
    assert together.shape == (size, count)
    assert together.dtype == np.float32
    assert together.min() >= 0
    assert together.max() < 1
    np.testing.assert_array_equal(uniform(seed, positions[:cut], count), together[:cut])
    np.testing.assert_array_equal(uniform(seed, positions[::-1][:cut], count), together[::-1][:cut])
    np.testing.assert_array_equal(uniform(seed, positions, count + 3)[:, :count], together)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("start", [0, 5_000_000_000])
def test_draws_are_uniform(seed, start):
    draws = uniform(seed, start + np.arange(20_000), 10).astype(np.float64)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > LEAST_P
    assert stats.chisquare(np.bincount((draws.ravel() * 1000).astype(int), minlength=1000)).pvalue > LEAST_P
    # Mean and variance of each index, within five standard errors.
    assert np.abs(draws.mean(axis=0) - 1 / 2).max() < 5 * math.sqrt(1 / 12 / 20_000)
    assert np.abs(draws.var(axis=0) - 1 / 12).max() < 5 * math.sqrt(1 / 180 / 20_000)


def test_draws_are_independent_of_their_neighbours():
    here = uniform(0, np.arange(20_000), 10).astype(np.float64)
    pairs = {
        "position": (here[:-1], here[1:]),
        "index": (here[:, :-1], here[:, 1:]),
        "seed": (here, uniform(1, np.arange(20_000), 10)),
        "diagonal": (here[:-1, 1:], here[1:, :-1]),
    }
    for name, (one, other) in pairs.items():
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.size), name
        cells = np.bincount((one.ravel() * 20).astype(int) * 20 + (other.ravel() * 20).astype(int), minlength=400)
        assert stats.chisquare(cells).pvalue > LEAST_P, name
