"""A short session of tests.chaos; and its comparison finds a flipped bit and a lost line."""

import json
import shutil

import numpy as np
import pytest

from tests.chaos import compare, session
from tests.chaos.runs import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("chaos"), measures=False, total_steps=12)


def assert_survived(outcomes):
    failed = [session.report(outcome, f"trial {outcome.number}") for outcome in outcomes if outcome.problems]
    assert not failed, "\n".join(failed)


@pytest.mark.slow  # many processes
def test_a_killed_and_a_damaged_run_end_at_the_same_bits(bench):
    assert_survived(session.run(bench, seed=26, trials=dict(enumerate(("kill", "damage")))))


@pytest.mark.slow  # many processes
def test_a_killed_run_in_a_bucket_ends_at_the_same_bits(bench):
    outcomes = session.run(bench, seed=15, trials={0: "bucket"})
    assert_survived(outcomes)
    assert "SIGKILL" in outcomes[0].done[0]  # not one of the kinds that take longer


@pytest.mark.slow  # minutes
def test_a_longer_session_in_buckets(tmp_path):
    outcomes = session.run(Bench(tmp_path), seed=2, trials=dict(enumerate(["bucket"] * 10)))
    assert_survived(outcomes)


@pytest.mark.slow  # minutes
def test_a_longer_session(tmp_path):
    outcomes = session.run(Bench(tmp_path), seed=1, trials=dict(enumerate(session.plan(12, seed=1))))
    assert_survived(outcomes)


@pytest.mark.slow  # it compares what the sessions compare, which are slow too
def test_a_flipped_bit_and_a_lost_line_are_found(bench, tmp_path):
    straight = bench.undisturbed().workdir
    assert compare.differences(straight, straight, 12) == []
    expected = compare.state(straight, 12)
    assert {"['step']", "['params']['head']['kernel']", "['ema_params']['head']['kernel']"} <= expected.keys()
    for name in expected:
        changed = np.frombuffer(expected[name].tobytes(), np.uint8).copy()
        changed[-1] ^= 1
        changed = changed.view(expected[name].dtype).reshape(expected[name].shape)
        assert compare.state_differences(expected, {**expected, name: changed}) == [f"array {name} differs"]
    without = {name: array for name, array in expected.items() if name != "['step']"}
    assert compare.state_differences(expected, without) == ["array ['step'] differs"]

    shutil.copytree(straight, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[5:]))
    assert compare.differences(straight, tmp_path / "run", 12)[0].startswith("metrics.jsonl holds the steps")
    changed_line = json.loads(lines[4]) | {"train/loss": 1.0}
    path.write_text("".join([*lines[:4], json.dumps(changed_line) + "\n", *lines[5:]]))
    (problem,) = compare.differences(straight, tmp_path / "run", 12)
    assert problem.startswith("metrics of step 5 differ")
    limits = {"steps": 12, "near": 3, "tight": 1e-5, "loose": 1e-3}
    for after in (2, 5):  # step 5 is soon after the change, or before it
        (problem,) = compare.loss_differences(straight, tmp_path / "run", after=after, **limits)
        assert problem.startswith("loss of step 5")


def test_the_plan_of_a_session_depends_on_the_seed_alone_and_holds_every_kind():
    planned = session.plan(100, seed=0)
    assert planned == session.plan(100, seed=0) != session.plan(100, seed=1)
    assert set(planned) == set(session.KINDS)
    assert planned.count("peer") == 2
    assert "peer" not in session.plan(20, seed=0)
    assert set(session.plan(5, seed=0, kinds=["damage"])) == {"damage"}
