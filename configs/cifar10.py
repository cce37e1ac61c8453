"""A small Mixer on CIFAR-10 from scratch, for two CPU cores; the paper has no such run.

python -m mixer.train --config configs/cifar10.py --config.input.data_dir=DIR
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    config = recipe.base()
    recipe.small_model(config)
    config.loss = "softmax_xent"
    config.batch_size = 64
    recipe.duration(config, "total", epochs=12)
    recipe.duration(config, "warmup", epochs=0.5)
    recipe.duration(config, "eval", epochs=1)
    recipe.duration(config, "checkpoint", epochs=1)
    config.optimizer.name = "muon"  # learns much faster than Adam here: docs/results.md
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.beta2 = 0.99
    config.input.dataset = "cifar10"
    config.input.eval_split = "test"
    config.input.image_size = 32
    config.input.eval_resize = 32  # the images are of that size
    config.input.crop = "pad"
    return config
