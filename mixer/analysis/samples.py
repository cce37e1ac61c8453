"""Examples of a split, drawn at random: the pictures that the model gets, their labels and its logits."""

from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Float, Int, UInt8

from mixer.data.sources import Source
from mixer.evaluation import evaluator
from mixer.runtime import devices
from mixer.training.step import exact_outputs


class Samples(NamedTuple):
    """Examples whose images can be used.

    Attributes:
      pictures: as the model gets them.
      labels: of each example, padded with -1.
      logits: of the model, in float32.
    """

    pictures: UInt8[np.ndarray, "samples height width 3"]
    labels: Int[np.ndarray, "samples max_labels"]
    logits: Float[np.ndarray, "samples classes"]


def draw(
    source: Source, config: ml_collections.ConfigDict, context: evaluator.Context, params: Any, number: int,
    seed: int = 0,
) -> Samples:  # fmt: skip
    """Draws examples of a split without replacement, in the order of their records.

    Args:
      source: the split.
      config: as `config.input`.
      context: the model and the mesh.
      params: of the context's model.
      number: how many; a split that has fewer is drawn whole.
      seed: of the choice.
    """
    chosen = np.random.default_rng(seed).permutation(source.num_examples)[:number]
    params = jax.device_put(params, devices.replicated(context.mesh))
    kept = []
    for batch in evaluator.split_batches(source, config, context, records=np.sort(chosen)):
        logits = _logits(context.model, params, batch["image"])
        kept.append(devices.to_host(context.mesh, batch["image"], batch["labels"], logits, batch["weight"]))
    pictures, labels, logits, weight = (np.concatenate(part) for part in zip(*kept, strict=True))
    usable = weight > 0
    return Samples(pictures[usable], labels[usable], logits[usable])


def logits_of(model: Any, params: Any, pictures: UInt8[np.ndarray, "samples height width 3"]) -> np.ndarray:
    """Returns the logits of pictures, float32 [samples, classes]."""
    return np.asarray(_logits(model, params, pictures))


_logits = jax.jit(exact_outputs, static_argnums=0)
