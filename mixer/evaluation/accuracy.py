"""Accuracy and loss of a classifier: the jitted evaluation step, and metrics from its sums. Needs no TensorFlow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mixer.data.pixels import image_status
from mixer.models import Model
from mixer.runtime import cpu, devices
from mixer.runtime.errors import UserError
from mixer.training import line_metrics, losses
from mixer.training.step import Batch, normalize

Sums = dict[str, jax.Array]
EvalStep = Callable[[Any, Batch], tuple[Sums, jax.Array | None]]


@functools.cache  # the evaluators of one model share the compiled step
def make_eval_step(model: Model, loss: str, mesh: Mesh, keep_logits: bool) -> EvalStep:
    """Makes the jitted function from (params, batch) to sums over the batch, and the logits if they are kept.

    An image without a label does not count for the accuracy, and for the loss only if this asks about each class.
    ImageNet ReaL has such images.
    """

    def eval_step(params: Any, batch: Batch) -> tuple[Sums, jax.Array | None]:
        logits: Any = model.apply({"params": params}, normalize(batch["image"]))
        weight, labels = batch["weight"], batch["labels"]
        example_loss = losses.LOSSES[loss](logits, losses.ones(labels, model.num_classes))
        statuses = jnp.arange(len(image_status.STATUSES))
        sums = {
            "count": jnp.sum(weight),
            "loss": jnp.sum(example_loss * weight),
            "with_loss": jnp.sum(weight if losses.LOSSES[loss].of_no_label else weight * jnp.any(labels >= 0, axis=1)),
            **line_metrics.guesses(logits, labels, weight),
            "statuses": jnp.sum(batch["status"][:, None] == statuses[None], axis=0),
        }
        if labels.shape[1] == 1:
            zeros, label = jnp.zeros(model.num_classes), labels[:, 0]  # label -1 would be the last class
            sums["class_count"] = zeros.at[label].add(jnp.where(label >= 0, weight, 0.0))
            sums["class_correct"] = zeros.at[label].add(weight * (line_metrics.ranks(logits, labels) == 0))
        return sums, logits if keep_logits else None

    return jax.jit(eval_step, out_shardings=devices.replicated(mesh), compiler_options=cpu.options(model, mesh))


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: by name. Always count (usable images) and unreadable (unusable images). Loss and accuracy, unless no
        image has a label: then no other metric is there either. The loss is the mean over the images that have one: of
        a softmax those with a label. Accuracy of multi-label data is the share of images whose first guess is among the
        labels. For single-label data also mean_per_class_accuracy, over the classes that occur, and top5_accuracy, if
        there are more than five classes. If logits were kept, mean_average_precision, and what a model that sees
        nothing would have: baseline_mean_average_precision with equal scores, and baseline_accuracy with the most
        frequent label as its guess for all images. If some images have no label, labelled, the number of those that
        have one. bad_images/KIND, the number of unusable images of each kind that occurs. In a run the model computes
        in config.model.dtype, in mixer.evaluate in float32; their guesses may differ for a few images in 10,000.
      class_accuracy: float64 [classes], NaN for a class without examples; None for multi-label data.
    """

    metrics: dict[str, float]
    class_accuracy: np.ndarray | None


def evaluation_of(
    sums: dict[str, np.ndarray], kept: list[tuple[np.ndarray, np.ndarray]], num_examples: int, split: str
) -> Evaluation:
    """Computes the metrics of a whole split.

    Args:
      sums: of `make_eval_step`, added up over all batches.
      kept: logits and labels of each batch's usable images; empty if logits were not kept.
      num_examples: in the split.
      split: its name, with that of its dataset.

    Raises:
      UserError: none of its images can be read.
      RuntimeError: an example was left out or counted twice.
    """
    count, labelled = (round(float(sums[name])) for name in ("count", "labelled"))
    bad = {name: int(n) for name, n in zip(image_status.STATUSES[1:], sums["statuses"][1:], strict=True) if n}
    unreadable = sum(bad.values())
    if count + unreadable != num_examples:
        raise RuntimeError(f"evaluated {count} + {unreadable} unreadable of {num_examples} examples: a defect of mixer")
    if not count:
        kinds = ", ".join(f"{number} {name}" for name, number in bad.items())
        raise UserError(f"no image of {split} can be read ({kinds}): mend the data, or give another split")
    metrics: dict[str, float] = {"loss": float(sums["loss"]) / max(float(sums["with_loss"]), 1.0)}
    accuracy = float(sums["correct"]) / max(labelled, 1)
    if kept:
        scores, labels = zip(*kept, strict=True)
        metrics |= _of_several_labels(scores, np.concatenate(labels), accuracy)
    else:
        metrics["accuracy"] = accuracy
    if "top5" in sums:
        metrics["top5_accuracy"] = float(sums["top5"]) / max(labelled, 1)
    class_accuracy = None
    if "class_count" in sums:
        class_count = sums["class_count"].astype(np.float64)
        nowhere = np.full_like(class_count, np.nan)
        class_accuracy = np.divide(sums["class_correct"], class_count, out=nowhere, where=class_count > 0)
        metrics["mean_per_class_accuracy"] = float(np.nanmean(class_accuracy)) if labelled else 0.0
    if not labelled:
        metrics = {}
    metrics["count"] = count
    if labelled != count:
        metrics["labelled"] = labelled
    by_kind = {f"bad_images/{name}": number for name, number in bad.items()}
    return Evaluation({**metrics, "unreadable": unreadable, **by_kind}, class_accuracy)


def _of_several_labels(
    scores: Sequence[Float[np.ndarray, "_ classes"]], labels: Int[np.ndarray, "examples max_labels"], accuracy: float
) -> dict[str, float]:
    """Returns the metrics of multi-label data, each with that of a model that sees nothing."""
    having = np.array([len(examples) for examples in _by_class(labels, scores[0].shape[1])])
    labelled = int(np.sum(np.any(labels >= 0, axis=1)))
    return {
        "mean_average_precision": mean_average_precision(scores, labels),
        # With equal scores, the precision of a class is its share of all images.
        "baseline_mean_average_precision": float(np.mean(having[having > 0])) / len(labels) if labelled else 0.0,
        "accuracy": accuracy,
        "baseline_accuracy": float(np.max(having)) / max(labelled, 1),
    }


def mean_average_precision(
    scores: Sequence[Float[np.ndarray, "_ classes"]], labels: Int[np.ndarray, "examples max_labels"]
) -> float:
    """Computes the mean of the average precision over the classes that have an example.

    The average precision of a class is the mean, over its examples, of the precision at the example's score. Equal
    scores count as one threshold. The scores come in parts, one after the other, and are never copied as a whole: they
    may be most of the host's memory.
    """
    precisions = []
    for number, examples in enumerate(_by_class(labels, scores[0].shape[1])):
        if not len(examples):
            continue
        falling = -np.concatenate([part[:, number] for part in scores])
        own = np.sort(falling[examples])
        # Of equal scores, the last place stands for all.
        places, found = (np.searchsorted(among, own, side="right") for among in (np.sort(falling), own))
        precisions.append(np.mean(found / places))
    return float(np.mean(precisions)) if precisions else 0.0


def _by_class(labels: Int[np.ndarray, "examples max_labels"], num_classes: int) -> list[np.ndarray]:
    """Returns which examples each class has, in their order."""
    example, slot = np.nonzero(labels >= 0)
    pairs = np.unique(np.stack([labels[example, slot], example], axis=1), axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, num_classes)))
