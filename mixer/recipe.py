"""`mixer.config.recipe`, under the name that config files import: `from mixer import recipe`."""

from mixer.config.recipe import (
    arguments,
    base,
    cifar10,
    duration,
    evaluator_settings,
    finetune,
    imagenet1k,
    imagenet21k,
    jft,
    leaves,
    one_of,
    pretrain,
    small_cifar10,
    small_model,
)

__all__ = [
    "arguments",
    "base",
    "cifar10",
    "duration",
    "evaluator_settings",
    "finetune",
    "imagenet1k",
    "imagenet21k",
    "jft",
    "leaves",
    "one_of",
    "pretrain",
    "small_cifar10",
    "small_model",
]
