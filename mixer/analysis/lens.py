"""A lens on each block: what the trained head would answer if the model ended there.

The model that ends after k blocks is the same model with num_blocks=k: its final LayerNorm, mean over tokens and head
follow the k-th block. With 0 blocks they follow the stem.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epy
from jaxtyping import Array, Float

from mixer.evaluation import class_matching, classification, evaluator
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import line_metrics
from mixer.training.step import Batch, normalize

with epy.lazy_imports():  # it imports TensorFlow
    from mixer.data import readers


def logits_after_blocks(
    model: MlpMixer, params: Any, images: Float[Array, "batch height width 3"]
) -> Float[Array, "depths batch classes"]:
    """Computes the logits of the model that ends after 0, 1, 2, ... blocks, for images in [-1, 1].

    Within jit, XLA computes the blocks that these models share only once.
    """
    depths = [
        model.clone(num_blocks=depth, pyramid=None if model.pyramid is None else model.pyramid[:depth])
        for depth in range(model.num_blocks + 1)
    ]
    logits: list[Any] = [depth.apply({"params": params}, images) for depth in depths]
    return jnp.stack(logits)


class Lens:
    """Accuracy on a split after each block."""

    def __init__(self, settings: ml_collections.ConfigDict, context: evaluator.Context):
        """Opens the split; see `classification.Classification`, which has the same arguments and errors."""
        assert isinstance(context.model, MlpMixer)
        self._config, self._context = classification.input_of(settings, context.input), context
        self._split = settings.split
        source = readers.open_source(self._config, settings.split, context.cache_dir)
        self.source = class_matching.matched(source, context, self._config.dataset)
        self._step = jax.jit(functools.partial(_counts, context.model), out_shardings=devices.replicated(context.mesh))

    @property
    def chance(self) -> float | None:
        """The accuracy of a guess that does not look; None with several labels, where more than one guess is right."""
        return None if self.source.multi_label else 1 / self._context.model.num_classes

    def accuracies(self, params: Any, through: evaluator.Through = iter) -> list[float]:
        """Returns the accuracy after the stem, after the first block, the second, ..., on all devices in float32.

        An image without a label does not count. If no image has one, there are no accuracies.

        Raises:
          UserError: no image can be read.

        Args:
          params: of the context's model; they may lie anywhere.
          through: passes the batches on, and may show how many are done.
        """
        params = jax.device_put(params, devices.replicated(self._context.mesh))
        batches = evaluator.split_batches(self.source, self._config, self._context, through)
        with jax.default_matmul_precision("float32"):  # TPUs and GPUs round the factors of products by default
            correct, labelled, usable = evaluator.total(self._step(params, batch) for batch in batches)
        if not usable:
            raise UserError(f"no image of {self._config.dataset} {self._split} can be read")
        return [float(share) for share in correct / labelled] if labelled else []


def _counts(model: MlpMixer, params: Any, batch: Batch) -> tuple[Array, Array, Array]:
    """Counts the correct guesses of a batch after each block, the images with a label, and those that are usable."""
    logits = logits_after_blocks(model, params, normalize(batch["image"]))
    correct = jax.vmap(line_metrics.ranks, (0, None))(logits, batch["labels"]) == 0
    labelled = batch["weight"] * jnp.any(batch["labels"] >= 0, axis=1)
    return jnp.sum(correct * batch["weight"][None], axis=1), jnp.sum(labelled), jnp.sum(batch["weight"])
