"""What is about to run, in lines for the console: model, cost, devices and data."""

from collections.abc import Iterable, Iterator

import jax
import ml_collections

from mixer import models
from mixer.data.sources import Source
from mixer.training.setup import Setup


def of_model(config: ml_collections.ConfigDict, built: Setup) -> str:
    """Describes the model and its cost."""
    macs = built.model.forward_macs(config.input.image_size)
    parameters = models.num_parameters(built.shapes.params)
    return (
        f"{models.name_of(built.model)} at {config.input.image_size} px: "
        f"{parameters:,} parameters, {2 * macs / 1e9:.3g} GFLOP/image forward, {6 * macs / 1e9:.3g} in training"
    )


def of_training(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, source: Source, eval_images: int, total_steps: int,
    epochs: float,
) -> str:  # fmt: skip
    """Describes devices, data and length.

    Args:
      config: of the run.
      mesh: its devices.
      source: the training split.
      eval_images: on which accuracy is measured.
      total_steps: of the whole run.
      epochs: that it takes in until its end.
    """
    return (
        f"{mesh.size} x {mesh.devices.flat[0].device_kind} in {jax.process_count()} process(es), "
        f"{config.sharding}, {config.model.dtype}; {config.input.dataset}: {source.num_examples:,} training and "
        f"{eval_images:,} evaluation images ({config.input.eval_split}), {len(source.class_names):,} classes; "
        f"{total_steps:,} steps of {config.batch_size}, {epochs:.4g} epochs"
    )


def of_data(sources: Iterable[Source]) -> Iterator[str]:
    """Yields what the readers found. One folder may hold several splits, and is reported once."""
    for report in dict.fromkeys(tuple(source.report) for source in sources):
        yield from report
