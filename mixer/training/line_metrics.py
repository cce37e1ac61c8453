"""What a line of metrics says of the steps since the line before: sums in the state, and norms of the last step.

The sums are part of the state, so they lie in each checkpoint: a run that is interrupted between two lines writes the
same lines as one that is not. The step adds to them on the devices, which therefore never wait; the loop empties them
after each line.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

SUMS = ("steps", "loss", "labelled", "correct", "top5")  # what is summed: steps, losses of steps, and images
_TOP = 5

Guesses = dict[str, Array]


def ranks(logits: Float[Array, "batch classes"], labels: Int[Array, "batch max_labels"]) -> Int[Array, " batch"]:
    """Returns how many classes come before the best of an image's own labels: 0 if the first guess is right.

    Of equal logits the smaller class comes first, as in argmax. A logit that is NaN has all classes before it, and so
    has an image without a label. A sort of all logits would cost far more.

    Args:
      logits: of the images.
      labels: of the images, padded with -1.
    """
    num_classes = logits.shape[1]
    classes = jnp.arange(num_classes)[None]
    own = jnp.any(classes[None] == labels[:, :, None], axis=1)  # [batch, classes]
    best = jnp.max(jnp.where(own, logits, -jnp.inf), axis=1, keepdims=True)
    first = jnp.min(jnp.where(own & (logits == best), classes, num_classes), axis=1, keepdims=True)
    return num_classes - jnp.sum((logits < best) | ((logits == best) & (classes >= first)), axis=1)


def guesses(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch max_labels"], weight: Float[Array, " batch"]
) -> Guesses:
    """Counts the images whose first guess, and one of whose first five, is among their own labels; see `ranks`.

    Args:
      logits: of the images.
      labels: of the images, padded with -1. With mixup, an image's own labels have the larger share of its target; with
        CutMix they may have a smaller one.
      weight: 0 for an image that does not count. An image without a label does not either.

    Returns:
      labelled, correct and top5: numbers of images, float32 []. No top5 for five classes or fewer, of which all are
      among the first five, nor for several labels.
    """
    rank = ranks(logits, labels)
    counts = weight * jnp.any(labels >= 0, axis=1)
    found = {"labelled": jnp.sum(counts), "correct": jnp.sum(counts * (rank < 1))}
    if logits.shape[1] > _TOP and labels.shape[1] == 1:
        found["top5"] = jnp.sum(counts * (rank < _TOP))
    return found


def no_sums() -> Float[Array, " sums"]:
    """Returns the sums of no step."""
    return jnp.zeros(len(SUMS))


def of_step(loss: Float[Array, ""], counted: Guesses) -> Float[Array, " sums"]:
    """Returns the sums of one step; `counted` is empty if guesses are not counted."""
    found = {"steps": jnp.ones(()), "loss": loss, **counted}
    return jnp.stack([found.get(name, jnp.zeros(())) for name in SUMS])


def named(sums: Float[Array, " sums"], counted: Guesses) -> dict[str, Array]:
    """Returns those of the sums that a run has, by name."""
    return {name: one for name, one in zip(SUMS, sums, strict=True) if name in ("steps", "loss", *counted)}


def means(sums: Mapping[str, Any], mixed: bool) -> dict[str, float]:
    """Returns the metrics of a line. A mean over nothing is NaN.

    Args:
      sums: from `named`.
      mixed: whether there is mixup or CutMix. Then the model sees a mixed picture, and its guess is compared with the
        labels of one of the two: the one that has the larger share, or in which a box was pasted. This accuracy has
        another name: it cannot be compared with an evaluation's.
    """
    kind = "mixed_" if mixed else ""
    names = {"correct": f"{kind}accuracy", "top5": f"{kind}top5_accuracy"}
    accuracies = {name: _ratio(sums[part], sums["labelled"]) for part, name in names.items() if part in sums}
    return {"loss": _ratio(sums["loss"], sums["steps"]), **accuracies}


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan


def norms(
    params: Mapping[str, Any],
    before: Mapping[str, Any],
    grads: Mapping[str, Any],
    which: str,
    with_effect: Callable[[Any], Any],
) -> dict[str, Array]:
    """Returns norms after a step, as config.metrics.norms asks.

    Args:
      params: after the step.
      before: before it.
      grads: of the step, before clipping.
      which: total returns the norm of the parameters; updates also that of their change as a share of the parameters;
        layers both of each layer too, and the norm of its gradient. A layer is a module of the model, such as a block.
      with_effect: returns the part of a tree of parameters whose changes count.
    """
    found = {"param_norm": optax.tree.norm(params)}
    if which == "total":
        return found
    after, old = with_effect(params), with_effect(before)
    found["update_ratio"] = _change(after, old)
    for layer in params if which == "layers" else ():
        found[f"grad_norm/{layer}"] = optax.tree.norm(grads[layer])
        found[f"param_norm/{layer}"] = optax.tree.norm(params[layer])
        found[f"update_ratio/{layer}"] = _change(after[layer], old[layer])
    return found


def _change(params: Any, before: Any) -> Array:
    """Returns the norm of the change of parameters, as a share of their norm before it; 0 where they stay at zero."""
    change, norm = optax.tree.norm(jax.tree.map(jnp.subtract, params, before)), optax.tree.norm(before)
    return jnp.where(change > 0, change / norm, 0.0)
