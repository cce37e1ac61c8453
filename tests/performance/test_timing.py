"""Blocks, calls and waiting of the timer."""

import time

import jax.numpy as jnp
import pytest

from mixer.performance import timing


def test_a_call_of_known_length(monkeypatch):
    calls, now = [], [0.0]

    def call():
        calls.append(now[0])
        now[0] += 0.25
        return jnp.zeros(3)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert timing.timed(call, blocks=3, seconds=1.1) == (0.25, 0.25, 0.25)
    assert len(calls) == 2 + 3 * 4  # warm-up, one to measure the length, three blocks


def test_every_call_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(timing.jax, "block_until_ready", waited.append)
    numbers = iter(range(100))
    timing.timed(lambda: next(numbers), blocks=2, seconds=0.0)  # each block has one call
    assert [number for number in waited if number is not None] == [0, 1, 2, 3]


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_median_is_of_the_blocks(monkeypatch, blocks):
    clock = iter([0, 1] + [moment for i in range(blocks) for moment in (0, 10.0 * (i + 1))])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = timing.timed(lambda: jnp.zeros(()), blocks=blocks, seconds=1)
    assert found == (10 * (blocks + 1) / 2, 10, 10 * blocks)
