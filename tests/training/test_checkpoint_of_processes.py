"""Several processes read a checkpoint together: all of them, or none."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import socket
import subprocess
import sys
import types

import pytest
from tiny_run import ROOT, command, data_dir  # noqa: F401

from mixer.training import integrity
from tests.commands import environment


@pytest.mark.parametrize("fails_here", [True, False])
def test_reading_fails_in_all_processes_or_in_none(monkeypatch, fails_here):
    """Orbax lets them meet after it, where one that has failed would not come."""
    told = []
    monkeypatch.setattr(integrity, "on_all_hosts", lambda condition: told.append(condition) or False)
    handler = types.SimpleNamespace(restore=lambda: 1 / 0 if fails_here else "a state")
    error, said = (ZeroDivisionError, "division") if fails_here else (OSError, "another process cannot read its part")
    with pytest.raises(error, match=said):
        integrity.in_all_or_none(handler).restore()
    assert told == [not fails_here]


FAILS = """
import sys
import orbax.checkpoint as ocp
from mixer import train
restore = ocp.StandardCheckpointHandler.restore
def fails(self, directory, *arguments, **named):
    if "checkpoints/4" in str(directory):
        raise OSError(5, "Input/output error")
    return restore(self, directory, *arguments, **named)
if "--process_id=1" in sys.argv:
    ocp.StandardCheckpointHandler.restore = fails
train.run()
"""


@pytest.mark.slow  # four processes: a minute
def test_a_part_that_one_of_two_processes_cannot_read_makes_both_read_the_checkpoint_before(data_dir, tmp_path):
    """Of a fully sharded state each reads its own part."""

    def trained(steps, *program):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            joined = ["--distributed", f"--coordinator=localhost:{probe.getsockname()[1]}", "--num_processes=2"]
        changes = {"sharding": "fully_sharded", "total_steps": steps, "checkpoint_steps": 2, "eval_steps": 4}
        given = command(data_dir, tmp_path / "run", "--allow_config_change", *joined, **changes)[3:]
        processes = [
            subprocess.Popen(
                [sys.executable, *program, *given, f"--process_id={i}"],
                cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for i in range(2)
        ]  # fmt: skip
        said = [process.communicate(timeout=200)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        return said

    trained(4, "-m", "mixer.train")
    said = trained(6, "-c", FAILS)
    reasons = ["another process cannot read its part", "Input/output error"]
    for one, reason in zip(said, reasons, strict=True):
        assert "Checkpoint 4 skipped, it cannot be read: " in one
        assert reason in one
    assert "continuing from step 2" in said[0]
