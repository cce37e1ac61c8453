"""Durations in steps, examples and epochs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config import durations, recipe


@settings(max_examples=100, deadline=None)
@given(
    examples=st.integers(1, 10**7),
    batch_size=st.integers(1, 10**4),
    epochs=st.floats(0, 1000, allow_subnormal=False),
    count=st.integers(0, 10**9),
)
def test_steps_in_every_unit(base_with, examples, batch_size, epochs, count):
    config = base_with(batch_size=batch_size)
    recipe.duration(config, "total", epochs=epochs)
    recipe.duration(config, "warmup", examples=count)
    recipe.duration(config, "log", steps=count)
    total = durations.steps(config, "total", examples)
    assert (total == 0) == (epochs == 0)
    assert total == (epochs > 0) or abs(total - epochs * examples / batch_size) <= 0.5
    warmup = durations.steps(config, "warmup", examples)
    assert (warmup == 0) == (count == 0)
    assert warmup == (count > 0) or abs(warmup - count / batch_size) <= 0.5
    assert durations.steps(config, "log", examples) == count
