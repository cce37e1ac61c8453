"""A picture of the first training batch, as the model sees it: look at it before a long run."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from mixer.config import run_folder
from mixer.data import contact_sheet, pipeline, readers
from mixer.data.pixels import image_status
from mixer.runtime import devices
from mixer.training import checkpoint_reader, history, sharding
from mixer.training.step import Batch, keys_of_step, prepare


def write_picture(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """Writes inspect.png to the run's folder: the first batch with its labels, augmented and mixed. Returns its path.

    Raises:
      UserError: the data cannot be used, the groups of mixing do not divide the batch, or the folder cannot be written
        to.
    """
    sharding.check_divides(config, devices.make_mesh(jax.local_devices()[:1]))
    workdir = run_folder.make(workdir)
    source = readers.open_source(config.input, config.input.train_split, workdir / "cache")
    before = history.settings(workdir) if checkpoint_reader.has_checkpoints(workdir) else {}
    config = run_folder.decided(config, before, {"input.shuffle_block": source.shuffle_block})
    batches = pipeline.train_batches(
        source, config.input, seed=config.seed, batch_size=config.batch_size,
        rows=slice(0, config.batch_size), steps=range(1),
    )  # fmt: skip
    path = workdir / "inspect.png"
    contact_sheet.write_sheet(path, *_seen(next(iter(batches)), source.class_names, 0, config))
    return path


def sheet(batch: Batch, class_names: Sequence[str], step: int, config: ml_collections.ConfigDict) -> np.ndarray:
    """Draws images of a batch that lies on the devices, from the first of this host's devices.

    Args:
      batch: of the run, on its mesh.
      class_names: in the order of the labels.
      step: number of steps before it.
      config: of the run.

    Returns:
      uint8 [height, width, 3].
    """
    first = {name: np.asarray(column.addressable_shards[0].data[: _rows(config)]) for name, column in batch.items()}
    return contact_sheet.sheet(*_seen(first, class_names, step, config))


def _rows(config: ml_collections.ConfigDict) -> int:
    """Returns how many rows a picture needs: what is mixed stays together."""
    group = sharding.rows_together(config)
    return math.ceil(contact_sheet.MAX_IMAGES / group) * group


def _seen(
    batch: dict[str, np.ndarray], class_names: Sequence[str], step: int, config: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray, Sequence[str], list[str]]:
    """Returns the first images of a batch as the model sees them in a step, and their captions; see `contact_sheet`.

    Labels are not smoothed: the share that smoothing gives to every class would only hide them.
    """
    config = ml_collections.ConfigDict(config)
    config.label_smoothing = 0.0
    batch = {name: column[: _rows(config)] for name, column in batch.items()}
    mixing_key, _ = keys_of_step(config.seed, step)
    pictures, targets = jax.device_get(prepare(jax.tree.map(jnp.asarray, batch), len(class_names), mixing_key, config))
    return pictures, targets, class_names, [image_status.STATUSES[status] for status in batch["status"]]
