"""The libraries that commands use, imported as the product imports them."""

# ruff: noqa: E402 (others import TensorFlow, which is prepared first)

from mixer.runtime import environment, errors

environment.prepare()
with environment.prepared(TF_USE_LEGACY_KERAS="1"):  # as mixer.data.tensorflow
    import tensorflow
with errors.root_logger_kept():  # as mixer.training.checkpoint
    import orbax.checkpoint
import clu.metric_writers
import flax.linen
import google.cloud.storage
import matplotlib.figure
import optax
import tensorflow_datasets

__all__ = ["clu", "flax", "google", "matplotlib", "optax", "orbax", "tensorflow", "tensorflow_datasets"]
