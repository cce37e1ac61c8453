"""Tells what a run is doing, and waits for the moment at which it begins something."""

import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos.runs import Run

PHASES = ("starting", "compiling", "stepping", "evaluating", "saving", "deleting", "leaving", "through")

_ALWAYS_THERE = ("_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt")  # in every whole checkpoint
_POLL = 0.001  # seconds; a folder is deleted within a few milliseconds


def committed(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of all checkpoints that have their final name, whole or not."""
    folder = workdir / "checkpoints"
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.is_dir() else []


def saving(workdir: pathlib.Path) -> bool:
    """Tells whether a checkpoint has its temporary name."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


def deleting(workdir: pathlib.Path) -> bool:
    """Tells whether a part of a checkpoint is missing."""
    folders = [workdir / "checkpoints" / str(step) for step in committed(workdir)]
    return any(not (folder / name).exists() for folder in folders for name in _ALWAYS_THERE)


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
    folder = run.workdir / "checkpoints"
    files = {entry.name: _count(entry.path) for entry in os.scandir(folder)} if folder.is_dir() else {}
    return Sight(files, run.last_step() if evaluating(run) else 0)


def _count(folder: str) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))  # os.walk ignores folders that vanish meanwhile


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
        time.sleep(_POLL)
        now = look(run)
        times -= MOMENTS[moment](before, now)
        if not times:
            return True
        before = now
    return False
