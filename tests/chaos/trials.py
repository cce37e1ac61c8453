"""A trial: the runs that it starts, what it does to them, and what goes wrong."""

import collections
import contextlib
import dataclasses
import pathlib
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator

from tests.chaos import compare
from tests.chaos.phases import phase
from tests.chaos.places import InBucket, Place
from tests.chaos.runs import DEVICES, Bench, Run, UnexpectedError


class SkippedError(Exception):
    """This kind of trial is not possible on this machine."""


@dataclasses.dataclass
class Outcome:
    """The outcome of a trial.

    Attributes:
      number: of the trial in its session. The session's seed and this number decide all that is drawn.
      kind: of the disturbance.
      done: what was done, one line for each disturbance.
      hits: how often each phase of a run was hit.
      problems: what was wrong; empty if the run survived and ended at the same bits.
      skipped: why the trial was not possible; "" if it was.
      seconds: the duration of the trial.
    """

    number: int
    kind: str
    done: list[str] = dataclasses.field(default_factory=list)
    hits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


class Trial:
    """A trial in progress. The functions of each kind of trial work with it."""

    def __init__(self, bench: Bench, seed: int, outcome: Outcome):
        self.bench, self.outcome = bench, outcome
        self.rng = random.Random(f"{seed}/{outcome.number}")
        self.folder = bench.folder / f"trial{outcome.number}"
        self.workdir: Place = self.folder / "run"
        self.total = bench.settings["total_steps"]
        self.runs: list[Run] = []

    def start(self, *arguments: str, devices: int = DEVICES, compiles: bool = False, **changes) -> Run:
        """Starts the command. The process ends with the trial at the latest. See `Run` for the arguments."""
        run = Run(self.bench, self.workdir, *arguments, devices=devices, compiles=compiles, **changes)
        self.runs.append(run)
        return run

    @contextlib.contextmanager
    def files(self) -> Iterator[pathlib.Path]:
        """Yields the run's folder on this disk; of one in a bucket a copy, whose changes are then made there."""
        if isinstance(self.workdir, InBucket):
            with self.workdir.as_folder(self.folder / "copy") as folder:
                yield folder
        else:
            yield self.workdir

    def did(self, what: str) -> None:
        """Notes a disturbance."""
        self.outcome.done.append(what)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Notes a problem if a condition does not hold. The trial goes on."""
        if not holds:
            self.outcome.problems.append(otherwise)

    def hit(self, run: Run, number: signal.Signals, why: str = "") -> None:
        """Sends a signal and notes what the run was doing. After SIGKILL, waits for the end of the process."""
        run.send(number)
        seconds = run.seconds
        if number == signal.SIGKILL:
            run.end()  # then all its lines are read, and its folder no longer changes
        doing = phase(run)
        self.outcome.hits[doing] += 1
        when = f"at {seconds:.2f} s" + (f" ({why})" if why else "")
        self.did(f"{number.name} {when}, while {doing}, last at step {run.last_step()}")

    def finish(self, run: Run) -> None:
        """Waits for the last run of the trial, which must succeed."""
        status = run.end()
        if status:
            raise UnexpectedError(f"the last start ended with status {status}: {run.stderr[-2000:]}")
        self.expect("Traceback" not in run.stderr, f"the last start said: {run.stderr[-2000:]}")

    def survive(self, **changes) -> Run:
        """Starts the last run. It must succeed and end at the same bits as the undisturbed run."""
        run = self.start(**changes)
        self.finish(run)
        self.compare(self.bench.undisturbed().workdir)
        return run

    def compare(self, expected: pathlib.Path) -> None:
        """Expects that the run ended at the same bits as the one in this folder."""
        with self.files() as workdir:
            for problem in compare.differences(expected, workdir, self.total):
                self.expect(False, problem)

    def one_error(self, run: Run, pattern: str) -> None:
        """Expects that a run ends with status 1 and one line of error that matches the pattern."""
        status = run.end()
        errors = [line for line in run.complained if line.startswith("error:")]
        self.expect(status == 1, f"status {status} instead of 1")
        self.expect(len(errors) == 1 and bool(re.search(pattern, errors[0])), f"expected one line of error with "
                    f"{pattern!r}, not: {run.stderr[-2000:]}")  # fmt: skip
        self.expect("Traceback" not in run.stderr, f"a traceback: {run.stderr[-2000:]}")


def conduct(bench: Bench, seed: int, number: int, kind: str, disturb: Callable[[Trial], None]) -> Outcome:
    """Runs a trial. Deletes its files if nothing went wrong."""
    outcome = Outcome(number, kind)
    trial = Trial(bench, seed, outcome)
    trial.folder.mkdir()
    since = time.monotonic()
    try:
        disturb(trial)
    except SkippedError as reason:
        outcome.skipped = str(reason)
    except UnexpectedError as error:
        outcome.problems.append(str(error))
    except Exception:  # a bug in the trial itself, or unexpected files
        outcome.problems.append(traceback.format_exc())
    finally:
        for run in trial.runs:
            run.kill()
    outcome.seconds = time.monotonic() - since
    if not outcome.problems:
        _remove(trial.folder)
    return outcome


def _remove(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
