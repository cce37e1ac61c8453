"""Counts libjpeg's warnings of the images that it decodes, instead of a line on standard error for each.

TensorFlow's libjpeg writes them to file descriptor 2, and offers no other way to them. So a process of its own, the
filter, is put before the descriptor: this file, run as a script. It passes on at once whatever else comes, such as the
last words of a crash, and lives as long as a process has the descriptor. Python's own standard error stays as it was.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from typing import TypeGuard

# The warnings of libjpeg's jerror.h. It writes each line at once, and a pipe keeps such a write in one piece.
_WARNING = re.compile(
    rb"(?m)^(?:Corrupt JPEG data: .+|Premature end of JPEG file|Inconsistent progression sequence for .+|"
    rb"Invalid SOS parameters for sequential JPEG|Unknown Adobe color transform code .+|"
    rb"Warning: unknown JFIF revision number .+|Application transferred too many scanlines)\n"
)
_NOT_KIND = re.compile(r"^(?:Corrupt JPEG data|Warning): | ?(?:0x[\da-f]+|\d+(?:\.\d+)?)")
_MOST = 1 << 20  # bytes at a time, as many as a pipe holds, so that no write is cut in two
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
_PATIENCE = 1.0  # seconds that a command waits for the counts


@dataclasses.dataclass
class _Command:
    """What a command has of standard error and of its filter.

    Attributes:
      stderr: a descriptor of the standard error with which it was started; None outside of a command.
      answers: a descriptor from which the counts are read; None until there is a filter.
      question: the bytes that ask for them.
    """

    stderr: int | None = None
    answers: int | None = None
    question: bytes = b""


_command = _Command()


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Lets `begin` start the filter within the block, at whose end one line says what was counted.

    Python's standard error and the traces of faulthandler go to the original descriptor, in the order in which they are
    written, also later.
    """
    if _is_standard_error(sys.stderr):
        _command.stderr = os.dup(2)
        sys.stderr = _like(sys.stderr, _command.stderr)
    try:
        yield
    finally:
        if line := _said(_counts()):
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
                print(line, file=sys.stderr, flush=True)


def _is_standard_error(stream: object) -> TypeGuard[io.TextIOWrapper]:
    """Returns whether a stream is that of descriptor 2. In a notebook or a test it is someone else's."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == 2
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return False


def _like(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    """Returns a stream with the settings of another one."""
    found = os.fdopen(descriptor, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)
    found.reconfigure(line_buffering=stream.line_buffering, write_through=stream.write_through)
    return found


def begin() -> None:
    """Starts the filter, if this process is a command. Whoever imports TensorFlow calls it before."""
    if _command.stderr is None or _command.answers is not None or not sys.executable:
        return
    # No process can be started, or this system's posix_spawn cannot begin a session: libjpeg's lines are then seen.
    with contextlib.suppress(OSError, NotImplementedError):
        _start(_command.stderr)


def _start(stderr: int) -> None:
    token = os.urandom(16).hex()
    lines, to_filter = os.pipe()
    answers, from_filter = os.pipe()
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", os.path.abspath(__file__), token],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, descriptor, number)
                for number, descriptor in enumerate((lines, from_filter, stderr))
            ],
            setsid=True,  # a terminal's Ctrl-C is not for the filter
            setsigmask=_SIGNALS,  # until it ignores them
        )
        os.dup2(to_filter, 2)
    except BaseException:
        os.close(answers)
        raise
    finally:
        for descriptor in (lines, to_filter, from_filter):
            os.close(descriptor)
    _command.answers, _command.question = answers, f"\0{token}\n".encode()


def _counts() -> dict[str, int]:
    """Asks the filter for the number of warnings of each kind. None are known if it does not answer in time."""
    answers = _command.answers
    if answers is None:
        return {}
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], _PATIENCE)[1]:
            os.write(2, _command.question)
            if select.select([answers], [], [], _PATIENCE)[0]:
                found: dict[str, int] = json.loads(os.read(answers, _MOST))
                return found
    return {}


def _said(counts: dict[str, int]) -> str:
    """Returns the line for these counts; empty if there are none."""
    if not counts:
        return ""
    total = sum(counts.values())
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in counts.items())
    return f"libjpeg warned of {total:,} decoded image{'s' * (total > 1)}: {kinds}; see docs/data.md"


# ---------------------------------------------------------------------------------------------------------- the filter


def _filter(question: bytes) -> None:
    """Passes on what is read from standard input to standard error, without the warnings, until it ends.

    Whenever the question is read, the counts are written to standard output as JSON.
    """
    counts: dict[str, int] = {}

    def count(warning: re.Match[bytes]) -> bytes:
        kind = _NOT_KIND.sub("", warning[0].decode("ascii", "replace")).strip()
        counts[kind] = counts.get(kind, 0) + 1
        return b""

    while data := os.read(0, _MOST):
        others = _WARNING.sub(count, data)
        _write(2, others.replace(question, b""))
        if question in data:
            _write(1, json.dumps(counts).encode())


def _write(descriptor: int, data: bytes) -> None:
    """Writes what can be written: a disk may be full, and whoever reads may be gone."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        os.chdir("/")  # keeps no folder in use
    _filter(f"\0{sys.argv[1]}\n".encode())
