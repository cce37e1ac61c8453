"""A sweep of seconds: settings of a tiny model, and data to train it on."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

# A model of a few thousand parameters and a training of seconds.
TINY = {
    "model.num_blocks": 1,
    "model.hidden_dim": 16,
    "model.channels_mlp_dim": 32,
    "batch_size": 16,
    "total_steps": 4,
    "warmup_steps": 1,
    "log_steps": 1,
    "checkpoint_steps": 1,
}


def write_cifar10(folder: pathlib.Path) -> str:
    """Prepares a CIFAR-10 of 200 and 50 grey images, each class of a shade of its own, where TFDS finds it."""
    features = tfds.builder("cifar10", data_dir=folder).info.features

    def examples(count):
        shade = 25 * np.ones((32, 32, 3), np.uint8)
        return [(i, {"id": str(i), "image": i % 10 * shade, "label": i % 10}) for i in range(count)]

    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="3.0.2",
        features=features,
        split_datasets={"train": examples(200), "test": examples(50)},
        data_dir=folder,
    )
    return str(folder)
