"""A small Mixer on CIFAR-10 from scratch as the paper initialises it, for two CPU cores; the paper has no such run.

    python -m mixer.train --config configs/cifar10_plain.py --config.input.data_dir=DIR

The runs of docs/understanding.md and docs/results.md began with it. configs/cifar10.py learns more from less compute.
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.small_cifar10()
