"""Your own images from scratch, in class folders: my_images/cat/*.jpg, my_images/dog/*.jpg, ...

    python -m mixer.train --config configs/folder.py --config.input.data_dir=my_images

A tenth of each class is kept for validation, unless there is a folder for it; docs/data.md shows what a folder may look
like. With weights to start from, configs/finetune.py:task=folder is better.

Arguments, as in configs/folder.py:model=s16,size=128: model (ti16, s32, s16, b16, ...; the number is the patch size)
and size in pixels. The default, Ti/16 at 224 pixels, is small enough for a CPU. With a GPU and tens of thousands of
images, take s16. For images of 32 pixels: model=ti4,size=32. The recipe was chosen on 640 to 50,000 images:
docs/results.md.
"""

from ml_collections import ConfigDict

from mixer import models, recipe

_SMALL = 64  # pixels; images of this size are pictures of one thing, which a crop would lose


def get_config(arguments: str = "") -> ConfigDict:
    given = recipe.arguments(arguments, model="ti16", size=224)
    config = recipe.base()
    config.model.variant = models.variant(given["model"])
    config.model.dtype = "auto"  # on a CPU, what is faster there
    config.loss = "softmax_xent"
    config.batch_size = 64  # a thousand images are few steps otherwise
    recipe.duration(config, "total", epochs=60)
    recipe.duration(config, "warmup", epochs=3)
    recipe.duration(config, "eval", epochs=5)
    recipe.duration(config, "checkpoint", epochs=5)
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.beta2 = 0.99  # short runs: forget the first gradients sooner
    config.mixup.p = 0.5
    config.input.dataset = "folder"
    config.input.image_size = given["size"]
    if given["size"] <= _SMALL:
        config.input.crop = "pad"
        config.input.eval_resize = given["size"]
    else:
        config.input.crop_area = (0.35, 1.0)  # the paper's 5% is for a million images
    return config
