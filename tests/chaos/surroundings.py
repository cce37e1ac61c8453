"""Changes the surroundings of a run: a full disk, another number of devices, the death of one of two processes."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from mixer.runtime.preemption import EXIT_STATUS
from tests.chaos import compare
from tests.chaos.phases import committed
from tests.chaos.runs import Run, UnexpectedError
from tests.chaos.trials import SkippedError, Trial

_FULL = "No space left on device"
_ENDS_WITHIN = 300  # seconds
_LEFT = (0, 40, 120, 250)  # KiB of free space; a checkpoint of this model takes about 400

# ---------------------------------------------------------------------------------------------------------------- disk


def disk(trial: Trial) -> None:
    """Fills the file system after some checkpoint, and enlarges it later."""
    on_error = trial.rng.choice(("stop", "stop", "continue"))
    with _small_disk(trial.workdir):
        run = trial.start(**{"checkpoint.on_error": on_error})
        after, left = trial.rng.choice((0, 3, 6, 9, 12)), trial.rng.choice(_LEFT)
        run.wait_until(lambda: bool(run.said) if not after else max(committed(trial.workdir), default=0) >= after)
        _fill(trial.workdir, left)
        trial.did(f"{left} KiB left on the disk after step {run.last_step()}, on_error={on_error}")
        if on_error == "stop":
            _stopped(trial, run, left)
        else:
            _went_on(trial, run)
        last = trial.survive()
        newest = max(committed(trial.workdir))
        trial.expect(newest == trial.total, f"the newest checkpoint is {newest} after: {last.said[-1:]}")


def _stopped(trial: Trial, run: Run, left: int) -> None:
    """Expects that the run ends with one line of error, and that the older checkpoints are whole."""
    while run.alive and run.seconds < _ENDS_WITHIN:
        _fill(trial.workdir, left)  # a deleted checkpoint may have made room for a new one
        time.sleep(0.02)
    run.end()
    trial.outcome.hits["saving"] += 1
    trial.one_error(run, rf"(checkpoint \d+|metrics\.jsonl|config\.json|--workdir).*{_FULL}")
    for step in committed(trial.workdir):
        try:
            compare.state(trial.workdir, step)
        except Exception as error:
            trial.expect(False, f"checkpoint {step} cannot be read after the disk was full: {error}")
    _enlarge(trial.workdir)


def _went_on(trial: Trial, run: Run) -> None:
    """Expects that the run warns, goes on, and saves again as soon as there is space."""
    run.wait_until(lambda: bool(re.search(rf"[Cc]heckpoint \d+ could not .*{_FULL}", run.stderr)))
    trial.outcome.hits["saving"] += 1
    _enlarge(trial.workdir)
    trial.did(f"the disk enlarged after step {run.last_step()}")
    status = run.end()
    trial.expect(status == 0, f"expected it to go on, but it ended with status {status}: {run.stderr[-2000:]}")
    trial.expect(_FULL in run.stderr, f"no line said that the disk was full: {run.stderr[-2000:]}")
    trial.expect("Traceback" not in run.stderr, f"a traceback: {run.stderr[-2000:]}")


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "chaos", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise SkippedError(f"mount is not permitted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(folder: pathlib.Path, left: int) -> None:
    """Grows a file in the run's folder until `left` KiB of space are free."""
    free = os.statvfs(folder)
    more = free.f_bavail * free.f_frsize - left * 1024
    if more > 0:
        with contextlib.suppress(OSError), (folder / "filler").open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), more)


def _enlarge(folder: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True, capture_output=True)


# ------------------------------------------------------------------------------------------------------------- elastic

_UNMIXED = {"mixup.p": 0.0}  # mixup mixes rows of one device, and 16 devices have one row each
_NEAR, _TIGHT, _LOOSE = 3, 1e-5, 1e-3


def elastic(trial: Trial) -> None:
    """Continues a run with another number of devices and another sharding."""
    expected = trial.bench.undisturbed(**_UNMIXED)
    step = trial.rng.randint(2, trial.total - 2)
    if trial.rng.random() < 0.5:
        run = trial.start(f"--stop_after={step}", compiles=True, **_UNMIXED)
        trial.did(f"--stop_after={step}")
    else:
        run = trial.start(compiles=True, **_UNMIXED)
        run.wait_until(lambda: run.last_step() >= step)
        trial.hit(run, signal.SIGTERM)
    if status := run.end():
        trial.expect(
            status == EXIT_STATUS, f"after the request to stop, it ended with status {status}: {run.stderr[-2000:]}"
        )
    saved = max(committed(trial.workdir))
    devices, sharding = trial.rng.choice((1, 2, 4, 16)), trial.rng.choice(("data_parallel", "fully_sharded"))
    trial.did(f"continued from step {saved} on {devices} devices, {sharding}")
    last = trial.start(devices=devices, compiles=True, sharding=sharding, **_UNMIXED)
    trial.finish(last)
    trial.expect(last.continued_from() == saved, f"it continued from step {last.continued_from()}, not {saved}")
    for problem in compare.loss_differences(
        expected.workdir, trial.workdir, trial.total, saved, _NEAR, tight=_TIGHT, loose=_LOOSE
    ):
        trial.expect(False, problem)


