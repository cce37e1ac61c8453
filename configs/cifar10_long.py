"""CIFAR-10 from scratch for at most 0.25 PFLOP of training (docs/learning.md). Not the paper's.

python -m mixer.train --config configs/cifar10_long.py --config.input.data_dir=DIR
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.cifar10(epochs=44, num_blocks=8, hidden_dim=80)
