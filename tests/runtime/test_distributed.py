"""How processes meet, and the witness of one that is lost. tests/chaos (peer) tries what happens to the others."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mixer.runtime import distributed
from mixer.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]

LOST = """
import os, signal, sys
from mixer.runtime import distributed, preemption
distributed._summon_witness("error: it was lost")
ends = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "aborted": os.abort,
    "at the end": lambda: None,
    "by an exception": lambda: 1 / 0,
    "asked to stop": lambda: preemption.Stop()._ask("SIGTERM"),
}
ends[sys.argv[1]]()
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("killed", -signal.SIGKILL, "error: it was lost\n"),
        ("aborted", -signal.SIGABRT, "error: it was lost\n"),
        ("at the end", 0, ""),
        ("by an exception", 1, "ZeroDivisionError: division by zero\n"),
        ("asked to stop", 75, "SIGTERM: leaving at once\n"),
    ],
)
def test_the_witness_speaks_of_a_process_that_left_without_a_farewell(how, status, said):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        [sys.executable, "-c", LOST, how], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )  # it ends when the witness does, which has its standard error
    assert (done.returncode, done.stderr.splitlines(keepends=True)[-1:]) == (status, [said] if said else [])
    assert ("it was lost" in done.stderr) == (how in ("killed", "aborted"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("host0", 2, 0), "--coordinator=host0: expected an address and a port, such as host0:8476"),
        (("host0:8476", 2, 2), "--distributed --coordinator=host0:8476 --num_processes=2 --process_id=2: JAX could"),
        ((None, None, None), "--distributed: JAX could not join the processes: "),
    ],
)
def test_wrong_arguments_are_told_in_one_line(monkeypatch, arguments, said):
    monkeypatch.setattr(distributed, "_summon_witness", lambda last_words: None)
    with pytest.raises(UserError) as error:
        distributed.start(*arguments)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
