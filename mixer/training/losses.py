"""Classification losses, for labels that travel as padded class indices."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def targets(labels: Int[Array, "batch max_labels"], num_classes: int) -> Float[Array, "batch classes"]:
    """Turns class indices, padded with -1, into rows of zeros and ones."""
    return jnp.max(jax.nn.one_hot(labels, num_classes), axis=1)


def sigmoid_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Every class decides for itself; summed over classes. The published ImageNet-1k recipe uses it too."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """One class among all; an example with several labels spreads its probability evenly over them."""
    total = jnp.maximum(jnp.sum(targets, axis=-1, keepdims=True), 1e-8)
    return optax.softmax_cross_entropy(logits, targets / total)


LOSSES = {"sigmoid_xent": sigmoid_cross_entropy, "softmax_xent": softmax_cross_entropy}
