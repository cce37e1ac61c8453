"""Fine-tuning as in the paper (Section 3): momentum, batches of 512, no weight decay, cosine; one file for all tasks.

    python -m mixer.train --config configs/finetune.py:model=b16,task=pets,size=448 --workdir runs/pets \\
        --config.init_from=B/16-i21k --config.input.data_dir=DIR

Arguments: model (s32, s16, b32, b16, l32, l16, h14), task (a row of mixer/config/tasks.py: cifar10, cifar100, pets,
flowers, imagenet; or folder: your own images in class folders, in batches of 64) and size in pixels (224 by default).
At 448 the token mixing is extended as in Appendix C.
The paper, Mixer-B/16 from ImageNet-21k at 224 pixels: 80.64% on ImageNet, 92.50% on average over the five tasks.
"""

from ml_collections import ConfigDict

from mixer import models, recipe
from mixer.config import tasks


def get_config(arguments: str = "") -> ConfigDict:
    given = recipe.arguments(arguments, model="b16", task="cifar10", size=224)
    return recipe.finetune(models.variant(given["model"]), tasks.find(given["task"])[1], given["size"])
