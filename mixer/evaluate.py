"""Scores a checkpoint: `python -m mixer.evaluate --checkpoint runs/cifar10 --task cifar10`, every example once.

A table goes to standard error and one line of JSON to standard output. `--checkpoint B/16-i1k --task imagenet` scores a
published checkpoint by the paper's own protocol; the tasks imagenet_real and imagenet_v2 are ImageNet's other tests.
"""

import json
import math
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epy

from mixer import command_line, models, recipe, statuses, tasks
from mixer import config as configuration
from mixer.errors import UserError, quiet_libraries
from mixer.training import evaluation, sharding
from mixer.transfer import resolution
from mixer.transfer import weights as transfer_weights
from mixer.transfer.weights import Weights

with epy.lazy_imports():  # they bring TensorFlow, for which neither --help nor an error in the command line waits
    from mixer.data import pipeline, sources
    from mixer.transfer import fewshot_evaluator

_NAMED_CLASSES = 5  # of the best and of the worst, in the table


def evaluate(
    weights: Weights, config: ml_collections.ConfigDict, split: str, *, loss: str, batch_size: int
) -> tuple[evaluation.Evaluation, "sources.Source"]:
    """Evaluates a model on a split, on all devices, in float32.

    Args:
      weights: the model's, at config.image_size.
      config: as `config.input`.
      split: in TFDS' notation.
      loss: a name in `losses.LOSSES`.
      batch_size: a multiple of the number of devices.

    Raises:
      UserError: the data is not there, or the model's classes are not the data's.
    """
    model, mesh = weights.model(), sharding.make_mesh()
    source = sources.open_source(config, split, transfer_weights.cache_folder())
    _compare_classes(weights, model.num_classes, source.class_names)
    step = evaluation.make_eval_step(model, loss, mesh, source.multi_label, len(statuses.STATUSES))
    rows = sharding.host_rows(mesh, batch_size)
    batches = pipeline.eval_batches(source, config, batch_size=batch_size, rows=rows)
    params = jax.device_put(weights.params, sharding.replicated(mesh))
    # Left to themselves, TPUs and GPUs round the factors of float32 products to fewer bits.
    with jax.default_matmul_precision("float32"):
        return evaluation.evaluate(step, params, batches, mesh, source.num_examples, statuses.STATUSES), source


def few_shot(
    weights: Weights, config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict, *, batch_size: int
) -> dict[str, float]:
    """Few-shot accuracy of the model's features, computed on all devices in float32; settings as `config.fewshot`.

    Raises:
      UserError: the data is not there, or has too few examples of a class.
    """
    mesh, cache = sharding.make_mesh(), transfer_weights.cache_folder()
    with jax.default_matmul_precision("float32"):
        ask = fewshot_evaluator.FewShot(settings, config, weights.model(), mesh, batch_size=batch_size, cache_dir=cache)
        return ask(jax.device_put(weights.params, sharding.replicated(mesh)))


def _compare_classes(weights: Weights, num_classes: int, class_names: Any) -> None:
    if num_classes != len(class_names):
        raise UserError(
            f"{weights.source} tells {num_classes:,} classes apart, the data has {len(class_names):,}: fine-tune it "
            "first (configs/finetune.py), or ask what its features are worth with --fewshot"
        )
    for number, (theirs, ours) in enumerate(zip(weights.class_names or class_names, class_names, strict=True)):
        if theirs != ours:
            raise UserError(
                f"the classes of {weights.source} are not those of the data: class {number} is {theirs!r} there and "
                f"{ours!r} here"
            )


