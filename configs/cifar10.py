"""A small Mixer on CIFAR-10 from scratch, for two CPU cores; the paper has no such run.

python -m mixer.train --config configs/cifar10.py --config.input.data_dir=DIR
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.small_cifar10()
