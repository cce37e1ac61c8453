"""A process ends soon after its main thread, with its status, whatever other threads do."""

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
