"""Durations in steps, examples and epochs."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config import durations, recipe
from mixer.runtime.errors import ArgumentError, UserError


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


def test_the_last_epoch_ends_with_the_run(base_with):
    """10,000 images in batches of 64 are 156.25 steps: evaluations at 936 and 938 were one too many."""
    config = base_with(batch_size=64)
    recipe.duration(config, "total", epochs=6)
    recipe.duration(config, "eval", epochs=1)
    every, total = durations.interval(config, "eval", 10_000), durations.steps(config, "total", 10_000)
    ends = [step for step in range(1, total + 1) if durations.ends_at(step, every)]
    assert ends == [156, 312, 469, 625, 781, 938]
    assert total == 938


@settings(max_examples=200, deadline=None)
@given(every=st.one_of(st.integers(1, 50), st.floats(1, 50)))
def test_every_interval_ends_once(every):
    ends = [step for step in range(1, 1001) if durations.ends_at(step, every)]
    assert ends == [end for number in range(1, 1001) if (end := round(number * every)) <= 1000]
    if isinstance(every, int):
        assert ends == list(range(every, 1001, every))


def test_a_unit_that_is_given_unsets_the_others_of_an_evaluator_too(base_with):
    config = base_with()
    for name in ("real", "other"):
        config.evaluators[name] = recipe.evaluator_settings("classification", every_steps=100)
    given = {"evaluators.real.every_epochs": 2.0, "eval_examples": 7}
    config.update_from_flattened_dict(given)
    config = durations.one_unit_each(config, given)
    assert (config.evaluators.real.every_steps, config.evaluators.real.every_epochs) == (None, 2.0)
    assert config.evaluators.other.every_steps == 100
    assert (config.eval_steps, config.eval_examples, config.eval_epochs) == (None, 7, None)
    both = {f"evaluators.real.every_{unit}": 3 for unit in ("steps", "epochs")}
    with pytest.raises(UserError, match=r"^evaluators.real.every_steps and evaluators.real.every_epochs say the same"):
        durations.one_unit_each(config, both)


def test_an_interval_is_at_least_a_step(base_with):
    config = base_with(batch_size=64)
    recipe.duration(config, "eval", examples=1)
    assert durations.interval(config, "eval", 10) == 1


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (2, 1), (20, 20), (19, 20)])
def test_warm_up_within_the_run(warmup, total):
    durations.check_warmup(warmup, total)


def test_warm_up_longer_than_the_run():
    with pytest.raises(UserError) as caught:
        durations.check_warmup(10_000, 20)
    assert str(caught.value) == (
        "warm-up takes 10,000 steps and the run 20, so the learning rate would end at 0.20% of "
        "config.optimizer.learning_rate: make the run longer, or set config.warmup_steps, for example to 2"
    )


@pytest.mark.parametrize(
    ("name", "unit", "said"),
    [
        ("totl", {"steps": 4}, "recipe.duration: 'totl' is none of total, warmup, "),
        ("total", {"step": 4}, "recipe.duration of 'total': expected one of steps, examples, epochs, not step"),
        ("total", {}, "expected one of steps, examples, epochs, not nothing"),
        ("total", {"epochs": 5, "step": 4}, "expected one of steps, examples, epochs, not epochs, step"),
    ],
)
def test_a_duration_that_is_none_is_refused(name, unit, said):
    with pytest.raises(ArgumentError, match=re.escape(said)):
        recipe.duration(recipe.base(), name, **unit)
