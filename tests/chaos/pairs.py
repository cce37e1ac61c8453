"""Two processes that train as one."""

import pathlib
import socket
from collections.abc import Sequence
from typing import Any

from tests.chaos.runs import Run, UnexpectedError
from tests.chaos.trials import Trial

_MISSED = (
    "Gloo context initialization failed"  # on CPUs, processes must meet within 30 s, which a busy machine may miss
)
_MEETINGS = 3


def undisturbed(trial: Trial) -> pathlib.Path:
    """Returns the folder of the undisturbed pair. The first call makes it."""

    def make() -> pathlib.Path:
        workdir = trial.bench.folder / "undisturbed" / "pair"
        whole(trial, workdir)
        return workdir

    return trial.bench.once("pair", make)


def whole(trial: Trial, workdir: pathlib.Path) -> None:
    """Runs two processes to the end. Starts them again if one was too slow to meet the other."""
    for _ in range(_MEETINGS):
        pair = start(trial, workdir)
        statuses = [run.end() for run in pair]
        if not any(statuses):
            return
        said = "\n".join(run.stderr[-2000:] for run in pair)
        if _MISSED not in said:
            break
    raise UnexpectedError(f"two processes ended with status {statuses}: {said}")


def at(trial: Trial, step: int) -> list[Run]:
    """Starts two processes and waits until they reach a step."""
    for _ in range(_MEETINGS):
        pair = start(trial, trial.workdir)
        if pair[0].wait_until(lambda: pair[0].last_step() >= step, pause=0.002):  # noqa: B023 (called at once)
            return pair
        statuses = [run.end() for run in pair]
    raise UnexpectedError(
        f"two processes did not reach step {step}; their statuses are {statuses}: {pair[0].stderr[-2000:]}"
    )


def start(
    trial: Trial, workdir: pathlib.Path, folders: Sequence[pathlib.Path] = (),
    changes: Sequence[dict[str, Any]] = ({}, {}), arguments: Sequence[Sequence[str]] = ((), ()),
) -> list[Run]:  # fmt: skip
    """Starts two processes that train as one.

    Args:
      trial: ends them.
      workdir: the run's folder.
      folders: of each process, if they are not the same.
      changes: settings of each process that differ from the bench's.
      arguments: more arguments of each process.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    joined = ("--distributed", f"--coordinator=localhost:{port}", "--num_processes=2")
    # No cache: only process 0 writes it, so process 0 would find its programs and arrive too early at the meeting.
    runs = [
        Run(trial.bench, folder, *joined, f"--process_id={number}", *arguments[number], devices=4, compiles=None,
            **changes[number])
        for number, folder in enumerate(folders or (workdir, workdir))
    ]  # fmt: skip
    trial.runs += runs
    return runs
