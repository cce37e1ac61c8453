"""Which checkpoints are kept: the newest, those of an interval, and the most accurate."""

import math

import pytest
from test_checkpoint import assert_same_state, make_state, placed, save_steps, steps_in

from mixer.runtime import devices
from mixer.training.checkpoint import Checkpoints


@pytest.mark.parametrize(
    ("keep", "steps", "left"),
    [
        ((2, 0, 0), dict.fromkeys((1, 2, 3, 4, 5)), [4, 5]),
        ((1, 3, 0), dict.fromkeys((1, 2, 3, 4, 5, 6, 7)), [3, 6, 7]),
        ((1, 5, 0), dict.fromkeys((4, 9, 14, 18, 22, 24, 27)), [9, 14, 18, 22, 27]),
        ((1, 5, 0), dict.fromkeys((4, 9, 14, 16, 18)), [9, 14, 16, 18]),
        ((1, 0, 2), {1: 0.5, 2: 0.7, 3: None, 4: 0.6, 5: 0.1, 6: None}, [2, 4, 6]),
        ((1, 4, 1), {1: 0.9, 2: 0.2, 4: None, 5: 0.3, 6: 0.4}, [1, 4, 6]),
        ((1, 0, 0), {1: 0.9, 2: 0.1}, [2]),
    ],
)
def test_which_checkpoints_are_kept(tmp_path, keep, steps, left):
    save_steps(tmp_path, steps, keep)
    assert steps_in(tmp_path) == left


def test_a_restarted_run_remembers_its_best_checkpoints(tmp_path):
    save_steps(tmp_path, {1: 0.5, 2: 0.9, 3: 0.1}, (1, 0, 1))
    save_steps(tmp_path, {4: 0.6, 5: None}, (1, 0, 1))
    assert steps_in(tmp_path) == [2, 5]
    save_steps(tmp_path, {6: 0.95, 7: 0.2}, (1, 0, 1))
    assert steps_in(tmp_path) == [6, 7]


@pytest.mark.parametrize(
    ("steps", "best"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.1}, "2"),
        ({1: 0.5, 2: 0.5, 3: None}, "2"),
        ({1: 0.5, 2: 0.6}, "2"),
        ({1: None, 2: None}, None),
        ({}, None),
    ],
)
def test_the_most_accurate_checkpoint_is_named(tmp_path, steps, best):
    save_steps(tmp_path, steps, (1, 0, 2))
    checkpoints = Checkpoints(tmp_path, 1, 0, 2)
    found = checkpoints.most_accurate()
    checkpoints.close()
    assert found == (tmp_path / "checkpoints" / best if best else None)


def test_forgotten_accuracies_do_not_count(tmp_path):
    save_steps(tmp_path, {1: 0.9, 2: 0.1}, (2, 0, 1))
    checkpoints = Checkpoints(tmp_path, 1, 0, 1)
    state, shapes, shardings = placed(make_state(2), devices.make_mesh(), "data_parallel")
    assert_same_state(checkpoints.restore(shapes, shardings), state)
    checkpoints.forget_accuracies()
    assert checkpoints.most_accurate() is None
    checkpoints.save(placed(make_state(3), devices.make_mesh(), "data_parallel")[0], {"val/accuracy": 0.2})
    checkpoints.wait()
    assert checkpoints.most_accurate() == tmp_path / "checkpoints" / "3"
    checkpoints.close()
    assert steps_in(tmp_path) == [3]


@pytest.mark.parametrize("on_time", [{"val/accuracy": 0.2}, {}])
def test_an_accuracy_may_come_later(tmp_path, on_time):
    """As after a stop during an evaluation, for which the next start makes up."""
    save_steps(tmp_path, {1: 0.5}, (1, 0, 1))
    checkpoints = Checkpoints(tmp_path, 1, 0, 1)
    state, shapes, shardings = placed(make_state(2), devices.make_mesh(), "data_parallel")
    checkpoints.save(state, on_time)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 1, 0, 1)
    checkpoints.evaluated(2, {"val/accuracy": math.nan})
    checkpoints.evaluated(3, {"val/accuracy": 0.9})
    checkpoints.evaluated(2, {"other/accuracy": 0.9})
    assert checkpoints.most_accurate() == tmp_path / "checkpoints" / "1"
    checkpoints.evaluated(2, {"val/accuracy": 0.9, "val/loss": 1.0})
    assert checkpoints.most_accurate() == tmp_path / "checkpoints" / "2"
    assert_same_state(checkpoints.restore(shapes, shardings), make_state(2))
    checkpoints.close()
    save_steps(tmp_path, {3: 0.1}, (1, 0, 1))
    assert steps_in(tmp_path) == [2, 3]
