"""Evaluation: every example of a split once, on all devices."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mixer.models import Model
from mixer.training import losses, sharding
from mixer.training.step import Batch, normalize

Sums = dict[str, jax.Array]


def make_eval_step(
    model: Model, loss: str, mesh: Mesh, keep_logits: bool, num_statuses: int
) -> Callable[[Any, Batch], tuple[Sums, jax.Array | None]]:
    """Builds the jitted function from (params, batch) to sums over the batch, and the logits if they are kept.

    An image without a label (ImageNet ReaL has some) counts for the loss, not for the accuracy.
    """

    def eval_step(params: Any, batch: Batch) -> tuple[Sums, jax.Array | None]:
        logits: Any = model.apply({"params": params}, normalize(batch["image"]))
        weight, labels = batch["weight"], batch["labels"]
        example_loss = losses.LOSSES[loss](logits, losses.targets(labels, model.num_classes))
        correct = weight * jnp.any(jnp.argmax(logits, axis=-1)[:, None] == labels, axis=1)
        sums = {
            "count": jnp.sum(weight),
            "loss": jnp.sum(example_loss * weight),
            "labelled": jnp.sum(weight * jnp.any(labels >= 0, axis=1)),
            "correct": jnp.sum(correct),
            "statuses": jnp.sum(batch["status"][:, None] == jnp.arange(num_statuses)[None], axis=0),
        }
        if labels.shape[1] == 1:
            zeros, label = jnp.zeros(model.num_classes), labels[:, 0]  # -1 would be the last class
            sums["class_count"] = zeros.at[label].add(jnp.where(label >= 0, weight, 0.0))
            sums["class_correct"] = zeros.at[label].add(correct)
        return sums, logits if keep_logits else None

    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      metrics: loss; accuracy (with several labels: the first guess is among them); mean_per_class_accuracy, over the
        classes that occur, for single-label data; mean_average_precision where logits were kept; count of images;
        labelled, those of them with a label, where that is not all; unreadable, and those by kind in bad_images/KIND.
      class_accuracy: float64 [classes], NaN for a class without an example; None for multi-label data.
    """

    metrics: dict[str, float]
    class_accuracy: np.ndarray | None


def evaluate(
    eval_step: Callable[[Any, Batch], tuple[Sums, jax.Array | None]],
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    num_examples: int,
    statuses: Sequence[str],
) -> Evaluation:
    """Evaluates every example of a split once.

    `statuses` names what can be wrong with an image; the first says that nothing is.

    Where the step keeps logits they are gathered in host memory, four bytes for each example and class.

    Raises:
      RuntimeError: not every example was met exactly once.
    """
    totals: Sums = {}
    kept: list[tuple[np.ndarray, ...]] = []
    for rows in batches:
        batch = sharding.to_devices(rows, mesh)
        sums, logits = eval_step(params, batch)
        totals = jax.tree.map(jnp.add, totals, sums) if totals else sums
        if logits is not None:
            kept.append(sharding.to_host(mesh, logits, batch["labels"], batch["weight"]))
    found = jax.device_get(totals)
    count, labelled = (round(float(found[name])) for name in ("count", "labelled"))
    bad = {name: int(number) for name, number in zip(statuses[1:], found["statuses"][1:], strict=True) if number}
    unreadable = sum(bad.values())
    if count + unreadable != num_examples:
        raise RuntimeError(f"evaluated {count} + {unreadable} unreadable of {num_examples} examples: a defect of mixer")
    metrics: dict[str, float] = {
        "loss": float(found["loss"]) / max(count, 1),
        "accuracy": float(found["correct"]) / max(labelled, 1),
    }
    class_accuracy = None
    if "class_count" in found:
        class_count = found["class_count"].astype(np.float64)
        nowhere = np.full_like(class_count, np.nan)
        class_accuracy = np.divide(found["class_correct"], class_count, out=nowhere, where=class_count > 0)
        metrics["mean_per_class_accuracy"] = float(np.nanmean(class_accuracy)) if labelled else 0.0
    if kept:
        scores, labels, weight = (np.concatenate(part) for part in zip(*kept, strict=True))
        metrics["mean_average_precision"] = mean_average_precision(scores[weight > 0], labels[weight > 0])
    metrics["count"] = count
    if labelled != count:
        metrics["labelled"] = labelled
    by_kind = {f"bad_images/{name}": number for name, number in bad.items()}
    return Evaluation({**metrics, "unreadable": unreadable, **by_kind}, class_accuracy)


def mean_average_precision(
    scores: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples max_labels"]
) -> float:
    """The mean over classes with an example of the area under the precision-recall curve (average precision).

    AP of a class = sum over its examples, from the highest score down, of the precision there, divided by their number;
    equal scores count as one threshold.
    """
    present = np.zeros(scores.shape, bool)
    example, slot = np.nonzero(labels >= 0)
    present[example, labels[example, slot]] = True
    precisions = []
    for class_scores, positive in zip(scores.T, present.T, strict=True):
        if not positive.any():
            continue
        order = np.argsort(-class_scores, kind="stable")
        found = np.cumsum(positive[order])
        # The last place of a run of equal scores stands for all of it.
        last = np.searchsorted(-class_scores[order], -class_scores[order], side="right") - 1
        precisions.append(np.mean((found[last] / (last + 1))[positive[order]]))
    return float(np.mean(precisions)) if precisions else 0.0
