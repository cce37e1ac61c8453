"""A run that is asked to stop saves its state, exits with its own status, and later continues to the same bits."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import DROPPING, ROOT, command, data_dir, deterministic, run, tiny  # noqa: F401
from wait_for_line import wait_for

from mixer import train
from mixer.data import pipeline
from mixer.runtime import preemption
from mixer.training.checkpoint import Checkpoints
from mixer.training.checkpoint_reader import load_params
from mixer.training.console import Console
from mixer.training.metrics import read_metrics
from tests.commands import environment


def start(arguments):
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("straight")
    train.train(tiny(data_dir, **DROPPING), folder)
    return folder


def assert_same_run(straight, other):
    for ema in (False, True):
        jax.tree.map(np.testing.assert_array_equal, load_params(straight, ema)[1], load_params(other, ema)[1])
    assert deterministic(other) == deterministic(straight)
    assert [line["step"] for line in read_metrics(other)] == list(range(1, 13))


def test_asked_while_training_it_saves_this_step_and_continues_to_the_same_bits(straight, data_dir, tmp_path):
    # Without the signal, the first checkpoint would be that of step 12.
    changes = {**DROPPING, "checkpoint_steps": 12}
    process = start(command(data_dir, tmp_path, **changes))
    wait_for(process, "step 2/12")
    process.send_signal(signal.SIGTERM)
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == preemption.EXIT_STATUS == 75, complaint
    assert "SIGTERM: saving, then leaving" in complaint
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert 2 <= saved < 12
    assert f"asked to stop: saved at step {saved} of 12" in said

    done = run(command(data_dir, tmp_path, **changes))
    assert done.returncode == 0, done.stderr
    assert f"continuing from step {saved}" in done.stdout
    assert_same_run(straight, tmp_path)


def test_asked_while_starting_it_leaves_at_once(data_dir, tmp_path):
    process = start(command(data_dir, tmp_path, total_steps=100_000))
    wait_for(process, "8 x cpu")  # compiling follows
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=300)
    assert time.monotonic() - before < 2
    assert process.returncode == 75
    assert complaint == "SIGINT: leaving at once\n"
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))


@pytest.mark.parametrize("step", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_an_abandoned_evaluation_is_repeated(straight, data_dir, tmp_path, monkeypatch, step):
    """The request comes at the first batch of an evaluation: in the middle of the run, or at its end."""
    stop, evaluations, original = preemption.Stop(), [], pipeline.eval_batches

    def eval_batches(*arguments, **named):
        evaluations.append(len(evaluations))
        if len(evaluations) == 2 * (step // 6) - 1:  # each evaluated step has two; the second evaluates the averages
            stop._ask("SIGTERM")
        return original(*arguments, **named)

    monkeypatch.setattr(pipeline, "eval_batches", eval_batches)
    config = tiny(data_dir, **DROPPING, checkpoint_steps=12)
    with pytest.raises(preemption.PreemptedError, match=f"saved at step {step} of 12"):
        train.train(config, tmp_path, stop=stop)
    assert "val/count" not in read_metrics(tmp_path)[-1]
    train.train(config, tmp_path)
    assert_same_run(straight, tmp_path)


@pytest.mark.parametrize("during", ["training", "evaluation", "few-shot evaluation"])
def test_saving_begins_within_a_second(data_dir, tmp_path, monkeypatch, during):
    """The request comes at step 7, or within the second evaluation of each kind. A step takes milliseconds."""
    stop, times = preemption.Stop(), {}

    def ask():
        times.setdefault("asked", time.monotonic())
        stop._asked.set()

    class Watching(Console):
        def show(self, step, total_steps, scalars):
            if during == "training" and step == 7:
                ask()

    original, evaluations = pipeline.eval_batches, {"evaluation": 0, "few-shot evaluation": 0}

    def eval_batches(*arguments, **named):
        kind = "few-shot evaluation" if named.get("records") is not None else "evaluation"
        evaluations[kind] += 1
        for batch in original(*arguments, **named):
            if kind == during and evaluations[kind] == 2:
                ask()
            yield batch

    save = Checkpoints.save

    def timed(self, state, metrics):
        times["saving"] = time.monotonic()
        save(self, state, metrics)

    monkeypatch.setattr(pipeline, "eval_batches", eval_batches)
    monkeypatch.setattr(Checkpoints, "save", timed)
    few_shot = {"fewshot.dataset": "fractals/4x20x16", "fewshot.test_split": "validation", "fewshot.shots": (1,)}
    config = tiny(data_dir, checkpoint_steps=12, eval_steps=3, **(few_shot if during == "few-shot evaluation" else {}))
    with pytest.raises(preemption.PreemptedError):
        train.train(config, tmp_path, console=Watching(), stop=stop)
    assert 0 <= times["saving"] - times["asked"] < 1


NOTICED = """
import os, signal, sys, time
import jax
from mixer.runtime import preemption
jax.distributed.initialize(sys.argv[1], 1, 0)
stop = preemption.Stop()
assert not stop.asked()
os.kill(os.getpid(), signal.SIGTERM)  # only JAX listens
until = time.monotonic() + 30
while not stop.asked():
    assert time.monotonic() < until, "JAX's preemption service said nothing"
    time.sleep(0.05)
print("noticed")
"""


def test_a_notice_to_jax_s_preemption_service_counts(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    done = run([sys.executable, "-c", NOTICED, address], devices=1)
    assert done.stdout == "noticed\n", done.stderr


@pytest.mark.parametrize("times", [1, 2])
def test_a_request_before_training_or_a_second_one_ends_the_process_at_once(monkeypatch, capsys, times):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    stop = preemption.Stop()
    if times == 2:
        stop.work_begins()
        stop._ask("SIGTERM")
        assert (left, stop.asked()) == ([], True)
        with pytest.raises(preemption.AbandonedError):
            list(stop.unless_asked(range(3)))
    stop._ask("SIGINT")
    assert left == [75]
    assert capsys.readouterr().err.endswith("SIGINT: leaving at once\n")


LATE = """
import atexit
from mixer.runtime import preemption
atexit.register(print, "the end", flush=True)
atexit.register(preemption.ignore)  # called before the line above
preemption.Stop().listen()
"""


def test_a_signal_at_the_very_end_does_not_change_the_status():
    process = subprocess.Popen([sys.executable, "-c", LATE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "the end\n"
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.returncode == 0


@pytest.mark.slow  # two runs of two processes each: about a minute
def test_a_request_to_one_of_two_processes_stops_both(straight, data_dir, tmp_path):
    changes = {**DROPPING, "checkpoint_steps": 12}

    def start_pair():
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            joined = ["--distributed", f"--coordinator=localhost:{probe.getsockname()[1]}", "--num_processes=2"]
        return [
            subprocess.Popen(
                command(data_dir, tmp_path, *joined, f"--process_id={number}", **changes),
                cwd=ROOT, env=environment(4), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
            )
            for number in range(2)
        ]  # fmt: skip

    first, second = start_pair()
    wait_for(first, "step 2/12")
    second.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300) for process in (first, second)]
    assert [first.returncode, second.returncode] == [75, 75], said
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"asked to stop: saved at step {saved} of 12" in said[0][0]

    pair = start_pair()
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert f"continuing from step {saved}" in said[0][0]
    found, expected = read_metrics(tmp_path), read_metrics(straight)
    assert [line["step"] for line in found] == list(range(1, 13))
    for name in ("train/loss", "val/loss"):
        values = [[line[name] for line in lines if name in line] for lines in (found, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5)
