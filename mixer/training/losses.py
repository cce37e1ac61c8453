"""Classification losses. In a batch, labels are class indices, padded with -1; a loss takes them as rows of targets."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def ones(labels: Int[Array, "batch max_labels"], num_classes: int) -> Float[Array, "batch classes"]:
    """Returns rows with a one for each class of an example and zeros elsewhere. Padding (-1) adds nothing."""
    return jnp.max(jax.nn.one_hot(labels, num_classes), axis=1)


def smoothed(targets: Float[Array, "batch classes"], smoothing: float) -> Float[Array, "batch classes"]:
    """Moves a share of each example's targets to all classes alike (label smoothing, arXiv 1512.00567, Section 7).

    An example without a label stays without: it has no target to move.

    Args:
      targets: of one label or several.
      smoothing: the share, from 0 to 1.
    """
    total = jnp.sum(targets, axis=-1, keepdims=True)
    return (1 - smoothing) * targets + smoothing * total / targets.shape[-1]


def shared(targets: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Divides an example's targets by their sum where that is above one: several labels share it equally."""
    return targets / jnp.maximum(jnp.sum(targets, axis=-1, keepdims=True), 1.0)


def sigmoid_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Computes the binary cross-entropy of each class and sums it over the classes.

    The paper does not name its loss. The published ImageNet-1k config uses this one.
    """
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Computes the cross-entropy of the softmax over all classes.

    Several labels of an example share its probability equally, see `shared`. The loss of an example without a label is
    0, and its share of a mixed image adds nothing.
    """
    losses: Array = optax.softmax_cross_entropy(logits, shared(targets))
    return losses


class Probabilities(NamedTuple):
    """How logits become probabilities.

    Attributes:
      of_logits: from logits to the probabilities of the classes.
      described: this function in words, for model cards.
    """

    of_logits: Callable[[jax.Array], jax.Array]
    described: str


# Model cards and the page of a run have code for each.
PROBABILITIES = {
    "sigmoid": Probabilities(jax.nn.sigmoid, "a sigmoid of each"),
    "softmax": Probabilities(jax.nn.softmax, "their softmax"),
}


class Loss(NamedTuple):
    """A loss function and what belongs to it.

    Attributes:
      of_logits: from (logits [batch, classes], targets [batch, classes]) to the loss of each example [batch].
      targets: from a row with a one for each label to the targets of training, before smoothing and mixing. Those of
        the softmax share one among several labels, so that a mixed image counts by its share.
      described: the loss in words, for model cards.
      assumes: the function from logits to probabilities that the loss assumes: a key of `PROBABILITIES`.
      of_no_label: whether an example without a label has a loss.
    """

    of_logits: Callable[[jax.Array, jax.Array], jax.Array]
    targets: Callable[[jax.Array], jax.Array]
    described: str
    assumes: str
    of_no_label: bool

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each example."""
        return self.of_logits(logits, targets)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Returns the probabilities of the classes, as the loss assumes them."""
        return PROBABILITIES[self.assumes].of_logits(logits)


LOSSES = {
    "sigmoid_xent": Loss(sigmoid_cross_entropy, lambda targets: targets, "sigmoid cross-entropy", "sigmoid", True),
    "softmax_xent": Loss(softmax_cross_entropy, shared, "softmax cross-entropy", "softmax", False),
}
