"""A process ends soon after its main thread, with its status, whatever other threads do."""

import pathlib
import subprocess
import sys
import time

HANGING = """
import sys, threading, time
from mixer.config import command_line

def main(argv):
    threading.Thread(target=time.sleep, args=(600,)).start()
    {body}

command_line.run(main, lambda: None)
"""


ENDS = {  # what the command does -> its status and the end of what it says
    "sys.exit(75)": (75, ""),
    "pass": (0, ""),
    "raise command_line.UserError('a reason')": (1, "error: a reason\n"),
    "raise RuntimeError('a bug')": (1, "RuntimeError: a bug\n"),
}


def test_a_thread_that_never_ends_keeps_no_process():
    since = time.monotonic()
    started = {
        body: subprocess.Popen([sys.executable, "-c", HANGING.format(body=body)], stderr=subprocess.PIPE, text=True)
        for body in ENDS
    }
    for body, (status, said) in ENDS.items():
        stderr = started[body].communicate(timeout=120)[1]
        assert started[body].returncode == status, body
        assert stderr.endswith(said)
        assert ("Traceback" in stderr) == ("a bug" in said)
    assert time.monotonic() - since < 60  # 8 of which are the grace; the rest is a busy machine's


HOLDING = """
import atexit, sys
from mixer import train
from mixer.config import command_line
from mixer.runtime import preemption

class Input:
    def __del__(self):
        print("freed")

def stopped(*arguments, **named):
    held = Input()
    raise {error}

train.train = stopped
atexit.register(print, "leaving")
sys.argv = ["train", "--config=configs/quickstart.py", "--workdir=" + sys.argv[1]]
train.run()
"""


LEAVES = {  # what ends the training -> status
    "preemption.PreemptedError('asked to stop')": 75,
    "KeyboardInterrupt": 130,
    "BrokenPipeError": 1,
    "command_line.UserError('a reason')": 1,
}


def test_what_a_run_holds_is_freed_before_python_ends(tmp_path):
    """TensorFlow's threads, which call Python, have aborted a process that ended with its input alive."""
    root = pathlib.Path(__file__).resolve().parents[2]
    started = {
        error: subprocess.Popen(
            [sys.executable, "-c", HOLDING.format(error=error), str(tmp_path)],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for error in LEAVES
    }  # fmt: skip
    for error, status in LEAVES.items():
        stdout, stderr = started[error].communicate(timeout=120)
        assert started[error].returncode == status, stderr
        if error != "BrokenPipeError":  # nobody reads what it says
            assert [line for line in stdout.splitlines() if line != "asked to stop"] == ["freed", "leaving"], error
