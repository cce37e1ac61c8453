"""Ctrl-C in a command that has nothing to save: one line, and the process ends."""

import os
import signal
import sys
from types import FrameType

EXIT_STATUS = 130  # as the shell gives it to a program that SIGINT ended
MESSAGE = "interrupted"


def leave_in_one_line() -> None:
    """Makes Ctrl-C a KeyboardInterrupt, as it is by default, but while modules are imported an immediate end.

    An exception in the import of a compiled module is not always handled there: TensorFlow's and JAX's can abort the
    process, with their own words. A command that has work to save takes the signal over, by `preemption.Stop`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """Handles the signal."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            print(MESSAGE, file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)
        frame = frame.f_back
    raise KeyboardInterrupt
