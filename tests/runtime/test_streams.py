"""Whatever happens to standard output or error, a run goes on, and a request to stop saves."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import os
import pty
import shlex
import subprocess
import sys

import pytest
from run_python import run_python
from tiny_run import ROOT, command, data_dir, deterministic, tiny  # noqa: F401

from mixer import train
from mixer.training.checkpoint_reader import load_params
from tests.commands import environment


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train.train(tiny(data_dir), folder)
    return folder


def test_a_full_disk_under_the_log_and_a_closed_pipe_do_not_end_a_run(straight, data_dir, tmp_path):
    with open("/dev/full", "w") as full:
        started = [
            subprocess.Popen(
                command(data_dir, tmp_path / name),
                cwd=ROOT, env=environment(8), stdout=stdout, stderr=subprocess.STDOUT, text=True,
            )
            for name, stdout in (("full", full), ("closed", subprocess.PIPE))
        ]  # fmt: skip
    with started[1].stdout as pipe:
        pipe.readline()  # and nobody reads the rest
    for process, name in zip(started, ("full", "closed"), strict=True):
        assert process.wait(timeout=300) == 0
        assert deterministic(tmp_path / name) == deterministic(straight)


def test_control_c_with_tee_saves(data_dir, tmp_path):
    """Ctrl-C goes to every process of the pipeline, so tee is gone when the run says that it saves."""
    words = shlex.join(command(data_dir, tmp_path / "run", total_steps=4000, checkpoint_steps=4000))
    script = f"{words} 2>&1 | tee {tmp_path}/log; echo ${{PIPESTATUS[0]}} > {tmp_path}/status"
    shell = subprocess.Popen(
        ["bash", "-c", script], cwd=ROOT, env=environment(8), start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    with shell.stdout as lines:
        for line in lines:
            if line.startswith("step 3/"):
                # To all but the shell, which a terminal's Ctrl-C would end too, and with it what it knows.
                subprocess.run(["pkill", "-INT", "-P", str(shell.pid)], check=True)
                break
        shell.wait(timeout=300)
    assert (tmp_path / "status").read_text() == "75\n"
    assert load_params(tmp_path / "run")[0] >= 3


# Makes standard input the terminal of this session, then becomes the command.
TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_that_goes_away_saves(data_dir, tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *command(data_dir, tmp_path / "run", total_steps=4000, checkpoint_steps=4000)],
        cwd=ROOT, env=environment(8), stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while b"step 3/" not in seen:
        seen += os.read(leader, 1000)
    os.close(leader)  # the terminal's processes get SIGHUP, and errors when they write
    assert process.wait(timeout=300) == 75
    assert load_params(tmp_path / "run")[0] >= 3


SIGNALS = """
import os, signal, time
from mixer.runtime import preemption
if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop = preemption.Stop()
stop.listen()
stop.work_begins()
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    os.kill(os.getpid(), getattr(signal, name))
    limit = time.monotonic() + (1 if {nohup} else 20)
    while not stop.asked() and time.monotonic() < limit:
        time.sleep(0.01)
    print(name, stop.asked(), flush=True)
    stop._asked.clear()
"""


@pytest.mark.parametrize("nohup", [False, True])
def test_every_signal_that_announces_an_end_asks_to_stop(nohup):
    said = " ".join(run_python(SIGNALS.format(nohup=nohup))).split()
    assert said[::2] == ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]
    assert said[1::2] == ["True", "True", str(not nohup), "True", "True"]


MISSING = """
import os, sys
from mixer.runtime import streams
streams.open_missing()
with open({path!r}, "w") as file:
    assert file.fileno() > 2
    os.write(2, b"a library's message")
    file.write("mine")
print("said")
sys.stdout.flush()
"""


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_a_stream_that_was_closed_is_not_taken_by_a_file(tmp_path, closed):
    path = tmp_path / "file"
    script = MISSING.format(path=str(path))
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0
    assert path.read_text() == "mine"


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    arguments = [sys.executable, "-m", "mixer.train", "--config", "configs/quickstart.py", "--print_config"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
