"""Mixer-L/16 on ImageNet-1k, 300 epochs.

The paper: 71.76% ImageNet top-1 (Table 3), below B/16: it overfits; about 40 TPU-v3 core-days.

    python -m mixer.train --config configs/l16_i1k.py --workdir gs://BUCKET/l16_i1k --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.imagenet1k("L/16")
