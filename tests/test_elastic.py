"""A run continues on other devices, with another sharding, and with some other settings."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest
from tiny_run import DROPPING, command, data_dir, run, tiny  # noqa: F401

import mixer.run
from mixer import train
from mixer.config import run_folder
from mixer.runtime import devices, preemption
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.training.metrics import read_metrics

# Wide enough that fully_sharded splits some arrays. Mixup has groups of two rows, so 16 devices can mix 32 rows.
WIDE = {**DROPPING, "model.hidden_dim": 64, "model.channels_mlp_dim": 256, "batch_size": 32}


def losses(workdir):
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 13))
    return [line["train/loss"] for line in lines]


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.train(tiny(data_dir, **WIDE), folder)
    return losses(folder)


@pytest.mark.slow  # two and a half minutes
def test_a_run_moves_from_8_devices_to_4_to_2_to_1(undisturbed, data_dir, tmp_path, monkeypatch):
    """Its sharding changes too. The batches stay the same, and so the losses are equal up to rounding."""
    for count, kind, until in (
        (8, "data_parallel", 3), (4, "fully_sharded", 6), (2, "data_parallel", 8), (8, "fully_sharded", 10),
        (1, "data_parallel", 12),
    ):  # fmt: skip
        mesh = devices.make_mesh(jax.devices()[:count])
        monkeypatch.setattr(devices, "make_mesh", lambda mesh=mesh: mesh)
        stop = preemption.Stop(after=until) if until < 12 else None
        config = tiny(data_dir, **WIDE, sharding=kind)
        if stop:
            with pytest.raises(preemption.PreemptedError, match=f"saved at step {until} of 12"):
                train.train(config, tmp_path, stop=stop)
        else:
            train.train(config, tmp_path)
        monkeypatch.undo()
    found = losses(tmp_path)
    # Rounding errors grow with each step: only the first three steps after the first move keep the tight bound.
    np.testing.assert_allclose(found[:6], undisturbed[:6], rtol=1e-5)
    np.testing.assert_allclose(found, undisturbed, rtol=1e-3)


@pytest.mark.slow
def test_a_run_moves_from_8_devices_to_16(undisturbed, data_dir, tmp_path):
    """The command starts a second process, because the number of devices of a process is fixed."""
    half = run(command(data_dir, tmp_path, "--stop_after=6", **WIDE))
    assert half.returncode == preemption.EXIT_STATUS, half.stderr
    rest = run(command(data_dir, tmp_path, **WIDE, sharding="fully_sharded"), devices=16)
    assert rest.returncode == 0, rest.stderr
    assert "continuing from step 6; sharding: 'data_parallel' before, 'fully_sharded' now" in rest.stdout
    np.testing.assert_allclose(losses(tmp_path), undisturbed, rtol=1e-3)
    np.testing.assert_allclose(losses(tmp_path)[:9], undisturbed[:9], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- config drift


@pytest.fixture(scope="module")
def first_start(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(preemption.PreemptedError):
        train.train(tiny(data_dir), folder, stop=preemption.Stop(after=2))
    return folder


@pytest.fixture
def begun(first_start, tmp_path):
    """A run of two steps: a copy for each test."""
    return shutil.copytree(first_start, tmp_path / "run")


def test_what_is_not_computed_may_change(begun, data_dir, capsys):
    changes = {"log_steps": 4, "checkpoint_steps": 6, "checkpoint.keep_last": 3}
    train.train(tiny(data_dir, **changes), begun)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("continuing"))
    assert line == (
        "continuing from step 2; checkpoint.keep_last: 2 before, 3 now; checkpoint_steps: 3 before, 6 now; "
        "log_steps: 1 before, 4 now"
    )


def test_what_is_computed_may_change_when_asked_for(begun, data_dir, capsys):
    config = tiny(data_dir, seed=1, **{"optimizer.learning_rate": 1e-4, "log_steps": 2})
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.003 before, 0.0001 now; seed: 0 before, 1 now\)"):
        train.train(config, begun)
    train.train(config, begun, allow_config_change=True)
    said = capsys.readouterr().out
    assert "; seed: 0 before, 1 now" in said
    assert "do not count" not in said
    assert read_metrics(begun)[-1]["step"] == 12
    assert run_folder.load_config(begun).seed == 1


def test_accuracies_of_another_evaluation_do_not_rank_checkpoints(data_dir, tmp_path, capsys):
    keep = {"total_steps": 6, "eval_steps": 2, "checkpoint_steps": 2, "checkpoint.keep_last": 1}
    with pytest.raises(preemption.PreemptedError):
        train.train(tiny(data_dir, **keep), tmp_path, stop=preemption.Stop(after=2))
    metrics = tmp_path / "checkpoints" / "2" / "metrics" / "metrics"
    metrics.write_text('{"val/accuracy": 2.0}')  # better than any to come
    with pytest.raises(preemption.PreemptedError):
        train.train(tiny(data_dir, **keep), tmp_path, stop=preemption.Stop(after=4))
    assert sorted(path.name for path in metrics.parents[2].iterdir()) == ["2", "4"]
    assert "do not count" not in capsys.readouterr().out
    train.train(tiny(data_dir, **keep, **{"input.eval_split": "train[:8]"}), tmp_path, allow_config_change=True)
    assert "the accuracies of earlier checkpoints do not count any more" in capsys.readouterr().out
    assert "2" not in {path.name for path in metrics.parents[2].iterdir()}


@pytest.mark.parametrize(
    ("settings", "data", "counts"),
    [
        (["input.eval_split: 'test' before, 'train' now"], [], False),
        (["input.max_labels: 2 before, 3 now"], [], False),
        (["input.image_size: 224 before, 256 now"], [], False),  # which the weights of BiT allow
        (["input.max_bad_share: 0.01 before, 0.5 now", "input.flip: True before, False now"], [], True),
        ([], ["the number of examples of the data of evaluator val: 8 before, 9 now"], False),
        ([], ["the digest of a sample of the data of evaluator val (folder test): a before, b now"], False),
        ([], ["the number of examples of the data of evaluator valid (folder test): 8 before, 9 now"], True),
    ],
)
def test_which_changes_make_another_evaluation(settings, data, counts):
    run = types.SimpleNamespace(start=types.SimpleNamespace(config_changes=settings, data_changes=data))
    assert mixer.run.Run.evaluates_otherwise(run) == (not counts)


def test_a_change_that_the_state_does_not_fit_is_refused_and_nothing_is_lost(begun, data_dir, caplog):
    sound = r"are sound, .*: params\.MixerBlock_0.* has the shape \(16,\) there, and the config asks for \(32,\)"
    with pytest.raises(UserError, match=sound):
        train.train(tiny(data_dir, **{"model.hidden_dim": 32}), begun, allow_config_change=True)
    first = {"init_from": "runs/other", "stem_init": "whitening", "model.identity_init": True}
    for name, value in (first | {"model.head_bias_init": -5.0}).items():
        with pytest.raises(
            UserError, match=rf"config\.{name}: .* now, but a run that continues has parameters and would"
        ):
            train.train(tiny(data_dir, **{name: value}), begun, allow_config_change=True)
    with pytest.raises(UserError, match=r"params\.MixerBlock_2.* is missing there, and the config asks for \(16,\)"):
        train.train(tiny(data_dir, **{"model.num_blocks": 3}), begun, allow_config_change=True)
    with pytest.raises(
        UserError, match=r"params\.MixerBlock_1.* has the shape \(16,\) there, and the config asks for none"
    ):
        train.train(tiny(data_dir, **{"model.num_blocks": 1}), begun, allow_config_change=True)
    assert run_folder.load_config(begun).model.hidden_dim == 16
    train.train(tiny(data_dir), begun)
    assert read_metrics(begun)[-1]["step"] == 12


def test_a_config_that_a_crash_left_unreadable_is_written_anew(begun, data_dir, caplog):
    """What was left to the run is as it was, not as this machine would have it."""
    started = history.read(begun)
    assert started[-1].decided == {"input.shuffle_block": 1, "model.dtype": "float32", "model.tokens_mlp_dim": 8}
    (begun / history.FILE).unlink()
    history.add(begun, dataclasses.replace(started[-1], decided={"model.dtype": "bfloat16", "input.shuffle_block": 2}))
    (begun / run_folder.CONFIG_FILE).write_text('{"seed": 0')
    train.train(tiny(data_dir, **{"model.dtype": "auto"}), begun)
    assert len([record for record in caplog.records if "config.json is not the config of a run" in record.message]) == 1
    written = run_folder.load_config(begun)
    assert (written.seed, written.model.dtype, written.input.shuffle_block) == (0, "bfloat16", 2)
