"""Fine-tuning of the small Mixer of configs/cifar10_plain.py at 32 pixels, for two CPU cores.

    python -m mixer.sweep --config configs/finetune_small.py --tasks pets,cifar10 --workdir runs/transfer/cifar10 \\
        --config.init_from=runs/cifar10_plain --config.input.data_dir=DIR

The paper has no such run. Batch, steps and warm-up differ from configs/finetune.py; for CIFAR also the crop.
docs/results.md has the results.
"""

from ml_collections import ConfigDict

from mixer import recipe
from mixer.config import tasks


def get_config(arguments: str = "") -> ConfigDict:
    given = recipe.arguments(arguments, task="cifar10")
    config = recipe.finetune("Ti/4", tasks.find(given["task"])[1], 32)
    recipe.small_model(config)
    config.batch_size = 64
    if config.input.dataset != "folder":  # whose size is not known
        total = 300 if config.input.dataset == "oxford_iiit_pet" else 500
        for name, steps in {"total": total, "warmup": 50, "eval": total, "checkpoint": total}.items():
            recipe.duration(config, name, steps=steps)
    if config.input.dataset.startswith("cifar"):
        config.input.eval_resize = 32  # the images are of that size
        config.input.crop = "pad"
    return config
