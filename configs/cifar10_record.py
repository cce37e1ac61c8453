"""CIFAR-10 from scratch for at most 0.5 PFLOP of training; docs/learning.md has what it reaches. Not from the paper.

python -m mixer.train --config configs/cifar10_record.py --config.input.data_dir=DIR
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.cifar10(epochs=65, num_blocks=8, hidden_dim=96)