def input_config(weights: Weights, task: tasks.Task | None) -> tuple[ml_collections.ConfigDict, str]:
    """The `config.input` of an evaluation and its split: a task's, otherwise what the run was evaluated on.

    Raises:
      UserError: neither says what to evaluate on.
    """
    config = ml_collections.ConfigDict(recipe.base().input)
    if weights.config is not None:
        config.update({key: value for key, value in weights.config.input.items() if key in config})
    elif task is None:
        raise UserError(f"{weights.source} is not a run's folder and does not say what to evaluate on: give --task")
    if task is not None:
        if task.dataset != config.dataset:
            config.data_dir = config.eval_resize = None
        config.dataset, config.label_key, config.max_labels = task.dataset, task.label_key, task.max_labels
        config.eval_split = task.test
    if weights.image_size != config.image_size:
        config.image_size, config.eval_resize = weights.image_size, None
    return config, config.eval_split


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """The command's flags."""
    command_line.define_checkpoint_flags()
    flags.DEFINE_string("task", None, "A row of mixer/tasks.py, such as cifar10; a run's own data if not given.")
    flags.DEFINE_string("data_dir", None, "Where the dataset is prepared; TFDS' own default if not given.")
    flags.DEFINE_string("split", None, "In TFDS' notation; the task's test split if not given.")
    flags.DEFINE_integer("image_size", None, "Pixels; a multiple of the checkpoint's extends it (Appendix C).")
    flags.DEFINE_enum("resize", "extend", resolution.METHODS, "How to reach image_size; interpolate goes to any.")
    crops = list(configuration.CHOICES["input.eval_crop"])
    flags.DEFINE_enum("eval_crop", None, crops, "The paper's two protocols; the run's if not given.")
    flags.DEFINE_integer("eval_resize", None, "Pixels before the crop; 8/7 of the image size if not given.")
    flags.DEFINE_bool("fewshot", False, "Linear regression from frozen features, instead of the model's own head.")
    flags.DEFINE_multi_integer("shots", None, "Few-shot: images of each class; the task's if not given.")
    flags.DEFINE_integer("seeds", 3, "Few-shot: choices of these images, over which accuracy is averaged.")
    flags.DEFINE_integer("batch_per_core", 64, "Images on each device at a time.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    quiet_libraries()
    given = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; this command takes --flags only")
    checkpoint = command_line.checkpoint()
    if given.batch_per_core < 1:
        raise UserError(f"--batch_per_core={given.batch_per_core}: expected at least 1")
    try:
        task_name, task = tasks.find(given.task) if given.task else (None, None)
    except ValueError as error:
        raise UserError(f"--{error}") from None

    weights = transfer_weights.read(checkpoint, given.ema)
    weights = weights.at_image_size(given.image_size or weights.image_size, given.resize)
    config, split = input_config(weights, task)
    split = given.split or split
    for name in ("data_dir", "eval_crop", "eval_resize"):
        if given[name].value is not None:
            config[name] = given[name].value
    if config.eval_resize is not None and config.eval_resize < config.image_size:
        raise UserError(f"--eval_resize={config.eval_resize} is less than the image size, {config.image_size}")
    batch_size = given.batch_per_core * jax.device_count()
    loss = weights.config.loss if weights.config is not None else "softmax_xent"

    model = weights.model()
    described = {
        "checkpoint": weights.source,
        "step": weights.step,
        "model": models.name_of(model),
        "task": task_name,
        "dataset": config.dataset,
        "split": split,
        "image_size": config.image_size,
        "eval_crop": config.eval_crop,
        "eval_resize": config.eval_resize or round(config.image_size * 8 / 7),
    }
    if given.fewshot:
        settings = _few_shot_settings(config, split, task)
        described |= {"train_split": settings.train_split, "eval_crop": settings.eval_crop, "seeds": settings.seeds}
        metrics, lines = few_shot(weights, config, settings, batch_size=batch_size), []
    else:
        found, source = evaluate(weights, config, split, loss=loss, batch_size=batch_size)
        metrics, lines = found.metrics, by_class(found, source.class_names)
        if found.class_accuracy is not None:
            shares = zip(source.class_names, found.class_accuracy.tolist(), strict=True)
            described["class_accuracy"] = {name: share for name, share in shares if not math.isnan(share)}
    if jax.process_index() == 0:
        print("\n".join([*summary(described, metrics), *lines]), file=sys.stderr)
        print(json.dumps({**metrics, **described}))


def _few_shot_settings(
    config: ml_collections.ConfigDict, split: str, task: tasks.Task | None
) -> ml_collections.ConfigDict:
    given, settings = flags.FLAGS, recipe.base().fewshot
    train_split = config.train_split if task is None else task.few_shot_train or task.train
    if train_split is None:
        raise UserError(f"--fewshot: {config.dataset} has no images to learn from; ask for the task imagenet2012")
    if given.shots:
        settings.shots = tuple(given.shots)
    elif task is not None:
        settings.shots = task.shots
    if min(given.seeds, *settings.shots) < 1:
        raise UserError(f"--shots={list(settings.shots)} --seeds={given.seeds}: expected numbers above 0")
    settings.update({"dataset": config.dataset, "data_dir": config.data_dir, "seeds": given.seeds})
    settings.update({"train_split": train_split, "test_split": split, "eval_resize": config.eval_resize})
    if given.eval_crop:
        settings.eval_crop = given.eval_crop
    return settings


def summary(described: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    """What was evaluated, how, and what came out, a line each."""
    lines = [
        f"{described['model']} ({described['checkpoint']}) on {described['dataset']} {described['split']}, "
        f"{described['image_size']} px, {described['eval_crop']} from {described['eval_resize']} px"
    ]
    for name, value in metrics.items():
        is_share = "accuracy" in name or name.startswith("fewshot/")
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if is_share else f"{value:.4f}"
        lines.append(f"  {name.replace('_', ' '):36} {shown:>9}")
    return lines


def by_class(found: evaluation.Evaluation, class_names: Any) -> list[str]:
    """The classes with the best and the worst accuracy, a line each; none for multi-label data."""
    if found.class_accuracy is None:
        return []
    order = np.argsort(-found.class_accuracy, kind="stable")
    order = order[~np.isnan(found.class_accuracy[order])]
    best, worst = order[:_NAMED_CLASSES], order[max(len(order) - _NAMED_CLASSES, _NAMED_CLASSES) :]
    lines = []
    for title, classes in (("best classes", best), ("worst classes", worst)):
        if len(classes):
            lines.append(f"  {title}")
            lines += [f"    {class_names[c]:34} {found.class_accuracy[c]:>9.2%}" for c in classes]
    return lines


if __name__ == "__main__":
    command_line.run(main, define_flags)
