"""Mixer-S/32 on JFT-300M, 5 epochs.

The paper: 68.70% ImageNet top-1 after fine-tuning at 224 (Table 3); about 10 TPU-v3 core-days.
The data: any collection of images with sets of labels, prepared by scripts/prepare.py multilabel.

    python -m mixer.train --config configs/s32_jft.py --workdir gs://BUCKET/s32_jft --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.jft("S/32", epochs=5, learning_rate=3e-3)
