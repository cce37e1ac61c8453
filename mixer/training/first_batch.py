"""A picture of the first training batch, as the model sees it: look at it before a long run."""

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from mixer.config import run_folder
from mixer.data import contact_sheet, image_status, pipeline, readers
from mixer.training.step import prepare


def write_picture(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """Writes inspect.png to the run's folder: the first batch with its labels, augmented and mixed. Returns its path.

    Raises:
      UserError: the data cannot be used, or the folder not be written to.
    """
    workdir = run_folder.make(workdir)
    source = readers.open_source(config.input, config.input.train_split, workdir / "cache")
    config = run_folder.with_shuffle_block(config, workdir, source.shuffle_block)
    batches = pipeline.train_batches(
        source, config.input, seed=config.seed, batch_size=config.batch_size,
        rows=slice(0, config.batch_size), steps=range(1),
    )  # fmt: skip
    batch = jax.tree.map(jnp.asarray, next(iter(batches)))
    key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))[0]  # the key of mixup in step 0
    pictures, targets = jax.device_get(prepare(batch, len(source.class_names), key, config))
    path = workdir / "inspect.png"
    statuses = [image_status.STATUSES[status] for status in batch["status"]]
    contact_sheet.write_sheet(path, pictures, targets, source.class_names, statuses)
    return path
