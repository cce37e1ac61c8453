"""Processes that compare before they train: here threads, with a store like that of JAX; and two real ones."""

import concurrent.futures
import contextlib
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import random_models
from tiny_run import ROOT, command, data_dir, tiny  # noqa: F401

from mixer import train
from mixer.runtime import agreement
from mixer.runtime.agreement import DifferenceError, Meeting, Report, difference
from mixer.runtime.errors import UserError
from tests.commands import environment

SAME = {"command": {"seed": "0", "total_steps": "12"}, "software": {"jax": "0.10.2"}}


def facts(**command: str) -> dict[str, dict[str, str]]:
    return {**SAME, "command": SAME["command"] | command}


def test_processes_that_are_alike_have_no_difference():
    assert difference([Report(facts())] * 3) == ""


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([facts(seed="1")], "process 1 differs from process 0: seed is 1, not 0; start all with the same command"),
        ([facts(), facts(seed="1")], "process 2 differs from process 0: seed is 1, not 0; start all with the same"),
        ([facts(seed="1")] * 2, "processes 1 and 2 differ from process 0: seed is 1, not 0; "),
        ([facts(seed="1")] * 9, "processes 1, 2 and 7 more differ from process 0: seed is 1, not 0; "),
        ([facts(seed="1"), facts(seed="2")], "process 1 differs from process 0: seed is 1, not 0 (others differ"),
        ([facts(new="x")], "process 1 differs from process 0: new is x, not missing; "),
        ([facts(a="1", b="2", seed="3", total_steps="4")],
         "process 1 differs from process 0: a is 1, not missing, b is 2, not missing, seed is 3, not 0, and 1 more; "),
        ([SAME | {"software": {"jax": "0.10.1"}}],
         "process 1 differs from process 0: jax is 0.10.1, not 0.10.2; install the same software for all"),
    ],
)  # fmt: skip
def test_a_difference_is_one_line_that_names_processes_and_values(others, said):
    found = difference([Report(facts()), *map(Report, others)])
    assert found.startswith(said)
    assert "\n" not in found


def test_what_cannot_start_and_what_is_not_seen_come_before_differences():
    unseen = Report(facts(seed="1"), unseen_folder="/here/run")
    expected = "the folder /here/run of process 1 is not that of process 0: give all processes a folder that they share"
    assert difference([Report(facts()), unseen]).startswith(expected)
    failed = Report({}, error="no such data")
    assert difference([Report(facts()), unseen, failed]) == "process 2 cannot start: no such data"


class Store:
    """Behaves as the client of JAX's coordination service."""

    def __init__(self, count: int):
        self._values, self._changed, self._barrier = {}, threading.Condition(), threading.Barrier(count)

    def key_value_set(self, key, value):
        with self._changed:
            if key in self._values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._values[key]

    def wait_at_barrier(self, name, timeout_in_ms):
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout_in_ms / 1000)


def together(*processes) -> list[str]:
    """Calls each function with its meeting, in threads. Returns the message of each one's error, "" without one."""
    store = Store(len(processes))

    def one(number: int) -> str:
        meeting = Meeting(store, number, len(processes))
        try:
            with meeting.failures_told():
                processes[number](meeting)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, range(len(processes))))


def test_all_learn_of_a_difference_and_none_without_one(tmp_path):
    def alike(meeting):
        meeting.compare(facts(), tmp_path)

    assert together(alike, alike, alike) == [""] * 3
    assert list(tmp_path.iterdir()) == []
    said = "process 1 differs from process 0: seed is 1, not 0; start all with the same command"
    assert together(alike, lambda meeting: meeting.compare(facts(seed="1"), tmp_path), alike) == [said] * 3


def test_a_second_comparison_is_one_of_its_own(tmp_path):
    def process(meeting, number="7"):
        meeting.compare(facts(), tmp_path)
        meeting.compare({"data": {"examples": number}})

    said = "process 1 differs from process 0: examples is 8, not 7; give all the same data"
    assert together(process, process) == ["", ""]
    assert together(process, lambda meeting: process(meeting, "8")) == [said] * 2


def test_a_folder_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "_LOOKS", 0.1)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    said = together(*(lambda meeting, folder=folder: meeting.compare(facts(), folder) for folder in folders))
    assert said[0] == said[1]
    assert said[0].startswith(f"the folder {folders[1]} of process 1 is not that of process 0: ")


@pytest.mark.parametrize("odd", [0, 1])
def test_a_process_that_cannot_start_ends_the_others(tmp_path, odd):
    def fails(meeting):
        raise UserError("no such data")

    def comes(meeting):
        meeting.compare(facts(), tmp_path, within=20)

    processes = [comes, comes]
    processes[odd] = fails
    expected = [f"process {odd} cannot start: no such data"] * 2
    expected[odd] = "no such data"
    assert together(*processes) == expected


