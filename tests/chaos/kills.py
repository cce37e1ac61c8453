"""Ends a run at any moment: by SIGKILL, or by a signal that asks it to stop."""

import signal
import time

from mixer.runtime.preemption import EXIT_STATUS
from tests.chaos.phases import MOMENTS, committed, wait_for
from tests.chaos.runs import Run
from tests.chaos.trials import Trial

_ASKED = (signal.SIGTERM, signal.SIGINT)

# Statuses of a process that a signal ended before the run installed its handlers, as Python and as a shell report them.
_BEFORE_HANDLERS = {status for number in _ASKED for status in (-number, 128 + number)}


def at_any_time(trial: Trial, run: Run) -> str:
    """Waits until a moment that is drawn uniformly from the duration of a run."""
    moment = trial.rng.uniform(0, trial.bench.undisturbed().seconds)
    run.wait_until(lambda: run.seconds >= moment, pause=0.005)
    return ""


def at_a_bad_time(trial: Trial, run: Run) -> str:
    """Waits for one of the critical moments of a run."""
    moment, times = trial.rng.choice(list(MOMENTS)), trial.rng.randint(1, 3)
    wait_for(run, moment, times)
    time.sleep(trial.rng.choice((0, 0, 0.002, 0.01, 0.05)))
    return f"{moment}, time {times}"


def kill(trial: Trial) -> None:
    """Kills one to three starts of a run."""
    for _ in range(trial.rng.choice((1, 1, 2, 3))):
        run = trial.start()
        why = trial.rng.choice((at_any_time, at_a_bad_time))(trial, run)
        trial.hit(run, signal.SIGKILL, why)
    trial.survive()


def preempt(trial: Trial) -> None:
    """Sends SIGTERM or SIGINT, and sometimes a second signal soon after."""
    run = trial.start()
    why = trial.rng.choice((at_any_time, at_any_time, at_a_bad_time))(trial, run)
    had_said = bool(run.said)
    trial.hit(run, trial.rng.choice(_ASKED), why)
    if trial.rng.random() < 0.3:
        time.sleep(trial.rng.uniform(0, 1))
        if run.alive:
            trial.hit(run, trial.rng.choice(_ASKED), "a second one")
    status = run.end()
    allowed = {0, EXIT_STATUS} | (set() if had_said else _BEFORE_HANDLERS)
    trial.expect(status in allowed, f"after the request to stop, it ended with status {status}: {run.stderr[-2000:]}")
    saved = [line for line in run.said if line.startswith("asked to stop: saved at step ")]
    newest = max(committed(trial.workdir), default=None)
    if saved:
        trial.expect(saved[0].split()[6] == str(newest), f"it said {saved[0]!r}, the newest checkpoint is {newest}")
    last = trial.survive()
    continued = last.continued_from()
    explained = continued == newest or f"Checkpoint {newest} skipped" in last.stderr
    trial.expect(explained, f"it continued from step {continued}, the newest checkpoint was {newest}")
