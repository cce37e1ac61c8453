"""Tells what a run is doing, and waits for the moment at which it begins something."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos.places import InBucket, Place, checkpoint_files
from tests.chaos.runs import Run

PHASES = ("starting", "compiling", "stepping", "evaluating", "saving", "deleting", "leaving", "through")

_ALWAYS_THERE = ("_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt")  # in every whole checkpoint
_POLL = 0.001  # seconds; a folder is deleted within a few milliseconds
_POLL_BUCKET = 0.01  # each look is a request


def committed(workdir: Place) -> list[int]:
    """Returns the steps of all checkpoints that have their final name, whole or not."""
    return sorted(int(name) for name in checkpoint_files(workdir) if name.isdigit())


def saving(workdir: Place) -> bool:
    """Tells whether a checkpoint has its temporary name."""
    return any("tmp" in name for name in checkpoint_files(workdir))


def deleting(workdir: Place) -> bool:
    """Tells whether a part of a checkpoint is missing."""
    found = checkpoint_files(workdir)
    return any(not files.issuperset(_ALWAYS_THERE) for name, files in found.items() if name.isdigit())


def evaluating(run: Run) -> bool:
    """Tells whether the last line of a run is of a step that is evaluated."""
    found = re.match(r"step (\d+)/(\d+) ", run.said[-1]) if run.said else None
    return bool(found) and (int(found[1]) % run.settings["eval_steps"] == 0 or found[1] == found[2])


# The phases of a run, from its last line and its folder. The first one that holds counts.
_TELLS: dict[str, Callable[[Run], bool]] = {
    "through": lambda run: run.process.returncode == 0,
    "starting": lambda run: not run.said,
    "compiling": lambda run: run.last_step() == 0,
    "leaving": lambda run: run.said[-1].startswith(("done:", "the run in", "asked to stop")),
    "deleting": lambda run: deleting(run.workdir),
    "saving": lambda run: saving(run.workdir),
    "evaluating": evaluating,
    "stepping": lambda run: True,
}


def phase(run: Run) -> str:
    """Returns what a run is doing, or what it was doing when it ended."""
    return next(name for name, tells in _TELLS.items() if tells(run))


class Sight(NamedTuple):
    """What is seen of a run at one time.

    Attributes:
      files: how many files each folder below checkpoints holds.
      evaluation: the step that is being evaluated; 0 if none is.
    """

    files: dict[str, int]
    evaluation: int


def look(run: Run) -> Sight:
    """Looks at a run."""
    files = {name: len(files) for name, files in checkpoint_files(run.workdir).items()}
    return Sight(files, run.last_step() if evaluating(run) else 0)


# The critical moments of a run. Each is recognised from two successive looks.
MOMENTS: dict[str, Callable[[Sight, Sight], bool]] = {
    "a save begins": lambda before, now: any("tmp" in name for name in now.files.keys() - before.files.keys()),
    "a checkpoint is committed": lambda before, now: any(map(str.isdigit, now.files.keys() - before.files.keys())),
    "an old checkpoint disappears": lambda before, now: any(
        now.files.get(name, 0) < count for name, count in before.files.items() if name.isdigit()
    ),
    "an evaluation begins": lambda before, now: now.evaluation > before.evaluation,
}


def wait_for(run: Run, moment: str, times: int) -> bool:
    """Waits until a moment has come `times` times. Returns False if the run ended before."""
    if not run.wait_until(lambda: run.last_step() > 0):
        return False
    before = look(run)
    while run.alive:
        time.sleep(_POLL_BUCKET if isinstance(run.workdir, InBucket) else _POLL)
        now = look(run)
        times -= MOMENTS[moment](before, now)
        if not times:
            return True
        before = now
    return False
