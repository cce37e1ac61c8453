"""Ctrl-C where nothing is to be saved, and text that the terminal cannot show: no traceback."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

COMMAND = """
import sys, time
from mixer.config import command_line
def main(argv):
    print("ready", flush=True)
    {body}
command_line.run(main, lambda: None)
"""
WITHIN = {"waiting": "time.sleep(60)", "importing": "import slow_module"}


@pytest.mark.parametrize("body", WITHIN.values(), ids=WITHIN)
def test_an_interrupt_is_one_line(tmp_path, body):
    (tmp_path / "slow_module.py").write_text(
        "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('native code aborts')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130


def test_text_that_the_encoding_does_not_have_is_escaped():
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body="print('Köln 狗 \\udcff'); print('ö', file=sys.stderr)")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "\\xf6\n")
    assert done.stdout == "ready\nK\\xf6ln \\u72d7 \\udcff\n"
