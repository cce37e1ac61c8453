"""Mixer-L/32 on JFT-300M, 7 epochs.

The paper: 80.67% ImageNet top-1 after fine-tuning at 224 (Table 3); about 120 TPU-v3 core-days.
The data: any collection of images with sets of labels, prepared by scripts/prepare.py multilabel.

    python -m mixer.train --config configs/l32_jft.py --workdir gs://BUCKET/l32_jft --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.jft("L/32", epochs=7, learning_rate=1e-3)
