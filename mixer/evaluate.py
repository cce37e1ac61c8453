"""Scores a checkpoint: `python -m mixer.evaluate --checkpoint runs/cifar10 --task cifar10`, every example once.

A table goes to standard error and one line of JSON to standard output. `--checkpoint B/16-i1k --task imagenet` scores a
published checkpoint by the paper's own protocol; the tasks imagenet_real and imagenet_v2 are ImageNet's other tests.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from etils import epy

from mixer.config import command_line, help_text, recipe, tasks
from mixer.config.settings import SETTINGS
from mixer.data.folders import folder_layout
from mixer.evaluation import table
from mixer.runtime import files, json_text
from mixer.runtime.errors import UserError
from mixer.training.console import Console
from mixer.transfer import download

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import models
    from mixer.data import readers
    from mixer.data.folders import folder
    from mixer.data.pixels import crops
    from mixer.evaluation import classification, evaluator
    from mixer.evaluation import few_shot as few_shot_evaluator
    from mixer.runtime import devices
    from mixer.training import facts, history
    from mixer.transfer import weights as transfer_weights

if TYPE_CHECKING:
    from mixer.data.sources import Source
    from mixer.evaluation.accuracy import Evaluation
    from mixer.evaluation.evaluator import Context, Through
    from mixer.transfer.weights import Weights

# This command has no --config: the flags that change what messages call by the name of a setting.
_FLAGS = {
    f"config.{group}.{name}": flag
    for group in ("input", "fewshot")
    for name, flag in {"data_dir": "--data_dir", "dataset": "--task"}.items()
}


def evaluate(
    weights: Weights,
    config: ml_collections.ConfigDict,
    split: str,
    *,
    loss: str,
    batch_size: int,
    through: Through = iter,
) -> tuple[Evaluation, Sequence[str]]:
    """Evaluates a model on a split, on all devices, in float32; returns the result and the names of the classes.

    Args:
      weights: the model's, at config.image_size.
      config: as `config.input`.
      split: in TFDS notation.
      loss: a key of `losses.LOSSES`.
      batch_size: a multiple of the number of devices.
      through: passes the batches on, and may show how many are done.

    Raises:
      UserError: the data is not there, or its classes are not the model's.
    """
    context = make_context(weights, config, loss, batch_size)
    of_split = classification.Classification(recipe.evaluator_settings("classification", split=split), context)
    _tell(of_split.sources)
    # By default, TPUs and GPUs round the factors of float32 products to fewer bits.
    with jax.default_matmul_precision("float32"):
        return of_split.evaluate(_on_devices(weights, context), through), of_split.source.class_names


def few_shot(
    weights: Weights,
    config: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    *,
    batch_size: int,
    through: Through = iter,
    reading: Through = iter,
) -> dict[str, float]:
    """Returns the few-shot accuracy of the model's features, computed on all devices in float32.

    Args:
      weights: the model's, at config.image_size.
      config: as `config.input`.
      settings: as `config.evaluators.NAME`.
      batch_size: a multiple of the number of devices.
      through: passes the batches on, and may show how many are done.
      reading: likewise, what is read before for its labels.

    Raises:
      UserError: the data is not there, or has too few examples of a class.
    """
    context = make_context(weights, config, "", batch_size)._replace(reading=reading)
    evaluator = few_shot_evaluator.FewShot(settings, context)
    _tell(evaluator.sources)
    with jax.default_matmul_precision("float32"):
        found = evaluator(_on_devices(weights, context), through)
    return {f"fewshot/{name}": value for name, value in found.items()}


def make_context(weights: Weights, config: ml_collections.ConfigDict, loss: str, batch_size: int) -> Context:
    return evaluator.Context(
        weights.model(), weights.class_names, loss, config, devices.make_mesh(), batch_size,
        download.cache_folder(), weights.source, light=True,
    )  # fmt: skip


def _tell(sources: Sequence[Source]) -> None:
    """Says on standard error what was found in the data."""
    if jax.process_index() == 0:
        for report in dict.fromkeys(tuple(source.report) for source in sources):
            print(*report, sep="\n", end="\n" if report else "", file=sys.stderr)


def _on_devices(weights: Weights, context: Context) -> Any:
    return jax.device_put(weights.params, devices.replicated(context.mesh))


def input_config(weights: Weights, task: tasks.Task | None) -> tuple[ml_collections.ConfigDict, str]:
    """Returns the `config.input` of an evaluation and its split: the task's, or what the run was evaluated on.

    Raises:
      UserError: neither says what to evaluate on.
    """
    base = recipe.base()
    base.update_from_flattened_dict(weights.settings)
    config = ml_collections.ConfigDict(base.input)
    if weights.config is not None:
        config.update({key: value for key, value in weights.config.input.items() if key in config})
    elif task is None:
        raise UserError(
            f"{weights.source} is not a run's folder and does not say what to evaluate on: give --task, such as "
            "--task=folder with --data_dir for images in class folders"
        )
    if task is not None:
        if task.dataset != config.dataset:
            config.data_dir = None
            if weights.config is not None:  # that of a file is for any data
                config.eval_resize = None
        config.dataset, config.label_key, config.max_labels = task.dataset, task.label_key, task.max_labels
        config.eval_split = task.test
    if weights.image_size != config.image_size:
        if config.permutation != "none":
            raise UserError(
                f"{weights.source} was trained on permuted images of {config.image_size} pixels (input.permutation="
                f"{config.permutation}), which says nothing of the order at {weights.image_size}: evaluate it at "
                f"{config.image_size}"
            )
        config.image_size, config.eval_resize = weights.image_size, None
    return config, config.eval_split


# ------------------------------------------------------------------------------------------------------- command line


# The names of two registries, whose modules are too slow to import for --help.
_RESIZES = ["extend", "interpolate"]
_EVAL_CROPS = ["resize_small", "resize_square"]


def define_flags() -> None:
    """Defines the command's flags."""
    command_line.define_checkpoint_flags("--checkpoint runs/cifar10")
    with help_text.group("The data", "--checkpoint B/16-i1k --task imagenet --data_dir DIR"):
        flags.DEFINE_string(
            "task", None, f"One of {', '.join(tasks.TASKS)}, a short form, or folder; the run's own data if not given."
        )
        flags.DEFINE_string(
            "data_dir", None, "Where the dataset is prepared, or a folder of images; the run's if not given."
        )
        flags.DEFINE_string("split", None, f"Of a folder {'|'.join(folder_layout.SPLITS)}, else in TFDS notation.")
    with help_text.group("The images", "--checkpoint runs/pets --image_size 448"):
        flags.DEFINE_integer("image_size", None, "Pixels; a multiple of the checkpoint's extends it (Appendix C).")
        flags.DEFINE_enum("resize", "extend", _RESIZES, "How to reach image_size; interpolate goes to any.")
        flags.DEFINE_enum("eval_crop", None, _EVAL_CROPS, "The paper's two protocols; the run's if not given.")
        flags.DEFINE_integer("eval_resize", None, "Pixels before the crop; 8/7 of the image size if not given.")
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
    task_name, task = find_task()
    weights = transfer_weights.load(checkpoint, given.ema)
    weights.model()  # it says in one line that these are no Mixer's weights, if they are not
    weights = weights.at_image_size(given.image_size or weights.image_size, given.resize)
    with _flags_in_messages():
        config, split = _overridden(weights, *input_config(weights, task))
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
    with _flags_in_messages():
        found, class_names = evaluate(weights, config, split, loss=weights.loss, batch_size=batch_size, through=through)
    more: dict[str, Any] = {}
    if found.class_accuracy is not None:
        shares = zip(class_names, found.class_accuracy.tolist(), strict=True)
        more["class_accuracy"] = {name: share for name, share in shares if not math.isnan(share)}
    return found.metrics, more, table.by_class(found, class_names)


