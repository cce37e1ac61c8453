"""A small Mixer on CIFAR-10 from scratch."""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    config = recipe.base()
    config.batch_size = 128
    recipe.duration(config, "total", epochs=10)
    recipe.duration(config, "warmup", epochs=0.5)
    recipe.duration(config, "eval", epochs=1)
    recipe.duration(config, "checkpoint", epochs=1)
    config.loss = "softmax_xent"
    config.model.update(
        {"variant": "Ti/4", "num_blocks": 4, "hidden_dim": 96, "tokens_mlp_dim": 48, "channels_mlp_dim": 384}
    )
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.05
    config.input.dataset = "cifar10"
    config.input.eval_split = "test"
    config.input.image_size = 32
    config.input.crop = "pad"
    config.input.eval_resize = 32
    return config
