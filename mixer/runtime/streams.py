"""Standard output and error that cannot end a run: the terminal goes away, the log's disk is full, a pipe is closed."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class _Lasting:
    """A text stream that drops what cannot be written. Each write is tried, so a log continues when there is room."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing() -> None:
    """Opens the standard streams with which the process was not started, as after `>&-`. What they get is lost.

    Else the next file that is opened gets the number of standard error, and the messages of libraries with it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def write_any_text() -> None:
    """Makes the standard streams write text that their encoding does not have, such as names of classes, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test may have put another object here
            stream.reconfigure(errors="backslashreplace")


def outlast() -> None:
    """From here on, nothing that happens to standard output or error is an error."""
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
