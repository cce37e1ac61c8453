"""Mixer-B/16 on ImageNet-21k, 300 epochs.

The paper: 80.64% ImageNet top-1 after fine-tuning at 224 (Table 3); about 150 TPU-v3 core-days.
The data: scripts/prepare.py imagenet21k, from the released archive.

    python -m mixer.train --config configs/b16_i21k.py --workdir gs://BUCKET/b16_i21k --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.imagenet21k("B/16", magnitude=10, mixup=0.2)
