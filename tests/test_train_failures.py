"""Runs that end early, and what they keep: numbers that are not finite, data that cannot be read, a stop."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from tiny_run import data_dir, deterministic, tiny  # noqa: F401

import mixer.run
from mixer import train
from mixer.data import pipeline, readers
from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.training.checkpoint_reader import load_params
from mixer.training.metrics import read_metrics


def spoiled(original, steps):
    """Training batches of which those of some steps have a loss that is not finite."""

    def train_batches(*arguments, **named):
        for step, batch in zip(named["steps"], original(*arguments, **named), strict=True):
            if step + 1 in steps:
                batch = {**batch, "weight": np.full_like(batch["weight"], np.inf)}
            yield batch

    return train_batches


@pytest.mark.parametrize("log_steps", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_steps_that_are_not_finite_are_left_out_counted_and_limited(data_dir, tmp_path, monkeypatch, log_steps):
    """However seldom the loop looks: nothing but the log says at which step it saw it."""
    monkeypatch.setattr(pipeline, "train_batches", spoiled(pipeline.train_batches, (4, 7)))
    settings = {"log_steps": log_steps, "checkpoint_steps": 5, "checkpoint.keep_best": 0, "max_nonfinite_steps": 2}
    train.train(tiny(data_dir, **settings), tmp_path / "skipping")
    counts = [row.get("train/nonfinite_steps", 0) for row in read_metrics(tmp_path / "skipping")]
    assert counts == {1: [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2], 5: [1, 0, 2, 2]}[log_steps]  # step 6 evaluates only
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path / "skipping")[1]))

    with pytest.raises(UserError, match=r"not finite at step 7, with config.max_nonfinite_steps=1: the run stops"):
        train.train(tiny(data_dir, **{**settings, "max_nonfinite_steps": 1}), tmp_path / "stopping")
    step, params = load_params(tmp_path / "stopping")
    assert step == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_parameters_that_are_not_finite_stop_the_run_before_they_are_saved(data_dir, tmp_path):
    """The loss and the gradient of the only step are finite, and so large is its rate that the norm after it is not."""
    config = tiny(data_dir, **{"optimizer.learning_rate": 1e30, "total_steps": 1})
    with pytest.raises(UserError, match="parameters are not finite at step 1, with"):
        train.train(config, tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)


def test_parameters_that_are_not_finite_are_not_kept_when_the_data_cannot_be_read(data_dir, tmp_path, monkeypatch):
    """The loop has not looked at them yet: it logs after step 5."""
    original = pipeline.train_batches

    def train_batches(*arguments, **named):
        yield from itertools.islice(original(*arguments, **named), 4)
        raise UserError("gs://bucket/shard cannot be read")

    monkeypatch.setattr(pipeline, "train_batches", train_batches)
    settings = {"log_steps": 5, "eval_steps": 12, "checkpoint_steps": 12}
    with pytest.raises(UserError, match="shard cannot be read"):
        train.train(tiny(data_dir, **settings, **{"optimizer.learning_rate": 1e30}), tmp_path / "diverged")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path / "diverged")
    with pytest.raises(UserError, match="shard cannot be read"):
        train.train(tiny(data_dir, **settings), tmp_path / "sound")
    assert 1 <= load_params(tmp_path / "sound")[0] <= 4  # how far reading is ahead depends on the machine


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(data_dir, tmp_path):
    config = tiny(data_dir, **{"optimizer.learning_rate": 1e16, "optimizer.clip_norm": 0.0, "checkpoint_steps": 1})
    with pytest.raises(UserError, match="not finite at step 2"):
        train.train(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path)[1]))


def test_a_run_that_saved_nothing_begins_anew_with_what_it_is_given(data_dir, tmp_path, capsys):
    """So who mends a setting after an early failure need not give another folder."""
    fails = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0, "checkpoint_steps": 12, "eval_at_start": True}
    with pytest.raises(UserError, match=r"lower optimizer.learning_rate, in another --workdir and, if this run has"):
        train.train(tiny(data_dir, **fails, seed=1, loss="sigmoid_xent"), tmp_path / "run")
    assert read_metrics(tmp_path / "run")[0]["step"] == 0
    (tmp_path / "run" / "classes.txt").write_text("another\n")
    for workdir in (tmp_path / "run", tmp_path / "straight"):
        train.train(tiny(data_dir, eval_at_start=True), workdir)
    assert f"{tmp_path / 'run'} has no checkpoint: the run begins anew\n" in capsys.readouterr().out
    assert deterministic(tmp_path / "run") == deterministic(tmp_path / "straight")
    assert [start.config_changes for start in history.read(tmp_path / "run")] == [[], []]
    assert (tmp_path / "run" / "classes.txt").read_text() == (tmp_path / "straight" / "classes.txt").read_text()


def test_a_run_that_stands_where_it_is_to_stop_goes_no_further(data_dir, tmp_path):
    config = tiny(data_dir, eval_steps=12)
    with pytest.raises(UserError, match=r"^--stop_after=13: the run has only 12 steps; give fewer"):
        train.train(config, tmp_path, stop=preemption.Stop(after=13))
    stands = "^--stop_after={}: the run stands at step 4 of 12"
    for after, said in ((4, "saved at step 4 of 12"), (4, stands.format(4)), (2, stands.format(2))):
        with pytest.raises(preemption.PreemptedError, match=said):
            train.train(config, tmp_path, stop=preemption.Stop(after=after))
    assert len(history.read(tmp_path)) == 1
    assert train.train(config, tmp_path, stop=preemption.Stop(after=12))["val/count"] == 8
    with pytest.raises(UserError, match=r"^--stop_after=13: the run has only 12 steps; give fewer"):
        train.train(config, tmp_path, stop=preemption.Stop(after=13))  # also of a run that is done


def test_a_run_whose_data_can_no_longer_be_read_keeps_what_it_has_learned(data_dir, tmp_path, monkeypatch):
    opened, served = readers.open_source, []

    def open_source(config, split, cache_dir):
        source = opened(config, split, cache_dir)

        def fetch(numbers):
            served.extend(numbers)
            # The first sixteen are compared with an earlier start. The last batch is fetched ahead of the step before.
            if len(served) > 16 + 6 * 16:
                raise UserError("gs://bucket/shard cannot be read")
            return source.fetch(numbers)

        return dataclasses.replace(source, fetch=fetch) if split == config.train_split else source

    monkeypatch.setattr(readers, "open_source", open_source)
    settings = {"checkpoint_steps": 12, "eval_steps": 12}
    with pytest.raises(UserError, match="shard cannot be read"):
        train.train(tiny(data_dir, **settings), tmp_path / "run")
    assert 3 <= load_params(tmp_path / "run")[0] <= 5  # how far reading is ahead depends on the machine
    monkeypatch.undo()
    train.train(tiny(data_dir, **settings), tmp_path / "run")
    train.train(tiny(data_dir, **settings), tmp_path / "straight")
    assert deterministic(tmp_path / "run") == deterministic(tmp_path / "straight")


def test_a_run_whose_evaluation_cannot_read_its_images_keeps_what_it_has_learned(data_dir, tmp_path, monkeypatch):
    def fail(*arguments):
        raise UserError("gs://bucket/validation cannot be read")

    config = tiny(data_dir, log_steps=2, checkpoint_steps=12, eval_steps=4)
    monkeypatch.setattr(mixer.run, "evaluate", fail)
    with pytest.raises(UserError, match="validation cannot be read"):
        train.train(config, tmp_path / "run")
    assert load_params(tmp_path / "run")[0] == 4
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [2, 4]
    monkeypatch.undo()
    train.train(config, tmp_path / "run")
    train.train(config, tmp_path / "straight")
    assert load_params(tmp_path / "run")[0] == 12
    jax.tree.map(np.testing.assert_array_equal, *(load_params(tmp_path / name)[1] for name in ("run", "straight")))
