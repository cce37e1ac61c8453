"""What the folder of a run says of the run: results, settings, starts and curves, ready to be shown."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import FrozenConfigDict

from mixer.config import checks, run_folder
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.training.metrics import read_metrics

_MAX_POINTS = 400  # of a curve; more cannot be told apart in a chart

# Title of a chart, ends of the names of its metrics, and how they are shown.
_CHARTS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("Loss", ("train/loss", "/loss"), {}),
    ("Accuracy", ("train/accuracy", "train/mixed_accuracy", "/accuracy"), {"percent": True}),
    ("Mean average precision", ("/mean_average_precision",), {"percent": True}),
    ("Few-shot accuracy", ("shot_accuracy", "-shot"), {"percent": True}),
    ("Learning rate", ("train/learning_rate",), {}),
    ("Gradient norm", ("train/grad_norm",), {"log": True}),
    ("Images a second on each core", ("train/images_per_sec_per_core",), {}),
    ("Share of the time in which devices wait for images", ("train/device_wait_share",), {"percent": True}),
]


class Run(NamedTuple):
    """A run that is shown.

    Attributes:
      name: its folder, as short as it can be while the runs' names differ.
      workdir: its folder.
      config: its settings.
      starts: how it was started, first to last.
      lines: of `metrics.jsonl`.
    """

    name: str
    workdir: epath.Path
    config: FrozenConfigDict
    starts: Sequence[history.Start]
    lines: Sequence[dict[str, float]]


def read(workdirs: Sequence[str]) -> list[Run]:
    """Reads the folders of runs.

    Raises:
      UserError: a folder is not that of a run, or has no metrics yet.
    """
    paths = [epath.Path(workdir) for workdir in workdirs]
    found = []
    for name, path in zip(short_names([str(path) for path in paths]), paths, strict=True):
        config = run_folder.load_config(path)
        lines = read_metrics(path)
        if not lines:
            raise UserError(f"{path} has no metrics yet: the run has not logged a step")
        found.append(Run(name, path, config, history.read(path), lines))
    return found