def _features_scored(
    weights: Weights, config: ml_collections.ConfigDict, split: str, task: tasks.Task | None, batch_size: int
) -> _Scored:
    """Scores the model's features, by few-shot accuracy."""
    console, settings = Console(to_stderr=True), _few_shot_settings(config, split, task)
    reading = functools.partial(console.counted, "reading labels")
    through = functools.partial(console.counted, "computing features")
    with _flags_in_messages():
        metrics = few_shot(weights, config, settings, batch_size=batch_size, through=through, reading=reading)
    return metrics, {name: settings[name] for name in ("train_split", "eval_crop", "seeds")}, []


def find_task() -> tuple[str | None, tasks.Task | None]:
    """Returns the full name of --task, and the task; none if the flag was not given.

    Raises:
      UserError: there is no such task.
    """
    try:
        return tasks.find(flags.FLAGS.task) if flags.FLAGS.task else (None, None)
    except ValueError as error:
        raise UserError(f"--{error}") from None


@contextlib.contextmanager
def _flags_in_messages() -> Iterator[None]:
    """Replaces the names of settings in an error by the flags that change them."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for setting, flag in _FLAGS.items():
            message = message.replace(setting, flag)
        raise type(error)(message) from None


def _same_folder(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one == other
    return files.real(one) == files.real(other)


def _overridden(
    weights: Weights, config: ml_collections.ConfigDict, split: str
) -> tuple[ml_collections.ConfigDict, str]:
    """Returns the input config and the split, with what the flags change."""
    given, own_data = flags.FLAGS, config.data_dir
    for name in ("data_dir", "eval_crop", "eval_resize"):
        if given[name].value is not None:
            config[name] = given[name].value
    if config.eval_resize is not None and config.eval_resize < config.image_size:
        raise UserError(f"--eval_resize={config.eval_resize} is less than the image size, {config.image_size}")
    if given.fewshot:  # learns from a part of any folder, and is tested on another
        return config, given.split or split
    return config, given.split or default_split(weights, config, split, own_data)


def default_split(weights: Weights, config: ml_collections.ConfigDict, split: str, own_data: str | None) -> str:
    """Returns the split to evaluate on.

    Args:
      weights: of a run or of another origin.
      config: as `config.input`.
      split: that of the run or of the task. Of a folder that is not the run's and has no folders for splits, all images
        are evaluated instead, since the model was not trained on any.
      own_data: the run's data_dir.
    """
    if config.dataset != "folder" or _same_folder(config.data_dir, own_data):
        return split
    if folder.has_splits(config, download.cache_folder()) or _was_trained_on(weights, config):
        return split
    return "all"


def _was_trained_on(weights: Weights, config: ml_collections.ConfigDict) -> bool:
    """Returns whether a folder is the one that the weights' run was trained on, moved or copied to another place."""
    starts = history.read(weights.workdir) if weights.workdir else []
    if not starts:
        return False
    try:
        source = readers.open_source(config, config.train_split, download.cache_folder())
        return facts.of_source(facts.TRAINING_DATA, source).items() <= starts[-1].data.items()
    except UserError:  # its images cannot be divided so; what is evaluated says what is wrong
        return False


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
        label_key=config.label_key, seeds=given.seeds, eval_resize=config.eval_resize,
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
