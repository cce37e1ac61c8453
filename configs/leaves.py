"""A small Mixer pre-trained on dead leaves, without photographs: docs/learning.md. Not from the paper.

python -m mixer.train --config configs/leaves.py --workdir runs/leaves
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.leaves(pictures=2000, examples=500_000)
