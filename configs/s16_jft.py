"""Mixer-S/16 on JFT-300M, 5 epochs.

The paper: 73.83% ImageNet top-1 after fine-tuning at 224 (Table 3); about 30 TPU-v3 core-days.
The data: any collection of images with sets of labels, prepared by scripts/prepare.py multilabel.

    python -m mixer.train --config configs/s16_jft.py --workdir gs://BUCKET/s16_jft --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.jft("S/16", epochs=5, learning_rate=3e-3)
