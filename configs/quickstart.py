"""A small Mixer pre-trained on fractals, then fine-tuned on a hundred coloured digits: what `make quickstart` runs.

python -m mixer.train --config configs/quickstart.py --workdir runs/fractals
python -m mixer.train --config configs/quickstart.py:digits --workdir runs/digits --config.init_from=runs/fractals
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config(stage: str = "fractals") -> ConfigDict:
    recipe.one_of(stage, "fractals", "digits")
    config = recipe.base()
    config.model.variant = "Ti/8"
    config.model.dtype = "auto"  # on a CPU, what is faster there
    config.loss = "softmax_xent"
    config.input.image_size = 32
    config.input.eval_resize = 32  # the images are of that size
    config.batch_size = 64
    config.optimizer.beta2 = 0.99  # short runs: forget the first gradients sooner
    recipe.duration(config, "log", steps=10)
    if stage == "fractals":
        config.input.dataset = "fractals/64x200x32"  # categories x instances x pixels
        config.input.crop = "resize"  # the instances vary enough: with Adam, 64% are told apart, and 24% if cropped too
        config.optimizer.name = "muon"  # 79% are told apart
        config.optimizer.learning_rate = 6e-3
        recipe.duration(config, "total", epochs=8)
        recipe.duration(config, "warmup", epochs=0.5)
        recipe.duration(config, "eval", epochs=2)
        recipe.duration(config, "checkpoint", epochs=1)
    else:
        config.input.dataset = "digits/32-coloured"
        config.input.train_split, config.input.eval_split = "train_seed0", "test"  # ten labelled examples a class
        config.input.flip = False  # a mirrored 2 is no 2
        config.input.crop = "pad"
        config.mixup.p = 0.5
        config.optimizer.learning_rate = 2e-3
        recipe.duration(config, "total", steps=200)
        recipe.duration(config, "warmup", steps=20)
        recipe.duration(config, "eval", steps=50)
        recipe.duration(config, "checkpoint", steps=200)
    return config
