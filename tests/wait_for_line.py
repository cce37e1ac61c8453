"""Waits for a line of a process."""

import subprocess


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    """Reads standard output until a line that begins so.

    Raises:
      AssertionError: the process ended without such a line.
    """
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the process ended without a line {beginning!r}: {process.stderr.read()}")
