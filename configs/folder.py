"""Your own images, in class folders: my_images/cat/*.jpg, my_images/dog/*.jpg, ...

    python -m mixer.train --config configs/folder.py --config.input.data_dir=my_images

A tenth of each class is kept for validation, unless there is a folder for it; docs/data.md shows what a folder may look
like.
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    config = recipe.base()
    config.input.dataset = "folder"
    config.batch_size = 256
    config.loss = "softmax_xent"
    config.checkpoint.keep_best = 1
    recipe.duration(config, "total", epochs=50)
    recipe.duration(config, "warmup", epochs=5)
    return config
