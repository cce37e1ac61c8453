"""Scores weights from anywhere on data: what they are evaluated on, by which classes, and the evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from mixer.config import recipe, tasks
from mixer.data import readers
from mixer.data.folders import folder
from mixer.data.sources import Source
from mixer.evaluation import classification
from mixer.evaluation import few_shot as few_shot_evaluator
from mixer.evaluation.accuracy import Evaluation
from mixer.evaluation.evaluator import Context, Through
from mixer.runtime import devices, files
from mixer.runtime.errors import UserError
from mixer.training import facts, history
from mixer.transfer import download
from mixer.transfer.weights import Weights


def evaluate(
    weights: Weights,
    config: ml_collections.ConfigDict,
    split: str,
    *,
    loss: str,
    batch_size: int,
    through: Through = iter,
) -> tuple[Evaluation, Source]:
    """Evaluates a model on a split, on all devices, in float32; returns the result and the split that was read.

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
    _tell_if_changed(weights, of_split.source)
    # By default, TPUs and GPUs round the factors of float32 products to fewer bits.
    with jax.default_matmul_precision("float32"):
        return of_split.evaluate(_on_devices(weights, context), through), of_split.source


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
    return Context(
        weights.model(), weights.class_names, loss, config, devices.make_mesh(), batch_size,
        download.cache_folder(), weights.source, light=True,
    )  # fmt: skip


def _tell(sources: Sequence[Source]) -> None:
    """Says on standard error what was found in the data."""
    if jax.process_index() == 0:
        for report in dict.fromkeys(tuple(source.report) for source in sources):
            print(*report, sep="\n", end="\n" if report else "", file=sys.stderr)


def _tell_if_changed(weights: Weights, source: Source) -> None:
    """Says on standard error if the run's own evaluation split is not what it was when the run last started.

    Of class folders without a folder for validation, a share is validation: if images come or go, others are.
    """
    starts = history.read(weights.workdir) if weights.workdir else []
    if not starts or jax.process_index():
        return
    known = starts[-1].data
    now = facts.of_source(facts.of_evaluator("val"), source)
    if changed := [name for name, value in now.items() if known.get(name, value) != value]:
        print(
            f"{source.name} has changed since the run {weights.source} started ({changed[0]}: {known[changed[0]]} "
            f"before, {now[changed[0]]} now): it may have images on which the model was trained",
            file=sys.stderr,
        )


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
        config.dataset, config.label_key, config.max_labels = task.dataset, task.label_key, task.max_labels
        config.eval_split = task.test
    if weights.image_size != config.image_size:
        if config.permutation != "none":
            raise UserError(
                f"{weights.source} was trained on permuted images of {config.image_size} pixels (input.permutation="
                f"{config.permutation}), which says nothing of the order at {weights.image_size}: evaluate it at "
                f"{config.image_size}"
            )
        if config.eval_resize is not None:  # the same part of a picture
            config.eval_resize = round(config.eval_resize * weights.image_size / config.image_size)
        config.image_size = weights.image_size
    return config, config.eval_split


def data(
    weights: Weights, task: tasks.Task | None, *, data_dir: str | None, split: str | None = None, whole: bool = True
) -> tuple[ml_collections.ConfigDict, str]:
    """Returns the `config.input` of an evaluation and its split, with what somebody gave in place of the run's.

    Args:
      weights: to evaluate.
      task: None for what the run was evaluated on.
      data_dir: where the data are; None for where the run's were.
      split: in TFDS notation; None for the task's or the run's.
      whole: whether all of a folder without splits is evaluated, if no split is given and it is not the run's.

    Raises:
      UserError: neither the weights nor a task says what to evaluate on, or the folder cannot be read.
    """
    config, known = input_config(weights, task)
    own_data = config.data_dir
    if data_dir is not None:
        config.data_dir = data_dir
    return config, split or (_default_split(weights, config, known, own_data) if whole else known)


def _default_split(weights: Weights, config: ml_collections.ConfigDict, split: str, own_data: str | None) -> str:
    """Returns the split to evaluate on.

    Args:
      weights: of a run or of another origin.
      config: as `config.input`.
      split: that of the run or of the task. Of a folder that is not the run's and has no folders for splits, all images
        are evaluated instead, and a line on standard error says so: the model was not trained on them, it seems.
      own_data: the run's data_dir.
    """
    if config.dataset != "folder" or _same_folder(config.data_dir, own_data):
        return split
    if folder.has_splits(config, download.cache_folder()) or _was_trained_on(weights, config, own_data):
        return split
    if jax.process_index() == 0:
        print(
            f"all images of {config.data_dir} are evaluated; if the model was trained on this folder, its split "
            "validation has those that it has not seen",
            file=sys.stderr,
        )
    return "all"


def _was_trained_on(weights: Weights, config: ml_collections.ConfigDict, own_data: str | None) -> bool:
    """Returns whether a folder is the one that the weights' run was trained on, moved or copied to another place.

    Where that folder is still there, most images in common are enough: somebody added or removed some.
    """
    if own_data and weights.workdir and folder.share_in(config, own_data, download.cache_folder()) > 1 / 2:
        return True
    starts = history.read(weights.workdir) if weights.workdir else []
    if not starts:
        return False
    try:
        source = readers.open_source(config, config.train_split, download.cache_folder())
        return facts.of_source(facts.TRAINING_DATA, source).items() <= starts[-1].data.items()
    except UserError:  # its images cannot be divided so; what is evaluated says what is wrong
        return False


def _same_folder(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one == other
    return files.real(one) == files.real(other)
