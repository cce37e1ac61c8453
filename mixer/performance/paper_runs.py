"""What runs measured of the paper's rows: accuracy, speed and core-days, from the folders of runs and of sweeps."""

import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from mixer.config import paper, run_folder, tasks
from mixer.performance import data_facts
from mixer.runtime import files
from mixer.runtime.errors import UserError, first_line
from mixer.training import history
from mixer.training.metrics import read_metrics
from mixer.transfer import lineage
from mixer.transfer.published import PUBLISHED

_SPEED, _SEEN = "train/images_per_sec_per_core", "train/images_seen"


class Measured(NamedTuple):
    """What a folder says of the paper's rows. None is what it does not say.

    Attributes:
      folder: of the run or of the sweep.
      row: of the accuracies. Speed and core-days are those of all rows with the same pre-training.
      told: what the numbers are, for a line below the tables.
      imagenet, real, avg5: accuracy, per cent, as in `paper.Row`.
      images_per_sec_per_core: in training, without evaluation.
      core_days: so far, likewise.
    """

    folder: str
    row: paper.Row
    told: str
    imagenet: float | None = None
    real: float | None = None
    avg5: float | None = None
    images_per_sec_per_core: float | None = None
    core_days: float | None = None


def measure(folder: str) -> Measured:
    """Reads what a run or a sweep has measured.

    Raises:
      UserError: the folder is neither, or the paper has no such run.
    """
    if files.exists(epath.Path(folder) / "results.json"):
        return _sweep(folder)
    config = run_folder.load_config(folder)
    row = pretraining(folder) if config.init_from is None else _finetuned_row(folder, config)
    if row is None:
        raise UserError(
            f"{folder}: the paper has no run of {config.model.variant} on {config.input.dataset} at "
            f"{config.input.image_size} pixels, or its model, its epochs or its number of images were others; give "
            "runs of configs/*_i1k.py, *_i21k.py and *_jft.py, or of configs/finetune.py with task=imagenet"
        )
    lines, starts = read_metrics(folder), history.read(folder)
    step = max((int(line["step"]) for line in lines), default=0)
    total = f" of {starts[-1].steps['total']:,}" if starts else ""
    devices = ", ".join(f"{name} {value}" for name, value in starts[-1].machine.items()) if starts else "unknown"
    other = f" by {config.optimizer.name}" if config.init_from is None and config.optimizer.name != "adam" else ""
    told = (
        f"{folder}: {lineage.duration(config, 'total')} of {config.input.dataset}{other}, at step {step:,}{total}, "
        f"evaluated with {config.input.eval_crop}, on {devices}"
    )
    found = Measured(folder, row, told, *_accuracies(config, lines))
    if config.init_from:
        return found
    speed, core_days = _costs(config, lines)
    return found._replace(images_per_sec_per_core=speed, core_days=core_days)


def pretraining(source: str) -> paper.Row | None:
    """Returns the paper's row of a run that pre-trains; None if the paper has none, or no such run is there.

    Args:
      source: the run's folder, or one of its checkpoints.
    """
    config = lineage.config_of(source)
    if config is None or config.init_from is not None:
        return None
    starts = history.read(run_folder.of_checkpoint(epath.Path(source))[0])
    return data_facts.paper_row(config, starts[-1].begun["num_examples"] if starts else None)


def _finetuned_row(folder: str, config: Any) -> paper.Row | None:
    """Returns the row of a run that fine-tunes on ImageNet, by what its weights were pre-trained on."""
    name, of_model = config.init_from, config.model
    if config.input.dataset != tasks.IMAGENET.dataset:
        return None
    if any(of_model[name] is not None for name in paper.SIZES):
        return None  # another model
    pretrained = pretraining(name)
    if name not in PUBLISHED and pretrained is None:
        if lineage.config_of(name) is None:
            raise UserError(
                f"{folder} started from {name}, which is no run's folder here: its pre-training is not known"
            )
        return None
    data = pretrained.pretraining if pretrained else name.rpartition("-")[2]
    fitting = [
        row
        for row in paper.ROWS
        if (row.variant, row.pretraining, row.image_size) == (of_model.variant, data, config.input.image_size)
        and row.epochs == (pretrained.epochs if pretrained else row.epochs)
    ]
    return max(fitting, key=lambda row: row.eval_crop == config.input.eval_crop, default=None)


def _accuracies(config: Any, lines: Sequence[dict[str, float]]) -> tuple[float | None, float | None]:
    """Returns the last accuracy on ImageNet's validation images, and the last one with the ReaL labels.

    Those of the averaged parameters, if there are any, and by the run's own crop alone.
    """
    on = {"val": (config.input.dataset, config.input.eval_split)}
    own = (config.input.eval_crop, config.input.eval_resize)
    others = {
        name: one
        for name, one in config.evaluators.items()
        if one.kind == "classification"
        and (one.eval_crop or own[0], own[1] if one.eval_resize is None else one.eval_resize) == own
    }
    on |= {name: (one.dataset or config.input.dataset, one.split) for name, one in others.items()}
    found = []
    for task in (tasks.IMAGENET, tasks.TASKS["imagenet_real"]):
        kind = "_ema" if config.ema_decay else ""
        names = [f"{name}{kind}/accuracy" for name, split in on.items() if split == (task.dataset, task.test)]
        values = [line[name] for line in lines for name in names if name in line]
        found.append(100 * values[-1] if values else None)
    return found[0], found[1]


def _costs(config: Any, lines: Sequence[dict[str, float]]) -> tuple[float | None, float | None]:
    """Returns the median speed of training, and the core-days that all images took at the speed of their line."""
    before, seconds, speeds = 0.0, 0.0, []
    for line in lines:
        if line.get(_SPEED, 0) > 0:
            seen = line.get(_SEEN, line["step"] * config.batch_size)
            seconds, before = seconds + (seen - before) / line[_SPEED], seen
            speeds.append(line[_SPEED])
    return (statistics.median(speeds), seconds / 86_400) if speeds else (None, None)


def _sweep(folder: str) -> Measured:
    """Reads the results of mixer.sweep."""
    try:
        results = json.loads(files.read_text(epath.Path(folder) / "results.json"))
        published, seeds = results["paper"], results["tasks"].get(tasks.IMAGENET.dataset, {})
        names = ("variant", "pretraining", "image_size", "epochs", "table")
        row = next(
            (row for row in paper.ROWS if published and all(getattr(row, of) == published[of] for of in names)), None
        )
        shares = (seeds.get("mean"), None, results["average_of_five"])
        averaged = " of averaged parameters" if results.get("averaged") else ""
        told = f"{folder}: mixer.sweep{averaged}, evaluated with {results['eval_crop']}, on {results['device']}"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}/results.json is not of mixer.sweep ({first_line(error)})") from None
    if row is None:
        raise UserError(f"{folder}: the paper has no row for this sweep; mixer.sweep --pretraining says what it is")
    return Measured(folder, row, told, *(None if share is None else 100 * share for share in shares))
