"""Command lines that a command refuses, many in one process: it imports once, and a fork answers each."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Leaves without the seconds that Python needs to take everything down.
FORKS = """
import importlib, json, os, sys
folder, name, imported, command_lines = json.loads(sys.argv[1])
command, *_ = map(importlib.import_module, [name, *imported])
for number, arguments in enumerate(command_lines):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = [name, *arguments]
        try:
            command.run()
        except SystemExit as end:
            status = end.code or 0
            if not isinstance(status, int):
                print(status, file=sys.stderr)
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def answers(
    name: str,
    command_lines: Iterable[Sequence[object]],
    *,
    imported: Sequence[str] = (),
    cwd: pathlib.Path = ROOT,
    **environment: str,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command as with `python -m`, once for each command line.

    Args:
      name: the command's module.
      command_lines: their arguments.
      imported: modules that the command imports late, and which all answers need.
      cwd: the folder in which it runs.
      environment: variables for all.
    """
    lines = [[str(argument) for argument in arguments] for arguments in command_lines]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", FORKS, json.dumps([folder, name, imported, lines])], cwd=cwd,
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [
            subprocess.CompletedProcess(
                arguments, int(status), *(pathlib.Path(folder, f"{number}.{stream}").read_text() for stream in (1, 2))
            )
            for number, (arguments, status) in enumerate(zip(lines, done.stdout.split(), strict=True))
        ]
