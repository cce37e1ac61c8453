"""configs/cifar10_plain.py with the token mixing of the paper's Appendix A.1, "Things that did not help".

    python -m mixer.train --config configs/cifar10_ablation.py:untied --workdir runs/untied --config.input.data_dir=DIR

    untied    an MLP of its own for each of 4 groups of 24 neighbouring channels
    grouped   4 neighbouring channels are mixed at once
    views     4 learned views of the channels are mixed at once
    pyramid   8x8 tokens become 4x4 in the second of the four blocks

What the paper reports is for other data (JFT-300M): no noticeable gain by untied, less than 1 to 2% by grouped, 3 to 4%
by views for S/32 alone; pyramids are faster there with little loss, but not as good on ImageNet.
"""

from ml_collections import ConfigDict

from mixer import recipe

_MODELS = {
    "untied": {"token_mixing": "untied", "token_groups": 4},
    "grouped": {"token_mixing": "grouped", "token_groups": 4},
    "views": {"token_mixing": "views", "token_groups": 4},
    "pyramid": {"pyramid": (64, 16, 16, 16)},
}


def get_config(ablation: str = "untied") -> ConfigDict:
    recipe.one_of(ablation, *_MODELS)
    config = recipe.small_cifar10()
    config.model.update(_MODELS[ablation])
    return config
