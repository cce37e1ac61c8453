"""One trial: the runs that it starts, what was done to them, and what was found to be wrong."""

import collections
import dataclasses
import pathlib
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable

from tests.chaos import compare
from tests.chaos.phases import phase
from tests.chaos.runs import DEVICES, Bench, Run, UnexpectedError


class SkippedError(Exception):
    """This machine does not allow this kind of trial."""


@dataclasses.dataclass
class Outcome:
    """What a trial came to.

    Attributes:
      number: of the trial in its session; with the seed it decides all that was drawn.
      kind: of the disturbance.
      done: what was done, in words, in order.
      hits: how often each phase of a run was hit.
      problems: what was wrong; nothing if the run survived and came to the same bits.
      skipped: why it was not tried.
      seconds: what it took.
    """

    number: int
    kind: str
    done: list[str] = dataclasses.field(default_factory=list)
    hits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


class Trial:
    """What the kinds of trial work with."""

    def __init__(self, bench: Bench, seed: int, outcome: Outcome):
        self.bench, self.outcome = bench, outcome
        self.rng = random.Random(f"{seed}/{outcome.number}")
        self.folder = bench.folder / f"trial{outcome.number}"
        self.workdir = self.folder / "run"
        self.total = bench.settings["total_steps"]
        self.runs: list[Run] = []

    def start(self, *arguments: str, devices: int = DEVICES, compiles: bool = False, **changes) -> Run:
        """Starts the command; the trial's end is the process's end."""
        run = Run(self.bench, self.workdir, *arguments, devices=devices, compiles=compiles, **changes)
        self.runs.append(run)
        return run

    def did(self, what: str) -> None:
        self.outcome.done.append(what)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Notes a problem that the trial can go on with."""
        if not holds:
            self.outcome.problems.append(otherwise)

    def hit(self, run: Run, number: signal.Signals, why: str = "") -> None:
        """Sends a signal and notes what the run was doing; SIGKILL also waits for the end."""
        run.send(number)
        seconds = run.seconds
        if number == signal.SIGKILL:
            run.end()  # so that all that it said is read, and its folder stands still
        doing = phase(run)
        self.outcome.hits[doing] += 1
        when = f"at {seconds:.2f} s" + (f" ({why})" if why else "")
        self.did(f"{number.name} {when}, while {doing}, last at step {run.last_step()}")

    def finish(self, run: Run) -> None:
        """Waits for a run that must end well."""
        status = run.end()
        if status:
            raise UnexpectedError(f"the last start ended with status {status}: {run.stderr[-2000:]}")
        self.expect("Traceback" not in run.stderr, f"the last start said: {run.stderr[-2000:]}")

    def survive(self, **changes) -> Run:
        """The last start: it must end well and come to the bits of the undisturbed run."""
        run = self.start(**changes)
        self.finish(run)
        for problem in compare.differences(self.bench.undisturbed().workdir, self.workdir, self.total):
            self.expect(False, problem)
        return run

    def one_error(self, run: Run, pattern: str) -> None:
        """Expects that a run ended with status 1 and one line of error which says this."""
        errors = [line for line in run.complained if line.startswith("error:")]
        self.expect(run.end() == 1, f"status {run.end()} instead of 1")
        self.expect(len(errors) == 1 and bool(re.search(pattern, errors[0])), f"expected one line of error with "
                    f"{pattern!r}, not: {run.stderr[-2000:]}")  # fmt: skip
        self.expect("Traceback" not in run.stderr, f"a traceback: {run.stderr[-2000:]}")


def conduct(bench: Bench, seed: int, number: int, kind: str, disturb: Callable[[Trial], None]) -> Outcome:
    """Runs one trial to its end, whatever that is, and removes what a good one left."""
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
    except Exception:  # a mistake in the trial itself, or a folder that is not what it should be
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
