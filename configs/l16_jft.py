"""Mixer-L/16 on JFT-300M, 14 epochs (or 7).

The paper: 84.82% ImageNet top-1 after fine-tuning at 224, 86.78% at 448 (Table 3); about 450 TPU-v3 core-days.
With --config.total_epochs=7: 84.05%, about 230.
The data: any collection of images with sets of labels, prepared by scripts/prepare.py multilabel.

    python -m mixer.train --config configs/l16_jft.py --workdir gs://BUCKET/l16_jft --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.jft("L/16", epochs=14, learning_rate=1e-3)
