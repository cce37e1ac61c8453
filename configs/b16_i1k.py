"""Mixer-B/16 on ImageNet-1k, 300 epochs.

The paper: 76.44% ImageNet top-1 (Table 3); about 10 TPU-v3 core-days.

    python -m mixer.train --config configs/b16_i1k.py --workdir gs://BUCKET/b16_i1k --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.imagenet1k("B/16")
