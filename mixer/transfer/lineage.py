"""What a run came from: what the weights that it started from were trained on, and those before."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

from etils import epath

from mixer.config import run_folder
from mixer.config.settings import UNITS
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.transfer.published import PUBLISHED

# What the authors of the published checkpoints trained on, by the end of the checkpoint's name.
PUBLISHED_DATA = {"i1k": "ImageNet-1k", "i21k": "ImageNet-21k", "sam": "ImageNet-1k", "gsam": "ImageNet-1k"}
_PUBLISHED_SIZE = 224  # pixels
_MOST = 10  # runs that are followed, in case of a circle


def lineage(init_from: str | None, workdir: epath.Path | None = None, named: Callable[[str], str] = str) -> str:
    """Returns the runs that weights come from, the nearest first, with what each was trained on.

    Args:
      init_from: as in a run's config.
      workdir: of this run, whose history says at which step the weights were.
      named: how a run is called, given its path.
    """
    told: list[str] = []
    while init_from is not None and len(told) < _MOST:
        if init_from in PUBLISHED:
            data = PUBLISHED_DATA[init_from.rpartition("-")[2]]
            return "; ".join([*told, f"{init_from}, trained on {data} as published"])
        config = config_of(init_from)
        if config is None:
            return "; ".join([*told, f"`{named(init_from)}`, of which nothing is known: it is no run's folder here"])
        step = history.first_weights(history.read(workdir)).get("step") if workdir else None
        taken = "a number of steps that is not known" if step is None else f"{step:,} steps"
        told.append(
            f"`{named(init_from)}`, trained on {config.input.dataset}, split {config.input.train_split}, for {taken} "
            f"(planned: {duration(config, 'total')})"
        )
        workdir, _ = run_folder.of_checkpoint(epath.Path(init_from))
        init_from = config.init_from
    return "; ".join([*told, "random parameters"])


def interpolated(config: Any) -> bool:
    """Returns whether a run's weights, or those that they came from, were resampled to another grid of patches.

    Args:
      config: of the run; None for weights that are not a run's, of which this is not known.
    """
    for _ in range(_MOST):
        if config is None or config.init_from is None:
            return False
        before = None if config.init_from in PUBLISHED else config_of(config.init_from)
        size = before.input.image_size if before else _PUBLISHED_SIZE if config.init_from in PUBLISHED else None
        if config.resize == "interpolate" and size != config.input.image_size:
            return True
        config = before
    return False


def config_of(source: str) -> Any:
    """Returns the config of the run that is meant, by its folder or one of its checkpoints; None if there is none."""
    path, _ = run_folder.of_checkpoint(epath.Path(source))
    with contextlib.suppress(UserError, OSError, ValueError):
        return run_folder.load_config(path)
    return None


def duration(config: Any, name: str) -> str:
    """Returns a duration in the unit of the config, such as "300 epochs"."""
    unit = next(unit for unit in UNITS if config[f"{name}_{unit}"] is not None)
    amount = config[f"{name}_{unit}"]
    return f"{f'{amount:g}' if unit == 'epochs' else f'{amount:,}'} {unit}"


def changes(workdir: epath.Path | None, step: int, named: Callable[[str], str] = str) -> tuple[list[str], list[str]]:
    """Returns a line for each change of a run's config or data: on the way to a checkpoint, and after it.

    Args:
      workdir: the run's folder; None for weights that are not of a run here.
      step: of the checkpoint.
      named: how a run, a file or a folder is called, given its path.
    """
    kept = history.not_undone(history.read(workdir)) if workdir else []
    before: list[str] = []
    later: list[str] = []
    for start in kept:
        if start.config_changes or start.data_changes:
            told = "; ".join([*(_named(one, named) for one in start.config_changes), *start.data_changes])
            (before if start.step < step else later).append(f"from step {start.step:,}: {told}")
    return before, later


def _named(change: str, named: Callable[[str], str]) -> str:
    """Returns the change of a setting, with the names of runs and folders where it has paths."""
    if not change.partition(":")[0].endswith(("init_from", "data_dir")):
        return change
    return re.sub(r"'(.*?)'(?= before,| now$)", lambda path: repr(named(path[1])), change)
