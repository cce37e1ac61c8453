"""What the folder of a run says of the run: results, settings, starts and curves, ready to be shown."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import FrozenConfigDict

from mixer import models
from mixer.config import checks, run_folder
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.training.metrics import read_metrics
from mixer.transfer import weights

_MAX_POINTS = 400  # of a curve; more cannot be told apart in a chart

# Of each chart: its title, the metrics that it shows, and how.
_CHARTS: list[tuple[str, str, dict[str, Any]]] = [
    ("Loss", r".+/loss", {}),
    ("Accuracy", r".+/(mixed_)?accuracy", {"percent": True}),
    ("Mean average precision", r".+/mean_average_precision", {"percent": True}),
    ("Few-shot accuracy", r".+_\d+shot", {"percent": True}),
    ("Learning rate", "train/learning_rate", {}),
    ("Gradient norm", "train/grad_norm", {"log": True}),
    ("Images a second on each core", "train/images_per_sec_per_core", {}),
    ("Share of the time in which the devices wait for images", "train/device_wait_share", {"percent": True}),
]

Rows = list[tuple[str, list[str]]]
"""Lines of a table: a name, and a text for each run."""


class ShownRun(NamedTuple):
    """A run that is shown.

    Attributes:
      name: its folder, without what all runs' folders have in common.
      workdir: its folder.
      config: its settings.
      model: the name of its model.
      starts: how it was started, first to last.
      lines: of `metrics.jsonl`.
    """

    name: str
    workdir: epath.Path
    config: FrozenConfigDict
    model: str
    starts: Sequence[history.Start]
    lines: Sequence[dict[str, float]]

    def last(self, pattern: str) -> dict[str, float]:
        """Returns the last value of each metric whose name matches, in the order of their names."""
        found = {name: value for line in self.lines for name, value in line.items() if re.fullmatch(pattern, name)}
        return dict(sorted(found.items()))


def read(workdirs: Sequence[str]) -> list[ShownRun]:
    """Reads the folders of runs.

    Raises:
      UserError: a folder is not that of a run, is that of another version's, has no metrics yet, or is given twice.
    """
    found = []
    paths = [workdir.rstrip("/") for workdir in workdirs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"--workdir: {twice[0]} is given twice")
    for name, workdir in zip(_short(workdirs), workdirs, strict=True):
        path = epath.Path(workdir)
        config = run_folder.load_config(path)
        lines = read_metrics(path)
        if not lines:
            why = run_folder.diverged(path) or "the run has not logged a step yet"
            raise UserError(f"{path} has no metrics: {why}")
        model = models.name_of(weights.model_of_run(config, 0, workdir))
        found.append(ShownRun(name, path, config, model, history.read(path), lines))
    return found


def _short(workdirs: Sequence[str]) -> list[str]:
    """Returns the names of folders without the folder that all of them lie in, if there is one."""
    paths = [workdir.rstrip("/").split("/") for workdir in workdirs]
    shared = 0  # leading names
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ["/".join(path[shared:]) for path in paths]


def summary(runs: Sequence[ShownRun]) -> Rows:
    """Returns what the runs did and what came out, with the counts behind each share."""
    rows: Rows = [
        ("model", [run.model for run in runs]),
        ("data", [f"{run.config.input.dataset}, {run.config.input.train_split}" for run in runs]),
        ("image size", [f"{run.config.input.image_size} pixels" for run in runs]),
        ("steps", [f"{run.lines[-1]['step']:,} of {_batch_sizes(run)} images" for run in runs]),
        ("started from", [run.config.init_from or "random weights" for run in runs]),
        ("optimizer", [f"{run.config.optimizer.name}, {run.config.optimizer.learning_rate:g}" for run in runs]),
        ("seed", [str(run.config.seed) for run in runs]),
    ]
    for name in _in_any(runs, r".+/(accuracy|mean_average_precision|mean_per_class_accuracy)|.+_\d+shot"):
        rows.append((name, [_share(run, name) for run in runs]))
    rows += [(name, [_number(run, name) for run in runs]) for name in _in_any(runs, r".+/loss")]
    speed, wait = "train/images_per_sec_per_core", "train/device_wait_share"
    rows += [
        ("images a second on each core, last", [_measured(run, speed, ".4g") for run in runs]),
        ("waiting for images, last", [_measured(run, wait, ".1%") for run in runs]),
        ("devices", [", ".join({start.machine.get("devices", ""): None for start in run.starts}) for run in runs]),
    ]
    if any(diverged := [run_folder.diverged(run.workdir) or "" for run in runs]):
        rows.append(("ended early", diverged))
    return rows


def _batch_sizes(run: ShownRun) -> str:
    """Returns the images in a step, in their order if a later start changed them."""
    begun = [start for start in history.not_undone(run.starts) if start.step < run.lines[-1]["step"]]
    sizes = [size for size, _ in itertools.groupby(start.batch_size for start in begun)]
    return " and then ".join(f"{size:,}" for size in sizes or [run.config.batch_size])


def _in_any(runs: Sequence[ShownRun], pattern: str) -> list[str]:
    return sorted({name for run in runs for name in run.last(pattern)})


def _share(run: ShownRun, name: str) -> str:
    """Returns a share in percent; an accuracy of whole images with its counts."""
    if name not in (found := run.last(re.escape(name))):
        return ""
    evaluator, _, metric = name.rpartition("/")
    count = run.last(re.escape(f"{evaluator}/labelled")) or run.last(re.escape(f"{evaluator}/count"))
    if not math.isfinite(found[name]):
        return str(found[name])
    if metric != "accuracy" or not count:
        spread = run.last(re.escape(f"{name}_std"))
        return f"{found[name]:.2%}" + "".join(f" ± {value:.2%}" for value in spread.values())
    (images,) = count.values()
    return f"{found[name]:.2%} ({round(found[name] * images):,} of {images:,.0f})"


def _number(run: ShownRun, name: str) -> str:
    found = run.last(re.escape(name))
    return f"{found[name]:.4g}" if found else ""


def _measured(run: ShownRun, name: str, form: str) -> str:
    """Returns what needs two steps to be measured; nothing if a start has logged its first step alone."""
    value = run.last(re.escape(name)).get(name, math.nan)
    return f"{value:{form}}" if math.isfinite(value) else ""


def differences(runs: Sequence[ShownRun]) -> Rows:
    """Returns the settings in which the runs differ."""
    flat = [checks.flat(run.config) for run in runs]
    names = sorted({name for settings in flat for name in settings})
    rows = [(name, [_text(settings.get(name)) for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def settings(run: ShownRun) -> list[tuple[str, str]]:
    """Returns all settings of a run."""
    return [(name, _text(value)) for name, value in sorted(checks.flat(run.config).items())]


def _text(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def starts(run: ShownRun) -> list[list[str]]:
    """Returns a line for each start of a run: step, time, command, devices, software, changes."""
    return [
        [
            f"{start.step:,}", start.time, start.command, _listed(start.machine), _listed(start.software),
            "; ".join([*start.config_changes, *start.data_changes]),
        ]
        for start in run.starts
    ]  # fmt: skip


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def bad_images(runs: Sequence[ShownRun]) -> Rows:
    """Returns the numbers of images that could not be used, by kind; in training those of the whole run."""
    names = _in_any(runs, r".+/bad_images.*|.+/unreadable|.+_unreadable")
    rows = [(name, [_unusable(run, name) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if not {*values} <= {"0", ""}]


def _unusable(run: ShownRun, name: str) -> str:
    """Returns a number of images that could not be used; "" if the run has not looked.

    A kind that does not occur is not in a line. In training the numbers are of the whole run, of an evaluator those of
    its last line: somebody may have mended the data.
    """
    evaluator = name.partition("/")[0]
    if evaluator == "train":
        if not any("train/loss" in line for line in run.lines):
            return ""
        found = run.last(re.escape(name))
    else:
        lines = [line for line in run.lines if any(key.startswith(f"{evaluator}/") for key in line)]
        if not lines:
            return ""
        found = lines[-1]
    return f"{found.get(name, 0):,.0f}"


def charts(runs: Sequence[ShownRun]) -> list[dict[str, Any]]:
    """Returns the charts that at least one run has values for, as `charts.js` draws them."""
    found = []
    for title, pattern, options in _CHARTS:
        curves = [curve for run in runs for curve in _curves(run, pattern, len(runs) > 1)]
        if curves:
            said = "; ".join(f"{curve['name']} ends at {curve['y'][-1]:.4g}" for curve in curves)
            found.append({"title": title, "x": "step", "curves": curves, "said": said, "note": "", **options})
    return found


def _curves(run: ShownRun, pattern: str, named: bool) -> list[dict[str, Any]]:
    """Returns the curves of the metrics whose names match, with the run's name if it is one of several."""
    found = []
    for name in run.last(pattern):
        points = [(line["step"], line[name]) for line in run.lines if math.isfinite(line.get(name, math.nan))]
        if not points:
            continue
        shown = sorted({*points[:: -(-len(points) // _MAX_POINTS)], points[-1]})
        of_what = name if name.endswith("shot") else name.split("/")[0]
        if name.endswith("/mixed_accuracy"):
            of_what += ", on mixed images"
        xs, ys = zip(*shown, strict=True)
        label = f"{run.name}: {of_what}" if named else of_what
        found.append({"name": label, "x": xs, "y": [float(f"{y:.5g}") for y in ys]})
    return found
