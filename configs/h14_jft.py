"""Mixer-H/14 on JFT-300M, 14 epochs.

The paper: 86.32% ImageNet top-1 after fine-tuning at 224, 87.94% at 448 (Tables 3 and 2); about 1,010 TPU-v3
core-days.
The data: any collection of images with sets of labels, prepared by scripts/prepare.py multilabel.

    python -m mixer.train --config configs/h14_jft.py --workdir gs://BUCKET/h14_jft --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    config = recipe.jft("H/14", epochs=14, learning_rate=1e-3)
    # Parameters, gradients and Adam's moments are 16 bytes a parameter, 6.9 GB: too much of a v3 core's 16 GB to copy.
    config.sharding = "fully_sharded"
    config.model.remat = True
    return config
