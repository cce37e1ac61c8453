"""The check of a user's set-up tells whether an interrupted run ends at the same bits."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import json
import os
import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest
from etils import epath
from tiny_run import DROPPING, ROOT, command, data_dir, run, tiny  # noqa: F401

from mixer import train, verify_resume
from mixer.runtime import lock
from mixer.runtime.errors import UserError
from mixer.training import checkpoint_reader
from mixer.training.metrics import METRICS_FILE
from tests import commands


@pytest.fixture(scope="module")
def two_runs(data_dir, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for seed, folder in enumerate(folders):
        train.train(tiny(data_dir, ema_decay=0.9, total_steps=2, seed=seed), folder)
    return folders


def test_a_config_is_shortened_with_what_belongs_to_its_length(data_dir):
    found = verify_resume.short(tiny(data_dir, warmup_steps=2, **{"optimizer.warmup_from_zero": True}), 4)
    assert (found.total_steps, found.warmup_steps, found.optimizer.warmup_from_zero) == (4, 0, False)


def test_a_run_does_not_differ_from_itself(two_runs):
    assert verify_resume.differences(two_runs[0], two_runs[0]) == []


def test_arrays_and_metrics_that_differ_are_named(two_runs):
    found = verify_resume.differences(*two_runs)
    assert "params/stem/kernel" in found
    assert "ema_params/stem/kernel" in found
    assert any(name.startswith("opt_state/") for name in found)
    assert "train/loss at step 2" in found  # at step 1 the head is still zero
    assert not [name for name in found if name.startswith(("step", "train/learning_rate", "train/seconds_left"))]


def test_one_bit_of_one_array_is_a_difference(two_runs, monkeypatch):
    original, calls = checkpoint_reader.load_state, []

    def load_state(folder):
        step, state = original(folder)
        calls.append(folder)
        if len(calls) == 2:
            bias = np.array(state["params"]["stem"]["bias"])
            bias.view(np.uint32)[3] ^= 1
            state["params"]["stem"]["bias"] = bias
        return step, state

    monkeypatch.setattr(checkpoint_reader, "load_state", load_state)
    assert verify_resume.differences(two_runs[0], two_runs[0]) == ["params/stem/bias"]


def test_a_step_without_its_metrics_is_a_difference(two_runs, tmp_path):
    (tmp_path / "checkpoints").symlink_to(two_runs[0] / "checkpoints")
    lines = (two_runs[0] / METRICS_FILE).read_text().splitlines()
    (tmp_path / METRICS_FILE).write_text(lines[0] + "\n")
    found = verify_resume.differences(two_runs[0], tmp_path)
    assert "train/loss at step 2" in found
    assert not [name for name in found if not name.endswith(" at step 2")]


def test_the_verdict_is_of_both_runs_and_keeps_them_if_they_differ(two_runs, tmp_path):
    differ, same = epath.Path(tmp_path / "differ"), epath.Path(tmp_path / "same")
    for folder, runs in ((differ, two_runs), (same, two_runs[:1] * 2)):
        for name, run_ in zip(("straight", "interrupted"), runs, strict=True):
            shutil.copytree(run_, folder / name)
    with pytest.raises(UserError, match=r"^interrupted after step 1 of 2, the run did NOT end at the same bits: \d+ a"):
        verify_resume._verdict(differ, 2)
    assert sorted(path.name for path in differ.iterdir()) == ["interrupted", "straight"]
    assert verify_resume._verdict(same, 2).startswith("interrupted after step 1 of 2, the run ended at the same bits: ")
    assert list(same.iterdir()) == []


NOT_READ = {
    "--inspect": "by mixer.verify_resume",
    "--print_config": "by mixer.verify_resume",
    "--stop_after=2": "by mixer.verify_resume",
    "--allow_config_change": "by mixer.verify_resume",
    "--process_id=0": "without --distributed",
}


def test_a_flag_that_would_not_be_read_is_refused(tmp_path):
    start = ["--config", "configs/quickstart.py", f"--workdir={tmp_path}"]
    for flag, why in NOT_READ.items():
        done = commands.run("mixer.verify_resume", *start, flag)
        name = flag.partition("=")[0]
        assert (done.returncode, done.stderr) == (1, f"error: {name} would not be read {why}; leave it out\n")
    done = commands.run("mixer.verify_resume", *start, "--steps=1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: flag --steps=1: ")
    assert list(tmp_path.iterdir()) == []


def test_a_second_start_disturbs_nothing(tmp_path):
    folder = tmp_path / "verify_resume"
    (folder / "straight").mkdir(parents=True)
    with lock.held(folder, print):
        done = commands.run("mixer.verify_resume", "--config", "configs/quickstart.py", f"--workdir={tmp_path}")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"error: {folder} is in use: process {os.getpid()} on ")
    assert list(folder.iterdir()) == [folder / "straight"]


def test_the_training_ends_with_the_command(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path)
    arguments[2] = "mixer.verify_resume"
    variables = {**commands.environment(1), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    with process.stdout:
        for line in process.stdout:
            if line.startswith("compiling the training step"):
                break
    training = json.loads((tmp_path / "verify_resume" / "straight" / lock.FILE).read_text())["pid"]
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert not pathlib.Path(f"/proc/{training}").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["verify_resume"]  # nothing of the temporary folder


@pytest.mark.slow  # four processes: half a minute
def test_the_command_verifies_and_leaves_nothing(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path, **DROPPING, dropout_keys="rbg")
    arguments[2] = "mixer.verify_resume"
    done = run([*arguments, "--steps=4"])
    assert done.returncode == 0, done.stderr
    assert "interrupted after step 2 of 4, the run ended at the same bits: " in done.stdout
    assert "asked to stop: saved at step 2 of 4" in done.stdout
    assert "continuing from step 2" in done.stdout
    assert list(tmp_path.iterdir()) == []
