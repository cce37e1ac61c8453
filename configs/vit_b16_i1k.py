"""ViT-B/16 on ImageNet-1k, 300 epochs: what configs/b16_i1k.py is compared with.

The paper: 79.67% ImageNet top-1 by personal communication (Table 3); about 20 TPU-v3 core-days. Its hyper-parameters
are not told; these are Mixer's, so that the two differ in the model alone. L/16: --config.model.variant=ViT-L/16.

    python -m mixer.train --config configs/vit_b16_i1k.py --workdir gs://BUCKET/vit_b16_i1k --config.input.data_dir=gs://BUCKET/tfds
"""

from ml_collections import ConfigDict

from mixer import recipe


def get_config() -> ConfigDict:
    return recipe.imagenet1k("ViT-B/16")