# ---------------------------------------------------------------------------------------------------------------- peer

_PATIENCE = 120  # seconds within which a process must notice that another is lost
_MISSED = (
    "Gloo context initialization failed"  # on CPUs, processes must meet within 30 s, which a busy machine may miss
)
_MEETINGS = 3
_ENDED_BY_JAX = "Terminating process because the JAX distributed service detected fatal errors"


def peer(trial: Trial) -> None:
    """Kills one of two processes. The other must end and say why. Started again, both must continue."""
    expected = trial.bench.once("pair", lambda: _undisturbed_pair(trial))
    step, victim = trial.rng.randint(1, trial.total - 4), trial.rng.randrange(2)
    pair = _pair_at(trial, step)
    trial.hit(pair[victim], signal.SIGKILL, f"process {victim} of two")
    other = pair[1 - victim]
    since = other.seconds
    status = other.end(_PATIENCE)
    trial.did(f"the other ended after {other.seconds - since:.0f} s with status {status}")
    trial.expect(status != 0, "the other process ended with status 0")
    told = re.search(rf"error: process {1 - victim} has lost the others|{_ENDED_BY_JAX}", other.stderr)
    trial.expect(bool(told), f"the other process did not say why it ended: {other.stderr[-2000:]}")
    _whole_pair(trial, trial.workdir)
    for problem in compare.differences(expected, trial.workdir, trial.total):
        trial.expect(False, problem)


def _undisturbed_pair(trial: Trial) -> pathlib.Path:
    workdir = trial.bench.folder / "undisturbed" / "pair"
    _whole_pair(trial, workdir)
    return workdir


def _whole_pair(trial: Trial, workdir: pathlib.Path) -> None:
    """Runs two processes to the end. Starts them again if one was too slow to meet the other."""
    for _ in range(_MEETINGS):
        pair = _pair(trial, workdir)
        statuses = [run.end() for run in pair]
        if not any(statuses):
            return
        said = "\n".join(run.stderr[-2000:] for run in pair)
        if _MISSED not in said:
            break
    raise UnexpectedError(f"two processes ended with status {statuses}: {said}")


def _pair_at(trial: Trial, step: int) -> list[Run]:
    """Starts two processes and waits until they reach a step."""
    for _ in range(_MEETINGS):
        pair = _pair(trial, trial.workdir)
        if pair[0].wait_until(lambda: pair[0].last_step() >= step, pause=0.002):  # noqa: B023 (called at once)
            return pair
        statuses = [run.end() for run in pair]
    raise UnexpectedError(
        f"two processes did not reach step {step}; their statuses are {statuses}: {pair[0].stderr[-2000:]}"
    )


def _pair(
    trial: Trial, workdir: pathlib.Path, other: pathlib.Path | None = None, **changes_of_other: object
) -> list[Run]:
    """Starts two processes that train as one. The second may have another folder and other settings."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    joined = ("--distributed", f"--coordinator=localhost:{port}", "--num_processes=2")
    # No cache: only process 0 writes it, so process 0 would find its programs and arrive too early at the meeting.
    runs = [
        Run(trial.bench, folder, *joined, f"--process_id={number}", devices=4, compiles=None, **changes)
        for number, (folder, changes) in enumerate(((workdir, {}), (other or workdir, changes_of_other)))
    ]
    trial.runs += runs
    return runs


# ------------------------------------------------------------------------------------------------------------ mismatch

_DIFFERENCES = {
    "optimizer.learning_rate": "0.5", "seed": "7", "total_steps": "48", "mixup.p": "0.4", "model.hidden_dim": "32",
}  # fmt: skip


def mismatch(trial: Trial) -> None:
    """Starts two processes of which one has another setting or folder. Both must end with a line that says so."""
    name = trial.rng.choice([*_DIFFERENCES, "workdir"])
    trial.did(f"process 1 has another {name}")
    if name == "workdir":
        pair, line = _pair(trial, trial.workdir, trial.folder / "other"), "not seen by process 1"
    else:
        pair = _pair(trial, trial.workdir, **{name: _DIFFERENCES[name]})
        line = f"process 1 differs from process 0 in {name}: "
    for run in pair:
        status = run.end(_PATIENCE)
        trial.expect(status == 1, f"it ended with status {status}: {run.stderr[-2000:]}")
        said = [text for text in run.complained if text.startswith("error:") and line in text]
        trial.expect(len(said) == 1, f"expected one line with {line!r}, not: {run.stderr[-2000:]}")
    expected = trial.bench.once("pair", lambda: _undisturbed_pair(trial))
    _whole_pair(trial, trial.workdir)
    for problem in compare.differences(expected, trial.workdir, trial.total):
        trial.expect(False, problem)
