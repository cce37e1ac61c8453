"""What is about to run, in lines for the console: model, cost, devices and data."""

from collections.abc import Iterable, Iterator

import jax
import ml_collections

from mixer import models
from mixer.data.sources import Source
from mixer.training import sharding
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
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, built: Setup, source: Source, eval_images: int,
    total_steps: int, resized_at: int, epochs: float,
) -> str:  # fmt: skip
    """Describes devices, data and length.

    Args:
      config: of the run.
      mesh: its devices.
      built: its model and state.
      source: the training split.
      eval_images: on which accuracy is measured.
      total_steps: of the whole run.
      resized_at: the step from which the batch size is the config's, if another was before; 0 if none was.
      epochs: that it takes in until its end.
    """
    layout = config.sharding
    if mesh.size > 1 and layout == "fully_sharded":  # an array is split only if the devices divide one of its axes
        layout += f" ({sharding.split_share(built.shapes, built.shardings):.0%} of the state is split)"
    return (
        f"{mesh.size} x {mesh.devices.flat[0].device_kind} in {jax.process_count()} process(es), "
        f"{layout}, {config.model.dtype}; {config.input.dataset}: {source.num_examples:,} training and "
        f"{eval_images:,} evaluation images ({config.input.eval_split}), {len(source.class_names):,} classes; "
        f"{total_steps:,} steps{f', from step {resized_at:,} on' if resized_at else ''} of {config.batch_size}, "
        f"{epochs:.4g} epochs"
    )


def of_data(sources: Iterable[Source]) -> Iterator[str]:
    """Yields what the readers found. One folder may hold several splits, and is reported once."""
    for report in dict.fromkeys(tuple(source.report) for source in sources):
        yield from report
