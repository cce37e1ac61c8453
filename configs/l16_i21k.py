"""Mixer-L/16 on ImageNet-21k, 300 epochs.

The paper: 82.89% ImageNet top-1 after fine-tuning at 224, 84.15% at 448 (Tables 3 and 2); about 410 TPU-v3
core-days.
The data: scripts/prepare.py imagenet21k, from the released archive.

    python -m mixer.train --config configs/l16_i21k.py --workdir gs://BUCKET/l16_i21k --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.imagenet21k("L/16", magnitude=20, mixup=0.5)