def test_the_wait_for_a_process_has_an_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agreement, "_SILENT", 0.1)
    monkeypatch.setattr(agreement, "_LEAVES", 0.5)
    meeting = Meeting(Store(2), 0, 2)
    with pytest.raises(DifferenceError, match="process 1 cannot start: it did not come within 1 s; see its log"):
        meeting.compare(facts(), tmp_path, within=0.6)
    assert "process 0 waits for process 1\n" in capsys.readouterr().err
    with pytest.raises(DifferenceError, match="process 0 cannot start: it did not come within 1 s"):
        Meeting(Store(2), 1, 2).compare(facts(), tmp_path, within=0.6)


def test_a_process_alone_compares_nothing(tmp_path):
    Meeting(None, 0, 1).compare(facts(), tmp_path / "missing")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def test_the_command_ends_in_each_process_with_one_line_before_it_compiles(data_dir, tmp_path):  # noqa: F811
    joined = ["--distributed", f"--coordinator=localhost:{free_port()}"]
    since = time.monotonic()
    processes = [
        subprocess.Popen(
            command(
                data_dir, tmp_path, *joined, f"--num_processes={2 + i}", f"--process_id={i}",
                **{"optimizer.learning_rate": rate},
            ),
            cwd=ROOT, env=environment(4), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, rate in enumerate((0.001, 0.01))
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    said = (
        "error: process 1 differs from process 0: num_processes is 3, not 2, optimizer.learning_rate is 0.01, not "
        "0.001; start all with the same"
    )
    for error in errors:
        _joining, line = error.splitlines()
        assert line == f"{said} command"
    assert time.monotonic() - since < 60
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_one_process_cannot_read_end_all_in_one_line(data_dir, tmp_path):  # noqa: F811
    """Before one of them looks for devices, in which it would wait for the others."""
    arrays = random_models.flat(random_models.make_params(random_models.make_model()))
    for name in ("whole", "cut"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    with (tmp_path / "cut.npz").open("r+b") as file:
        file.truncate(1000)
    joined = ["--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            command(data_dir, tmp_path / "run", *joined, f"--process_id={i}", init_from=f"{tmp_path}/{name}.npz"),
            cwd=ROOT, env=environment(4), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, name in enumerate(("whole", "cut"))
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert [error.splitlines()[-1] for error in errors] == [
        f"error: process 1 cannot start: {tmp_path}/cut.npz cannot be read: File is not a zip file",
        f"error: {tmp_path}/cut.npz cannot be read: File is not a zip file",
    ]


WORK = """
import sys, time
from mixer.runtime import agreement, distributed, ending
ending._GRACE = 0.5
end, number = ending.Ending(), int(sys.argv[2])
distributed.start(sys.argv[1], 2, number)
end.status = 0
time.sleep(4 * number)
agreement.meeting().end_together()
"""


def test_a_process_that_ends_its_work_early_does_not_end_the_other():
    """Process 0 keeps the store: without it, JAX aborts the other at once."""
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK, address, str(number)], stderr=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not any("another task" in error for error in errors)


def test_processes_compare_what_they_found_and_their_devices(data_dir, tmp_path, monkeypatch):  # noqa: F811
    """Where hosts have other numbers of devices, JAX fails later, with a traceback."""
    found: dict[str, dict[str, str]] = {}
    meeting = Meeting(None, 0, 1)
    monkeypatch.setattr(meeting, "compare", lambda facts, *_, **__: found.update(facts))
    monkeypatch.setattr(agreement, "meeting", lambda: meeting)
    train.train(tiny(data_dir, total_steps=1), tmp_path)
    assert found["devices"] == {"the number of its devices": "8"}
    assert {*found} == {"command", "software", "settings", "data", "devices"}
    assert found["settings"] == {"input.shuffle_block": "1", "model.dtype": "float32"}


def test_the_others_learn_what_process_0_cannot_write(data_dir, tmp_path, monkeypatch):  # noqa: F811
    told, before = [], []
    meeting = Meeting(object(), 0, 1)
    noted = tmp_path / "history.jsonl"
    monkeypatch.setattr(meeting, "compare", lambda facts, *_, **__: before.append(noted.exists()))
    monkeypatch.setattr(meeting, "_tell", told.append)
    monkeypatch.setattr(meeting, "_leave_together", lambda: None)
    monkeypatch.setattr(agreement, "meeting", lambda: meeting)
    settings = {"total_steps": 1, "warmup_steps": 0, "eval_steps": 1}
    train.train(tiny(data_dir, **settings), tmp_path)
    assert before == [False, False, True]

    def refuses(*_, **__):
        raise UserError("no login")

    monkeypatch.setattr(train, "MetricsLog", refuses)
    with pytest.raises(UserError, match="no login"):
        train.train(tiny(data_dir, **settings), tmp_path / "other")
    assert told == ["no login"]
