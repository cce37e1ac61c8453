"""Mixer-B/16 on ImageNet-1k by Muon, with a stem that whitens patches and blocks that begin as the identity.

Untested at scale. It is configs/b16_i1k.py with the recipe that learned more than the paper's Adam from the same work
on small images (docs/learning.md). There the rate was 0.006: the best of three in 422 steps, and that of
configs/cifar10.py, which takes 10,547. This run takes 92,897, and half of that rate, which is a guess. Pre-flight says
51 ms a step and 1.60 GiB on 128 cores of a TPU v3, where Adam takes 49 ms and 1.70 GiB (jax 0.10.2, libtpu 0.0.42.1).

    python -m mixer.train --config configs/b16_i1k_muon.py --workdir gs://BUCKET/muon --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    config = recipe.imagenet1k("B/16")
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.05
    config.stem_init = "whitening"
    config.model.identity_init = True
    return config
