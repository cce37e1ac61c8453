"""Scores a checkpoint: `python -m mixer.evaluate --checkpoint runs/cifar10 --task cifar10`, every example once.

A table goes to standard error and one line of JSON to standard output. `--checkpoint B/16-i1k --task imagenet` scores a
published checkpoint by the paper's own protocol; the tasks imagenet_real and imagenet_v2 are ImageNet's other tests.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from etils import epy

from mixer.config import command_line, help_text, recipe, tasks
from mixer.config.settings import SETTINGS
from mixer.data.folders import folder_layout
from mixer.evaluation import table
from mixer.runtime import json_text
from mixer.runtime.errors import UserError
from mixer.training.console import Console

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import models
    from mixer.data.pixels import crops
    from mixer.evaluation import few_shot, scoring
    from mixer.transfer import loading

if TYPE_CHECKING:
    from mixer.transfer.weights import Weights

# This command has no --config: the flags that change what messages call by the name of a setting.
# The names of two registries, whose modules are too slow to import for --help.
_RESIZES = ["extend", "interpolate"]
_EVAL_CROPS = ["resize_small", "resize_square"]


def define_flags() -> None:
    """Defines the command's flags."""
    command_line.define_checkpoint_flags("--checkpoint runs/cifar10")
    with help_text.group("The data", "--checkpoint B/16-i1k --task imagenet --data_dir DIR"):
        flags.DEFINE_string(
            "task", None, f"One of {', '.join(tasks.TASKS)}, or a short form; the run's own data if not given."
        )
        flags.DEFINE_string(
            "data_dir", None, "Where the dataset is prepared, or a folder of images; the run's if not given."
        )
        flags.DEFINE_string("split", None, f"Of a folder {'|'.join(folder_layout.SPLITS)}, else in TFDS notation.")
    with help_text.group("The images", "--checkpoint runs/pets --image_size 448"):
        flags.DEFINE_integer("image_size", None, "Pixels; a multiple of the checkpoint's extends it (Appendix C).", 1)
        flags.DEFINE_enum("resize", "extend", _RESIZES, "How to reach image_size; interpolate goes to any.")
        flags.DEFINE_enum(
            "eval_crop", None, _EVAL_CROPS,
            "The paper's two protocols; the run's if not given, with --fewshot resize_square.",
        )  # fmt: skip
        flags.DEFINE_integer(
            "eval_resize", None, "Pixels before the crop; the run's if not given, with --fewshot 8/7 of the image size."
        )
        flags.DEFINE_integer("batch_per_core", 64, "Images on each device at a time.")
    with help_text.group("Few-shot accuracy", "--checkpoint B/16-i21k --task imagenet --fewshot --shots 5"):
        flags.DEFINE_bool("fewshot", False, "Linear regression from frozen features, instead of the model's own head.")
        flags.DEFINE_multi_integer("shots", None, "Images of each class, may be repeated; the task's if not given.")
        flags.DEFINE_integer("seeds", 3, "Choices of these images, over which accuracy is averaged.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    if not given.fewshot:
        command_line.refuse_unread(("shots", "seeds"), "without --fewshot")
    if given.image_size is None:
        command_line.refuse_unread(("resize",), "without --image_size")
    if given.batch_per_core < 1:
        raise UserError(f"--batch_per_core={given.batch_per_core}: expected at least 1")
    task_name, task = command_line.task()
    weights = loading.load(checkpoint, given.ema)
    weights.model()  # it says in one line what does not fit, before data is opened
    weights = weights.at_image_size(given.image_size or weights.image_size, given.resize)
    with command_line.flags_in_messages("--task" if flags.FLAGS.task else None):
        config, split = _data(weights, task)
    batch_size = given.batch_per_core * jax.device_count()
    described = {
        "checkpoint": weights.source,
        "step": weights.step,
        "model": models.name_of(weights.model()),
        "task": task_name,
        "dataset": config.dataset,
        "split": split,
        "image_size": config.image_size,
        "eval_crop": config.eval_crop,
        "eval_resize": crops.eval_resize(config),
    }
    score = _features_scored if given.fewshot else _head_scored
    metrics, more, lines = score(weights, config, split, task, batch_size)
    described |= more
    if jax.process_index() == 0:
        print("\n".join([*table.summary(described, metrics), *lines]), file=sys.stderr)
        print(json_text.dumps({**metrics, **described}))


# Metrics, what else is to be said of the evaluation, and lines for the table.
_Scored = tuple[dict[str, float], dict[str, Any], list[str]]


def _head_scored(
    weights: Weights, config: ml_collections.ConfigDict, split: str, task: tasks.Task | None, batch_size: int
) -> _Scored:
    """Scores the model's own head."""
    through = functools.partial(Console(to_stderr=True).counted, "evaluating")
    with command_line.flags_in_messages("--task" if flags.FLAGS.task else None):
        found, source = scoring.evaluate(
            weights, config, split, loss=weights.loss, batch_size=batch_size, through=through
        )
    more: dict[str, Any] = {}
    if found.class_accuracy is not None:
        shares = zip(source.class_names, found.class_accuracy.tolist(), strict=True)
        more["class_accuracy"] = {name: share for name, share in shares if not math.isnan(share)}
    return found.metrics, more, table.by_class(found, source.class_names)


def _features_scored(
    weights: Weights, config: ml_collections.ConfigDict, split: str, task: tasks.Task | None, batch_size: int
) -> _Scored:
    """Scores the model's features, by few-shot accuracy."""
    console, settings = Console(to_stderr=True), _few_shot_settings(config, split, task)
    reading = functools.partial(console.counted, "reading labels")
    through = functools.partial(console.counted, "computing features")
    with command_line.flags_in_messages("--task" if flags.FLAGS.task else None):
        metrics = scoring.few_shot(weights, config, settings, batch_size=batch_size, through=through, reading=reading)
    used = few_shot.input_of(settings, config)
    of_images = {"eval_crop": used.eval_crop, "eval_resize": crops.eval_resize(used)}
    return metrics, {"train_split": settings.train_split, "seeds": settings.seeds, **of_images}, []


def _data(weights: Weights, task: tasks.Task | None) -> tuple[ml_collections.ConfigDict, str]:
    """Returns the input config and the split, with what the flags change."""
    given = flags.FLAGS
    whole = not given.fewshot  # it learns from a part of any folder, and is tested on another
    config, split = scoring.data(weights, task, data_dir=given.data_dir, split=given.split, whole=whole)
    for name in ("eval_crop", "eval_resize"):
        if given[name].value is not None:
            config[name] = given[name].value
    if config.eval_resize is not None and config.eval_resize < config.image_size:
        raise UserError(f"--eval_resize={config.eval_resize} is less than the image size, {config.image_size}")
    return config, split


def _few_shot_settings(
    config: ml_collections.ConfigDict, split: str, task: tasks.Task | None
) -> ml_collections.ConfigDict:
    given = flags.FLAGS
    train_split = config.train_split if task is None else task.few_shot_train or task.train
    if train_split is None:
        raise UserError(f"--fewshot: {config.dataset} has no images to learn from; give --task=imagenet2012")
    if split == train_split or (config.dataset == "folder" and split == "all"):
        raise UserError(
            f"--split={split}: it holds the images of {train_split}, from which --fewshot learns; give another"
        )
    settings = recipe.evaluator_settings(
        "few_shot", dataset=config.dataset, data_dir=config.data_dir, split=split, train_split=train_split,
        label_key=config.label_key, seeds=given.seeds, eval_resize=given.eval_resize,
        eval_crop=given.eval_crop or SETTINGS["fewshot.eval_crop"].default,
    )  # fmt: skip
    if given.shots:
        settings.shots = tuple(given.shots)
    elif task is not None:
        settings.shots = task.shots
    if min(given.seeds, *settings.shots) < 1:
        raise UserError(f"--shots={list(settings.shots)} --seeds={given.seeds}: expected numbers above 0")
    return settings


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
