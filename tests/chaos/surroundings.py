"""Changes the surroundings of a run: a full disk, another number of devices, the death of one of two processes."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator

from mixer.runtime.preemption import EXIT_STATUS
from tests.chaos import compare, pairs
from tests.chaos.phases import committed
from tests.chaos.runs import Run
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
_ENDED_BY_JAX = "Terminating process because the JAX distributed service detected fatal errors"


def peer(trial: Trial) -> None:
    """Kills one of two processes. The other must end and say why. Started again, both must continue."""
    expected = pairs.undisturbed(trial)
    step, victim = trial.rng.randint(1, trial.total - 4), trial.rng.randrange(2)
    pair = pairs.at(trial, step)
    trial.hit(pair[victim], signal.SIGKILL, f"process {victim} of two")
    other = pair[1 - victim]
    since = other.seconds
    status = other.end(_PATIENCE)
    trial.did(f"the other ended after {other.seconds - since:.0f} s with status {status}")
    trial.expect(status != 0, "the other process ended with status 0")
    told = re.search(rf"error: process {1 - victim} cannot go on|{_ENDED_BY_JAX}", other.stderr)
    trial.expect(bool(told), f"the other process did not say why it ended: {other.stderr[-2000:]}")
    pairs.whole(trial, trial.workdir)
    for problem in compare.differences(expected, trial.workdir, trial.total):
        trial.expect(False, problem)
